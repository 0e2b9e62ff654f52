"""Hypervolumes of what a search has found by and by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autocompress.front import hypervolume

Costs = tuple[float, ...]
"""What a model costs by axis, 1 the reference, less being better."""


def better(front: Sequence[Costs], point: Costs) -> list[Costs]:
    """A front with one more point, if no other is as good in everything."""
    if any(all(x <= y for x, y in zip(other, point, strict=True)) for other in front):
        return list(front)
    return [other for other in front if not all(x <= y for x, y in zip(point, other, strict=True))] + [point]


def volumes(points: Iterable[Costs | None]) -> list[float]:
    """The hypervolume after each of some points; None adds nothing."""
    front: list[Costs] = []
    found: list[float] = []
    for point in points:
        wider = front if point is None else better(front, point)
        same = len(found) > 0 and wider == front
        front = wider
        found.append(found[-1] if same else hypervolume(front, (1.0,) * len(front[0])) if front else 0.0)
    return found
