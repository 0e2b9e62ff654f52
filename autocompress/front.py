"""The Pareto front of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autocompress.objective import Constraint, Objective
from autocompress.record import Record


def dominates(a: Mapping[str, float], b: Mapping[str, float], objectives: Sequence[Objective]) -> bool:
    """True if `a` is nowhere worse than `b` and somewhere better, differences within the noise left out."""
    left = [objective.box(a) for objective in objectives]
    right = [objective.box(b) for objective in objectives]
    return left != right and all(x <= y for x, y in zip(left, right, strict=True))


def pareto_front(records: Sequence[Record], objectives: Sequence[Objective]) -> tuple[Record, ...]:
    """The complete records that no other dominates, best first by the first objective.

    Of records that tie in all objectives the one with the better exact values stays, then the earlier one. The
    result does not depend on the order of the records.
    """
    complete = [record for record in records if record.status == "complete"]
    best: dict[tuple[float, ...], Record] = {}
    for record in sorted(complete, key=lambda record: _exact(record, objectives)):
        best.setdefault(tuple(objective.box(record.values) for objective in objectives), record)
    boxes = list(best)
    front = [
        record
        for box, record in best.items()
        if not any(other != box and all(x <= y for x, y in zip(other, box, strict=True)) for other in boxes)
    ]
    return tuple(sorted(front, key=lambda record: _exact(record, objectives)))


def feasible(
    records: Sequence[Record], constraints: Sequence[Constraint], baseline: Mapping[str, float]
) -> tuple[Record, ...]:
    """The complete records that obey every constraint."""
    return tuple(
        record
        for record in records
        if record.status == "complete"
        and all(constraint.violation(record.values, baseline) <= 0 for constraint in constraints)
    )


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume that the points dominate up to the reference; all costs, less is better.

    Exact, by slicing along the last axis (the HSO algorithm; While et al., "A faster algorithm for calculating
    hypervolume", 2006); meant for fronts of up to a few hundred points in up to four dimensions.

    >>> hypervolume([(0.5, 0.5)], (1.0, 1.0))
    0.25
    """
    inside = [tuple(point) for point in points if all(x < r for x, r in zip(point, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - min(point[0] for point in inside))
    total, ordered = 0.0, sorted(inside, key=lambda point: point[-1])
    for index, point in enumerate(ordered):
        top = ordered[index + 1][-1] if index + 1 < len(ordered) else reference[-1]
        if top > point[-1]:
            total += (top - point[-1]) * hypervolume([p[:-1] for p in ordered[: index + 1]], reference[:-1])
    return total


def _exact(record: Record, objectives: Sequence[Objective]) -> tuple[float, ...]:
    return (*(objective.cost(record.values) for objective in objectives), float(record.number))
