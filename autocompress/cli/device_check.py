"""`autocompress device check`: whether a machine can measure."""

from __future__ import annotations

from typing import Annotated

import typer

from autocompress.cli.device_addresses import resolve_with_addresses


def check(
    where: Annotated[str, typer.Argument(metavar="ADDRESS|PROFILE", help="http[s]://host:port, or a YAML file.")],
    *,
    certificate: Annotated[str, typer.Option(help="Authority of the agent's certificate, a PEM file.")] = "",
) -> None:
    """Check that machines answer, take the token, and measure: one tiny model on each.

    Example: `autocompress device check http://192.168.1.20:8765`
    """
    from dataclasses import replace

    from autocompress import __version__
    from autocompress.devices._client import AgentClient, AgentLost, AgentRefuses
    from autocompress.devices._trial import tiny_measurement
    from autocompress.errors import AutocompressError
    from autocompress.profile import HardwareProfile
    from autocompress.report.table import format_mj

    if where.startswith(("http://", "https://")):
        profile = HardwareProfile(name=where, device="remote", addresses=(where,), certificate=certificate)
    else:
        profile = resolve_with_addresses(where)
    failed = False
    for address in profile.addresses:
        one = replace(profile, addresses=(address,))
        try:
            with AgentClient(address, certificate=profile.certificate) as client:
                machine = client.capabilities()
            measured = tiny_measurement(one)
        except (AgentLost, AgentRefuses, AutocompressError) as error:
            failed = True
            typer.echo(f"{address}: {error}")
            continue
        energy = "" if measured.energy_mj is None else f" and {format_mj(measured.energy_mj)}"
        release = "" if machine.version == __version__ else f" (here {__version__})"
        typer.echo(
            f"{address}: {measured.machine}, autocompress {machine.version}{release}; measured a tiny model in "
            f"{measured.latency_ms:.4f} ms{energy}"
        )
    if failed:
        raise typer.Exit(1)
