"""`autocompress check`: what would fail later, found now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autocompress.cli.config import find_config
from autocompress.cli.locate import offer_data, the_task

if TYPE_CHECKING:
    from autocompress import CheckItem


def check(
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="`file.py`, `file.py:name` or `package.module:name`.")
    ] = None,
    *,
    space: Annotated[str | None, typer.Option(help="Search space: a shipped name or a YAML file.")] = None,
    hardware: Annotated[
        list[str] | None, typer.Option(help="Hardware profile: a shipped name or a YAML file; repeat it for several.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data, for tasks that ask for one.")] = None,
) -> None:
    """Try everything that would fail later: data, metric, export, runtime, layers found, time of a trial.

    Ends with exit code 1 if something failed. Example: `autocompress check task.py --hardware local`
    """
    from autocompress import api

    config = find_config(Path.cwd())
    offer_data(data, config)
    options = {"space": space or config.space, "hardware": tuple(hardware or ()) or config.hardware}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if not api.check(the_task(task, config), observe=_print, **given).ok:
        raise typer.Exit(1)


def _print(item: CheckItem) -> None:
    mark = typer.style("ok  ", fg="green") if item.ok else typer.style("FAIL", fg="red", bold=True)
    typer.echo(f"{mark}  {item.name}: {item.detail} ({item.seconds:.1f} s)")
