"""`autocompress device list`: the machines of profiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autocompress.cli.config import find_config
from autocompress.cli.device_addresses import resolve_with_addresses

if TYPE_CHECKING:
    from autocompress.profile import HardwareProfile


def list_devices(
    *,
    hardware: Annotated[
        list[str] | None,
        typer.Option(help="Hardware profile: a YAML file with addresses; repeat it for several."),
    ] = None,
) -> None:
    """Show the machines of a profile or of several, and whether they are there.

    Example: `autocompress device list --hardware boards.yaml`
    """
    from autocompress.devices import resolve_profile

    several = tuple(hardware or ()) or find_config(Path.cwd()).machines or ("local",)
    if len(several) == 1:
        _show(resolve_with_addresses(several[0]), "")
        return
    for profile in [resolve_profile(name) for name in several]:
        if not profile.addresses:
            typer.echo(f"{profile.name}: its device is {profile.device!r}, which needs no agent")
        _show(profile, f"{profile.name}: ")


def _show(profile: HardwareProfile, before: str) -> None:
    """A line for each machine of a profile."""
    for address in profile.addresses:
        typer.echo(f"{before}{address}: {_state(address, profile.certificate)}")


def _state(address: str, certificate: str) -> str:
    """Whether a machine is there, has time, and what it is."""
    from autocompress.devices._client import AgentClient, AgentLost, AgentRefuses
    from autocompress.duration import format_duration

    with AgentClient(address, certificate=certificate) as client:
        try:
            jobs, machine = client.health().jobs, client.capabilities()
        except (AgentLost, AgentRefuses) as error:
            return f"unavailable: {error}"
    return (
        f"{f'busy, {jobs} jobs' if jobs else 'free'}; {machine.processor}, {machine.threads} threads, "
        f"{machine.runtime}, at most {format_duration(machine.limits.job_s)} a job"
    )
