"""The Pareto front of records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from autocompress.objective import Constraint, Objective
from autocompress.record import Record


def dominates(a: Mapping[str, float], b: Mapping[str, float], objectives: Sequence[Objective]) -> bool:
    """True if `a` is nowhere worse than `b` and somewhere better, differences within the noise left out."""
    return all(objective.reaches(a, b) for objective in objectives) and not all(
        objective.reaches(b, a) for objective in objectives
    )


def pareto_front(records: Sequence[Record], objectives: Sequence[Objective]) -> tuple[Record, ...]:
    """The complete records that no other matches or beats in everything, best first by the first objective.

    A difference counts if it is beyond the noise: the tolerance of its objective, and for latencies what the two
    measurements leave open. Of records that tie in some objectives and can be told apart in none of the others, the
    one stays that is better in what is known exactly. So no model is on the front for a difference that may be noise
    alone. The result does not depend on the order of the records.

    References:
        Laumanns et al., "Combining convergence and diversity in evolutionary multi-objective optimization", 2002, for
        fronts with a tolerance.
    """
    surest = sorted(objectives, key=lambda objective: objective.tolerance)
    complete = [record for record in records if record.status == "complete"]
    kept: list[Record] = []
    for record in sorted(_not_beaten(complete, objectives), key=lambda record: _exact(record, surest)):
        if not any(_matches(other, record, objectives) for other in kept):
            kept = [other for other in kept if not _matches(record, other, objectives)]
            kept.append(record)
    return tuple(sorted(kept, key=lambda record: _exact(record, objectives)))


def _matches(a: Record, b: Record, objectives: Sequence[Objective]) -> bool:
    """True if `a` is as good as `b` in every objective, as far as one can tell."""
    return all(objective.reaches(a.values, b.values, spread=_spread(objective, a, b)) for objective in objectives)


def _spread(objective: Objective, a: Record, b: Record) -> float:
    """What two measured latencies may differ by for no reason, relative: half the 95 % intervals of both together."""
    if objective.name != "latency_ms" or a.measurement is None or b.measurement is None:
        return 0.0
    halves = [
        (high - low) / 2 / max(one.latency_ratio, 1e-12)
        for one in (a.measurement, b.measurement)
        for low, high in [one.latency_ratio_interval]
    ]
    return math.hypot(*halves)


def _not_beaten(records: Sequence[Record], objectives: Sequence[Objective]) -> list[Record]:
    """The records that no other beats exactly, which is quick to see for many."""
    costs = np.array([[objective.cost(record.values) for objective in objectives] for record in records])
    kept: list[int] = []
    for row in np.lexsort(costs.T[::-1]) if len(records) else ():
        as_good = (costs[kept] <= costs[row]).all(axis=1)
        if not as_good.any() or (costs[kept] == costs[row]).all(axis=1).any():
            kept.append(int(row))
    return [records[row] for row in kept]


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
