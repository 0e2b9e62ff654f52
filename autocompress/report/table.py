"""Points as rows of text: the same cells on the terminal, in Markdown, in a notebook and on the report's page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from autocompress.objective import LATENCY_RATIO, Constraint, on_machine
from autocompress.point import Point


@dataclass(frozen=True)
class Column:
    """One column of a table of points.

    Args:
        key: Short and unique.
        title: What stands above it.
        cell: The text for a point.
        rank: Columns of the highest rank are left out first where space is short; 0 stays always.
        is_number: True to align it right.
    """

    key: str
    title: str
    cell: Callable[[Point], str]
    rank: int
    is_number: bool = True


def point_columns(points: Sequence[Point], metric: str, is_percentage: bool) -> tuple[Column, ...]:
    """The columns for some points; those of scores on test data and on the device only where there are some."""

    def test(point: Point) -> str:
        return format_metric(point.test.get(metric), is_percentage)

    def device(point: Point) -> str:
        return "no score" if point.device_reason else format_metric(point.device_score, is_percentage)

    columns = (
        Column("name", "model", lambda point: point.name, 0, is_number=False),
        Column("metric", metric, lambda point: format_metric(point.validation[metric], is_percentage), 0),
        Column("test", f"test {metric}", test, 2),
        Column("device", f"device {metric}", device, 1),
        *_latency_columns(points),
        Column("size", "size", lambda point: format_bytes(point.size_bytes), 3),
        Column("size_ratio", "× size", lambda point: f"{point.size_ratio:.2f}", 1),
        Column("confidence", "sure", lambda point: format_share(point.confidence), 4),
        Column("memory", "memory", lambda point: format_bytes(point.peak_memory_bytes), 6),
    )
    has = {
        "test": any(metric in point.test for point in points),
        "device": any(point.device_score is not None or point.device_reason for point in points),
        "memory": any(point.peak_memory_bytes for point in points),
        "confidence": any(point.confidence not in (None, 1.0) for point in points),
    }
    return tuple(column for column in columns if has.get(column.key, True))


def _latency_columns(points: Sequence[Point]) -> Iterator[Column]:
    """Those of each machine."""
    for name in points[0].latencies if points else [""]:
        of = f" {name}" if name else ""
        yield Column(f"latency{of}", f"latency{of}", partial(_latency, name), 3)
        ratio = on_machine(LATENCY_RATIO, name) if name else LATENCY_RATIO
        yield Column(ratio, f"× {name or 'latency'}", partial(_ratio, name), 0)
        yield Column(f"interval{of}", f"95 %{of}", partial(_interval, name), 5)


def _latency(machine: str, point: Point) -> str:
    return format_ms(point.latencies[machine].latency_ms)


def _ratio(machine: str, point: Point) -> str:
    return f"{point.latencies[machine].latency_ratio:.2f}"


def _interval(machine: str, point: Point) -> str:
    return format_interval(point.latencies[machine].latency_ratio_interval)


def with_misses(columns: Sequence[Column], baseline: Point, constraints: Sequence[Constraint]) -> tuple[Column, ...]:
    """The columns with one beside the score that says what each point lacks to what was asked for."""

    def misses(point: Point) -> str:
        broken = {str(one): one.violation(point.values(), baseline.values()) for one in constraints}
        return ", ".join(f"{text} by {100 * excess:.3g} %" for text, excess in broken.items() if excess > 0)

    return (*columns[:2], Column("misses", "misses", misses, 0, is_number=False), *columns[2:])


def format_metric(value: float | None, is_percentage: bool) -> str:
    """A score as text.

    >>> format_metric(0.98765, True), format_metric(0.0123456, False), format_metric(None, True)
    ('98.77 %', '0.01235', '–')
    """
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if is_percentage else f"{value:.4g}"


def format_share(share: float | None) -> str:
    """A share in [0, 1] in whole percent.

    >>> format_share(0.626), format_share(None)
    ('63 %', '–')
    """
    return "–" if share is None else f"{100 * share:.0f} %"


def format_ms(value: float) -> str:
    """Milliseconds with three digits that count.

    >>> format_ms(0.4), format_ms(12.345), format_ms(123.4), format_ms(1234.5)
    ('0.400 ms', '12.3 ms', '123 ms', '1234 ms')
    """
    return f"{value:#.3g}".rstrip(".") + " ms" if value < 1000 else f"{value:.0f} ms"


def format_mj(value: float) -> str:
    """Millijoules with three digits that count.

    >>> format_mj(0.4), format_mj(12.345), format_mj(1234.5)
    ('0.400 mJ', '12.3 mJ', '1234 mJ')
    """
    return f"{value:#.3g}".rstrip(".") + " mJ" if value < 1000 else f"{value:.0f} mJ"


def format_bytes(value: float) -> str:
    """Bytes in the unit that suits.

    >>> format_bytes(512), format_bytes(316_000), format_bytes(8_900_000)
    ('512 B', '309 KiB', '8.5 MiB')
    """
    if value < 1024:
        return f"{value:.0f} B"
    if value < 1000 * 1024:
        return f"{value / 1024:.0f} KiB"
    return f"{value / 1024**2:.1f} MiB" if value < 1000 * 1024**2 else f"{value / 1024**3:.1f} GiB"


def format_interval(interval: tuple[float, float]) -> str:
    """An interval of ratios.

    >>> format_interval((0.461, 0.489))
    '0.46–0.49'
    """
    return f"{interval[0]:.2f}–{interval[1]:.2f}"
