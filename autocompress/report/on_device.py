"""Scores on the device beside those on the host: where they differ, and which models have none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from autocompress.point import Point
from autocompress.report.table import format_metric


def difference(point: Point, metric: str) -> float | None:
    """The score on the device less that on the host; None where there is none on the device."""
    return None if point.device_score is None else point.device_score - point.validation[metric]


def format_difference(value: float | None, is_percentage: bool) -> str:
    """A difference of scores as text: of shares in points.

    >>> format_difference(-0.0021, True), format_difference(0.0123456, False), format_difference(None, True)
    ('-0.21 points', '+0.01235', '–')
    """
    if value is None:
        return "–"
    return f"{100 * value:+.2f} points" if is_percentage else f"{value:+.4g}"


def told(points: Sequence[Point], metric: str, is_percentage: bool) -> Iterator[str]:
    """What the scores on the device say, in lines; scores that look the same count as the same.

    Args:
        points: The models that were to be scored.
        metric: Name of the task's metric.
        is_percentage: True if the metric is a share in [0, 1].
    """
    found = {point.name: value for point in points if (value := difference(point, metric)) is not None}
    shown = partial(format_metric, is_percentage=is_percentage)
    equal = {point.name for point in points if shown(point.device_score) == shown(point.validation[metric])}
    differing = {name: value for name, value in found.items() if name not in equal}
    if found and not differing:
        yield f"On the device {metric} is as on the host, for {_models(len(found))}."
    if differing:
        name = max(differing, key=lambda name: abs(differing[name]))
        yield (
            f"On the device {metric} differs from that on the host for {len(differing)} of {_models(len(found))}, most "
            f"for {name}: {format_difference(differing[name], is_percentage)}."
        )
    for point in points:
        if point.device_reason:
            yield f"On the device {point.name} can't be scored: {point.device_reason}"
    missing = [point.name for point in points if point.device_score is None and not point.device_reason]
    if missing:
        yield f"Not scored on the device, as there was no time: {', '.join(missing)}."


def _models(count: int) -> str:
    return "1 model" if count == 1 else f"{count} models"
