"""The Pareto front of records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from autocompress.data import Array
from autocompress.objective import LATENCY, SIZE, Constraint, Objective, quantity
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
    one stays that is better in what is known exactly; where size is no objective, the smallest of those that tie in
    all of them. So no model is on the front for a difference that may be noise alone. The result does not depend on the
    order of the records.

    References:
        Laumanns et al., "Combining convergence and diversity in evolutionary multi-objective optimization", 2002, for
        fronts with a tolerance.
    """
    front = told_apart(undominated(records, objectives), objectives)
    return front if any(objective.name == SIZE for objective in objectives) else _lightest(front, records, objectives)


def _lightest(
    front: Sequence[Record], records: Sequence[Record], objectives: Sequence[Objective]
) -> tuple[Record, ...]:
    """A front with the smallest of those that tie with a model in its place, unless that is like another of them."""
    sized = [record for record in records if record.status == "complete" and SIZE in record.values]
    sized.sort(key=lambda record: (record.values[SIZE], *exact_order(record, objectives)))
    reach, row_of = Reach(sized, objectives), {record.number: row for row, record in enumerate(sized)}
    chosen = [row_of[record.number] for record in front if record.number in row_of]
    for place, row in enumerate(chosen):
        others = [*chosen[:place], *chosen[place + 1 :]]
        for smaller in np.flatnonzero(reach.of(row, range(row))).tolist():
            is_like_another = reach.of(smaller, others).any() or any(reach.of(one, [smaller])[0] for one in others)
            if reach.of(smaller, [row])[0] and not is_like_another:
                chosen[place] = smaller
                break
    kept = [record for record in front if record.number not in row_of]
    return tuple(sorted((*kept, *(sized[row] for row in chosen)), key=lambda one: exact_order(one, objectives)))


def told_apart(complete: Sequence[Record], objectives: Sequence[Objective]) -> tuple[Record, ...]:
    """The front of complete records of which none beats another exactly, as `undominated` gives them."""
    if not complete:
        return ()
    surest = sorted(range(len(objectives)), key=lambda column: objectives[column].tolerance)
    costs = np.array([[objective.cost(record.values) for objective in objectives] for record in complete])
    numbers = np.array([record.number for record in complete])
    order = np.lexsort((numbers, *costs[:, surest[::-1]].T))
    noise = _Noise(complete, objectives)
    kept = order[:0]
    for row in order:
        best = costs[kept]
        if not (best <= costs[row] + noise.between(kept, row, costs[row])).all(axis=1).any():
            beaten = (costs[row] <= best + noise.between(kept, row, best)).all(axis=1)
            kept = np.append(kept[~beaten], row)
    front = (complete[row] for row in kept.tolist())
    return tuple(sorted(front, key=lambda record: exact_order(record, objectives)))


def undominated(records: Sequence[Record], objectives: Sequence[Objective]) -> tuple[Record, ...]:
    """The complete records that no other beats exactly, noise or not: all that a front of them is made of."""
    complete = [record for record in records if record.status == "complete"]
    if not complete:
        return ()
    costs = np.array([[objective.cost(record.values) for objective in objectives] for record in complete])
    return tuple(complete[row] for row in sorted(_not_beaten(costs).tolist()))


def exact_order(record: Record, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """By what a front is sorted: the costs, the first objective first, then the number."""
    return (*(objective.cost(record.values) for objective in objectives), float(record.number))


class Reach:
    """Which of some records is as good as which in some objectives, but for the noise.

    Args:
        records: Complete records.
        objectives: That are looked at.
    """

    def __init__(self, records: Sequence[Record], objectives: Sequence[Objective]) -> None:
        self.costs = np.array([[objective.cost(record.values) for objective in objectives] for record in records])
        self._noise = _Noise(records, objectives)

    def of(self, row: int, others: Sequence[int] | Array) -> Array:
        """Whether one record is as good as each of some others (others,)."""
        rows = np.asarray(others, np.int64)
        costs = self.costs[rows]
        found: Array = (self.costs[row] <= costs + self._noise.between(rows, row, costs)).all(axis=1)
        return found


class _Noise:
    """What costs of two records may differ by for no reason: the tolerance, and what measuring leaves open."""

    def __init__(self, records: Sequence[Record], objectives: Sequence[Objective]) -> None:
        self._tolerances = np.array([objective.tolerance for objective in objectives])
        self._halves = np.array([[_half_interval(record, one.name) for one in objectives] for record in records])

    def between(self, rows: Sequence[int] | Array, row: int, scale: Array) -> Array:
        """Differences of costs (rows, objectives) that count as none, at some level of the costs."""
        spread = np.hypot(self._halves[rows], self._halves[row])
        difference: Array = np.maximum(self._tolerances, spread) * np.abs(scale)
        return difference


def _half_interval(record: Record, name: str) -> float:
    """Half of the 95 % interval of a latency, relative to it; 0 for other values."""
    measurement = record.measurement_for(name)
    if measurement is None or quantity(name) != LATENCY:
        return 0.0
    low, high = measurement.latency_ratio_interval
    return (high - low) / 2 / max(measurement.latency_ratio, 1e-12)


def _not_beaten(costs: Array) -> Array:
    """Rows that no other beats exactly: each of them in turn leaves of the others those that it does not beat."""
    left = np.lexsort(costs.T[::-1])  # what comes before the row in turn stays: nothing after it can beat it
    place = 0
    while place < len(left):
        row, others = costs[left[place]], costs[left]
        left = left[~((row <= others).all(axis=1) & (row < others).any(axis=1))]
        place += 1
    return left


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

    Exact: what each point adds to those after it, which is its own box without the volume of the others within it (the
    WFG algorithm; While et al., "A fast way of calculating exact hypervolumes", 2012).

    >>> hypervolume([(0.5, 0.5)], (1.0, 1.0))
    0.25
    """
    worst_first: list[Sequence[float] | None] = [*sorted(points, key=lambda point: -point[-1])]
    return growing_hypervolume(worst_first, reference)[-1] if points else 0.0


def growing_hypervolume(points: Iterable[Sequence[float] | None], reference: Sequence[float]) -> list[float]:
    """The hypervolume after each of some points, all costs; None adds nothing.

    >>> growing_hypervolume([(0.5, 0.5), None, (0.6, 0.6), (0.5, 0.25)], (1.0, 1.0))
    [0.25, 0.25, 0.25, 0.375]
    """
    front: list[Sequence[float]] = []
    total, found = 0.0, []
    for point in points:
        if point is not None and all(x < r for x, r in zip(point, reference, strict=True)):
            total += _added(point, front, reference)
            if not any(_covers(other, point) for other in front):
                front = [other for other in front if not _covers(point, other)] + [point]
        found.append(total)
    return found


def _added(point: Sequence[float], front: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """What a point adds to the volume of a front."""
    within = [tuple(map(max, point, other)) for other in front]
    if point in within or tuple(point) in within:
        return 0.0
    return math.prod(r - x for x, r in zip(point, reference, strict=True)) - hypervolume(_best(within), reference)


def _best(points: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The points that no other covers, each once."""
    kept: list[tuple[float, ...]] = []
    for point in sorted(set(points)):
        if not any(_covers(other, point) for other in kept):
            kept.append(point)
    return kept


def _covers(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True))
