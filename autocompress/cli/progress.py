"""The view of a running search: a live one on a terminal, a line an event elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autocompress.cli.tables import front_table, terminal
from autocompress.duration import format_duration
from autocompress.point import Point
from autocompress.report.table import format_metric, point_columns
from autocompress.snapshot import Observer, Snapshot

_LINES_AROUND = 10
"""Lines of the view beside the rows of its table."""


@contextmanager
def watch() -> Iterator[Observer]:
    """An observer that shows the search on stderr, so that stdout holds results alone."""
    console = terminal(stderr=True)
    if not console.is_terminal:
        yield lambda snapshot: _print_event(console, snapshot)
        return
    view = _View(console)
    try:
        yield view
    finally:
        view.close()


class _View:
    """Draws the latest snapshot in place once the search proper has begun.

    Before and after that, events are lines of their own, between which a task may print what it likes while it loads or
    trains.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._event = ""

    def __call__(self, snapshot: Snapshot) -> None:
        if snapshot.baseline is None:
            _print_event(self._console, snapshot)
            return
        self._event = snapshot.event or self._event
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        size = self._console.size
        self._live.update(render(snapshot, self._event, width=size.width, height=size.height), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


def _print_event(console: Console, snapshot: Snapshot) -> None:
    if snapshot.event:
        time = format_duration(snapshot.elapsed_s)
        console.print(f"{time:>8}  {snapshot.event}", markup=False, soft_wrap=True)


def render(snapshot: Snapshot, event: str, *, width: int, height: int) -> RenderableType:
    """The whole view of a running search.

    Args:
        event: What happened last.
        width, height: Of the terminal, in characters.
    """
    parts: list[RenderableType] = [_head(snapshot), _bar(snapshot), _counts(snapshot)]
    if event:
        parts.append(Text(event, style="dim", no_wrap=True, overflow="ellipsis"))
    if snapshot.baseline is not None:
        points = snapshot.front
        columns = point_columns((snapshot.baseline, *points), snapshot.metric, snapshot.is_percentage)
        apart = None if snapshot.baseline.number in {point.number for point in points} else snapshot.baseline
        rows = max(height - _LINES_AROUND, 3)
        parts += [Text(), *_highlights(snapshot, snapshot.baseline), Text()]
        parts.append(front_table(apart, points, columns, width=width, rows=rows))
    return Group(*parts)


def _head(snapshot: Snapshot) -> RenderableType:
    line = Table.grid(expand=True)
    line.add_column(no_wrap=True)
    line.add_column(justify="right", no_wrap=True)
    line.add_row(Text(snapshot.phase, style="bold"), _time(snapshot))
    return line


def _time(snapshot: Snapshot) -> str:
    spent = format_duration(snapshot.elapsed_s)
    if snapshot.budget_s is None:
        return f"{spent} spent"
    return f"{format_duration(snapshot.budget_s - snapshot.elapsed_s)} left, {spent} spent"


def _bar(snapshot: Snapshot) -> RenderableType:
    line = Table.grid(expand=True)  # a bar of its own ends no line
    line.add_row(ProgressBar(total=1.0, completed=share_done(snapshot)))
    return line


def share_done(snapshot: Snapshot) -> float:
    """How much of the search is over, in [0, 1]: by time or by trials beside the baseline, whichever ends it first."""
    done = snapshot.complete + snapshot.screened + snapshot.failed
    by_time = snapshot.elapsed_s / snapshot.budget_s if snapshot.budget_s else 0.0
    by_trials = done / snapshot.trial_limit if snapshot.trial_limit else 0.0
    return min(max(by_time, by_trials), 1.0)


def _counts(snapshot: Snapshot) -> Text:
    limit = f"; at most {snapshot.trial_limit}" if snapshot.trial_limit else ""
    done = f"{snapshot.complete} complete, {snapshot.screened} screened, {snapshot.failed} failed"
    looked = f"changes looked at: {snapshot.looked}; " if snapshot.looked else ""
    return Text(f"{looked}trials: {done}, {snapshot.running} running{limit}", overflow="fold")


def _highlights(snapshot: Snapshot, baseline: Point) -> Sequence[Text]:
    """The fastest and the smallest model, of those within a point of the baseline where the metric is a share."""
    metric, is_share = snapshot.metric, snapshot.is_percentage
    level = baseline.validation[metric]
    sign = 1.0 if snapshot.direction == "maximize" else -1.0
    near = [p for p in snapshot.front if not is_share or sign * (level - p.validation[metric]) <= 0.01]

    def line(what: str, value: Callable[[Point], float]) -> Text:
        best = min(near, key=value)
        score = format_metric(best.validation[metric], is_share)
        return Text(f"{what} {value(best):.2f}× at {score} ({best.name})", no_wrap=True, overflow="ellipsis")

    within = " within 1 point" if is_share else ""
    if not near:
        return ()
    fastest = [
        line(f"fastest{within}{f' on {name}' if name else ''}:", partial(_latency_ratio, name))
        for name in baseline.latencies
    ]
    return (*fastest, line(f"smallest{within}:", lambda point: point.size_ratio))


def _latency_ratio(machine: str, point: Point) -> float:
    return point.latencies[machine].latency_ratio
