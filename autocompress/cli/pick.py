"""`autocompress pick`: one model of the front."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autocompress.cli.locate import the_run


def pick(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run directory; without it the newest under `runs/`.")
    ] = None,
    *,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="What the model must obey: `latency_ms<=2`, `size_bytes<=0.25x`, `accuracy>=baseline-1%`. "
            "Repeat it, or join several by commas. Of several machines each must obey, or `latency_ms@NAME` alone."
        ),
    ] = None,
    best: Annotated[
        str | None,
        typer.Option(
            help="The value that decides among those left; by default what the weights of the search's objectives say, "
            "else its first objective. Over several machines `latency_ms` is their geometric mean, `latency_ms@NAME` "
            "that on one. Of those that measuring can't tell from the fastest it is the smallest."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Copy the ONNX file here, and its plan beside it.")
    ] = None,
) -> None:
    """Choose one model of the front, and copy it where it is needed.

    Example: `autocompress pick runs/digits --where "latency_ratio<=0.5" --best accuracy --output model.onnx`
    """
    from autocompress.cli.tables import front_table, terminal
    from autocompress.run import Run

    found, console = Run(the_run(run)), terminal()
    point = found.pick(where, best, output)
    console.print(front_table(None, [point], found.columns(), width=console.width))
    console.print(f"model: {point.file}\nplan:  {point.plan}", markup=False, soft_wrap=True)
