"""Tables of points that fit the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from autocompress.point import Point
from autocompress.report.table import Column

_GAP = 2
_NAME_WIDTH = 16
"""A name is shown to this length at least; its number, at the front, makes it unique."""

_DETAIL = 2
"""Rank from which on a column goes before a name is cut."""


def terminal(*, stderr: bool = False) -> Console:
    """A console that cuts nothing short where its output goes to a file or a pipe."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 200)
    return console


def front_table(
    baseline: Point | None, points: Sequence[Point], columns: Sequence[Column], *, width: int, rows: int | None = None
) -> Table:
    """The baseline and the points, with as many columns as `width` takes.

    Args:
        rows: Show at most so many points; the rest is counted in the last line.
    """
    shown = points if rows is None or len(points) <= rows else points[: max(rows - 1, 1)]
    lines = [*([baseline] if baseline else []), *shown]
    fitting = fit(columns, lines, width)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    spare = width - needed_width(fitting, lines)
    for column in fitting:
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        own = min(_width(column, lines), _NAME_WIDTH + max(spare, 0)) if column.key == "name" else None
        table.add_column(column.title, justify=justify, no_wrap=True, overflow="ellipsis", width=own)
    for point in lines:
        table.add_row(*(column.cell(point) for column in fitting), style="dim" if point is baseline else "")
    if len(shown) < len(points):
        table.add_row(f"… {len(points) - len(shown)} more", style="dim")
    return table


def fit(columns: Sequence[Column], points: Sequence[Point], width: int) -> tuple[Column, ...]:
    """The columns that fit, those of the lowest rank first.

    Whole names are worth more than columns that only say more of what others say; then they are cut.
    """
    kept = list(columns)
    for least_rank, longest_name in ((_DETAIL, width), (1, _NAME_WIDTH)):
        while needed_width(kept, points, longest_name) > width and any(one.rank >= least_rank for one in kept):
            kept.remove(max(reversed(kept), key=lambda column: column.rank))
    return tuple(kept)


def needed_width(columns: Sequence[Column], points: Sequence[Point], longest_name: int = _NAME_WIDTH) -> int:
    """Characters that the columns take, with names cut at some length."""
    widths = [_width(column, points) for column in columns]
    needed = [min(w, longest_name) if c.key == "name" else w for c, w in zip(columns, widths, strict=True)]
    return sum(needed) + _GAP * len(columns)


def _width(column: Column, points: Sequence[Point]) -> int:
    return max(cell_len(text) for text in (column.title, *(column.cell(point) for point in points)))


def markdown(points: Sequence[Point], columns: Sequence[Column]) -> str:
    """A table as GitHub shows it."""
    lines = [
        [column.title for column in columns],
        ["---:" if column.is_number else "---" for column in columns],
        *([column.cell(point).replace("|", "\\|") for column in columns] for point in points),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
