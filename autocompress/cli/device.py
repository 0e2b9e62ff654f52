"""`autocompress device`: the commands about machines that measure, joined."""

from __future__ import annotations

import typer

from autocompress.cli.device_check import check
from autocompress.cli.device_list import list_devices
from autocompress.cli.device_requirements import requirements
from autocompress.cli.device_serve import serve

device = typer.Typer(
    name="device", help="Machines that measure: serve as one, see which are there, check one.", no_args_is_help=True
)
device.command("serve")(serve)
device.command("list")(list_devices)
device.command("check")(check)
device.command("requirements")(requirements)
