"""`autocompress show`: the front of a run."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autocompress.cli.locate import the_run

if TYPE_CHECKING:
    from autocompress.run import Run


class Format(StrEnum):
    """How a front is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


def show(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run directory; without it the newest under `runs/`.")
    ] = None,
    *,
    format: Annotated[
        Format, typer.Option("--format", "-f", help="`json` is a stable contract for scripts.")
    ] = Format.TABLE,
) -> None:
    """Show the front of a run, finished or still searching.

    Example: `autocompress show runs/digits --format json`
    """
    from autocompress.run import Run

    found = Run(the_run(run))
    if format is Format.TABLE:
        print_run(found)
    else:
        typer.echo(_text(found, format))


def _text(run: Run, format: Format) -> str:
    from autocompress.cli.tables import markdown
    from autocompress.point import as_csv
    from autocompress.serialization import dumps

    if format is Format.JSON:
        return dumps(run.as_json(), indent=2)
    if format is Format.CSV:
        return as_csv(run.points or run.near_misses).rstrip("\n")
    return markdown(run.points or run.near_misses, run.columns())


def print_run(run: Run) -> None:
    """How the run stands in one line, and its front as a table."""
    from autocompress.cli.tables import front_table, terminal
    from autocompress.duration import format_duration
    from autocompress.report.on_device import told

    facts, baseline, points, console = run.as_json(), run.baseline, run.points, terminal()
    counts = ", ".join(f"{count} {status}" for status, count in facts["trials"].items())
    time = format_duration(facts["elapsed_s"])
    allowed = f" of {format_duration(facts['budget_s'])}" if facts["budget_s"] else ""
    console.print(
        f"{facts['task']}: {facts['status']}, {time}{allowed}; trials: {counts}", markup=False, soft_wrap=True
    )
    if facts["status"] == "failed":
        again = f"go on: autocompress search --resume {shlex.quote(str(run.path))}"
        console.print(f"{run.reason}\n{again}", markup=False, soft_wrap=True)
    if baseline is None:
        console.print("The baseline is not measured yet.")
        return
    misses = run.near_misses
    if misses:
        wanted = ", ".join(map(str, run.config.constraints))
        console.print(f"No model obeys {wanted}. The nearest:", markup=False, soft_wrap=True)
        points = misses
    apart = None if baseline.number in {point.number for point in points} else baseline
    console.print(front_table(apart, points, run.columns(), width=console.width))
    config = run.config
    if config.score_on_device and not misses:
        lines = told([*([apart] if apart else []), *points], config.metric, config.is_percentage)
        console.print("\n".join(lines), markup=False, soft_wrap=True)
