"""`autocompress device list`: the machines of a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autocompress.cli.config import find_config
from autocompress.cli.device_addresses import resolve_with_addresses


def list_devices(
    *,
    hardware: Annotated[str | None, typer.Option(help="Hardware profile: a YAML file with addresses.")] = None,
) -> None:
    """Show the machines of a profile, and whether they are there.

    Example: `autocompress device list --hardware boards.yaml`
    """
    from autocompress.devices._client import AgentClient, AgentLost, AgentRefuses
    from autocompress.duration import format_duration

    profile = resolve_with_addresses(hardware or find_config(Path.cwd()).machine or "local")
    for address in profile.addresses:
        with AgentClient(address, certificate=profile.certificate) as client:
            try:
                jobs, machine = client.health().jobs, client.capabilities()
            except (AgentLost, AgentRefuses) as error:
                typer.echo(f"{address}: unavailable: {error}")
                continue
        limit = format_duration(machine.limits.job_s)
        typer.echo(
            f"{address}: {'busy, ' + str(jobs) + ' jobs' if jobs else 'free'}; {machine.processor}, {machine.threads} "
            f"threads, {machine.runtime}, at most {limit} a job"
        )
