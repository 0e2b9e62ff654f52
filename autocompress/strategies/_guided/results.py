"""Finished trials as a guided search sees them, and the front of them."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.data import Array
from autocompress.front import feasible, told_apart, undominated
from autocompress.objective import Constraint, Objective
from autocompress.record import Record

LATEST = 12
"""Finished models beside the front whose trained weights are kept."""


@dataclass(frozen=True)
class Result:
    """A finished trial as the models see it.

    Args:
        number: Of the trial.
        architecture: Of its model.
        point: Its options (sites,).
        epochs: Training that counts for it, that of relatives included.
        free: The part of it that relatives would inherit: with values not yet restricted.
        start: Number of the trial whose weights it began with, or 0.
        loss: Points of the metric lost against the baseline.
        shares: Costs as shares of the baseline's.
        record: All there is.
    """

    number: int
    architecture: str
    point: Array
    epochs: float
    free: float
    start: int
    loss: float
    shares: Mapping[str, float]
    record: Record

    @property
    def is_trained(self) -> bool:
        """True if it was trained itself, and not only what it began with."""
        return self.record.plan.recovery.epochs > 0

    @property
    def share_rows(self) -> dict[str, Array]:
        """The shares as arrays of one point each."""
        return {name: np.array([share]) for name, share in self.shares.items()}

    @property
    def starts(self) -> int:
        """How many plans its plan starts from, one after another."""
        count, plan = 0, self.record.plan
        while plan.start is not None:
            count, plan = count + 1, plan.start
        return count


class Results:
    """All finished trials, in whatever order they ended.

    Args:
        objectives, constraints: What the front is by.
    """

    def __init__(self, objectives: tuple[Objective, ...], constraints: tuple[Constraint, ...]) -> None:
        self._objectives, self._constraints = objectives, constraints
        self.by_number: dict[int, Result] = {}
        self._own: list[int] = []
        self._all, self._allowed = _Undominated(objectives), _Undominated(objectives)
        self._front: list[Result] | None = None
        self._trained: list[Result] | None = None

    def add(self, result: Result) -> None:
        """Take in a result; that of the baseline first."""
        self.by_number[result.number] = result
        if result.is_trained:
            insort(self._own, result.number)
        changed = self._all.add(result.record)
        if feasible([result.record], self._constraints, self.by_number[0].record.values):
            changed |= self._allowed.add(result.record)
        self._front = None if changed else self._front
        self._trained = None

    @property
    def front(self) -> list[Result]:
        """The front of all; of those that obey the constraints if there are any."""
        if self._front is None:
            best = told_apart(self._allowed.records or self._all.records, self._objectives)
            self._front = [self.by_number[record.number] for record in best]
        return self._front

    def front_of(self, some: Sequence[Result]) -> list[Result]:
        """The front of some results, in the same way."""
        records = [result.record for result in some]
        allowed = feasible(records, self._constraints, self.by_number[0].record.values)
        best = told_apart(undominated(allowed or records, self._objectives), self._objectives)
        return [self.by_number[record.number] for record in best]

    def before(self, number: int, unknown: Collection[int]) -> Results:
        """What was known when a trial was proposed while some others were at work."""
        found = Results(self._objectives, self._constraints)
        for key, result in sorted(self.by_number.items()):
            if key < number and key not in unknown:
                found.add(result)
        return found

    @property
    def trained(self) -> list[Result]:
        """Models whose weights are kept: of the front, those that the front began with, and the latest."""
        if self._trained is None:
            front = [result.number if result.is_trained else result.start for result in self.front]
            numbers = {*self._own[-LATEST:], *front} & self.by_number.keys() - {0}
            self._trained = [self.by_number[number] for number in sorted(numbers)]
        return self._trained


class _Undominated:
    """The records that no other beats exactly, one after another; the same as `front.undominated` of all."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives
        self._costs = np.empty((0, len(objectives)))
        self.records: list[Record] = []

    def add(self, record: Record) -> bool:
        """Take in a complete record; False if another beats it."""
        costs = np.array([objective.cost(record.values) for objective in self._objectives])
        equal = (self._costs == costs).all(axis=1)
        if ((self._costs <= costs).all(axis=1) & ~equal).any():
            return False
        kept = ~(costs <= self._costs).all(axis=1) | equal
        self.records = [*(one for one, stays in zip(self.records, kept, strict=True) if stays), record]
        self._costs = np.vstack([self._costs[kept], costs])
        return True
