"""`autocompress device`: the commands about machines that measure, joined."""

from __future__ import annotations

import typer

from autocompress.cli.device_check import check
from autocompress.cli.device_list import list_devices
from autocompress.cli.device_profile import profile
from autocompress.cli.device_requirements import requirements
from autocompress.cli.device_serve import serve

device = typer.Typer(name="device")


@device.callback(invoke_without_command=True)
def describe(context: typer.Context) -> None:
    """Machines that measure: serve as one, see which are there, check one, find what is fast on one."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


device.command("serve")(serve)
device.command("list")(list_devices)
device.command("check")(check)
device.command("profile")(profile)
device.command("requirements")(requirements)
