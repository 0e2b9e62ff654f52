"""`autocompress report`: the run as a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autocompress.cli.locate import the_run


def report(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run directory; without it the newest under `runs/`.")
    ] = None,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; by default `report.html` in the run directory.")
    ] = None,
) -> None:
    """Write one HTML file with the front, what was done to each layer, and how the search went; it works offline.

    Example: `autocompress report runs/digits --output digits.html`
    """
    from autocompress.run import Run

    typer.echo(Run(the_run(run)).report(output))
