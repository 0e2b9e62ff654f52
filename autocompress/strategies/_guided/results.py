"""Finished trials as a guided search sees them, and the front of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from autocompress.data import Array
from autocompress.front import feasible, pareto_front, undominated
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
        self._all: tuple[Record, ...] = ()
        self._allowed: tuple[Record, ...] = ()
        self._front: list[Result] | None = None
        self._trained: list[Result] | None = None

    def add(self, result: Result) -> None:
        """Take in a result; that of the baseline first."""
        self.by_number[result.number] = result
        self._all = undominated([*self._all, result.record], self._objectives)
        if feasible([result.record], self._constraints, self.by_number[0].record.values):
            self._allowed = undominated([*self._allowed, result.record], self._objectives)
        self._front = self._trained = None

    @property
    def front(self) -> list[Result]:
        """The front of all; of those that obey the constraints if there are any."""
        if self._front is None:
            best = pareto_front(self._allowed or self._all, self._objectives)
            self._front = [self.by_number[record.number] for record in best]
        return self._front

    def front_of(self, some: Sequence[Result]) -> list[Result]:
        """The front of some results, in the same way."""
        records = [result.record for result in some]
        allowed = feasible(records, self._constraints, self.by_number[0].record.values)
        return [self.by_number[record.number] for record in pareto_front(allowed or records, self._objectives)]

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
            latest = sorted(number for number, result in self.by_number.items() if result.is_trained)[-LATEST:]
            front = [result.number if result.is_trained else result.start for result in self.front]
            self._trained = [self.by_number[n] for n in sorted({*latest, *front} & self.by_number.keys() - {0})]
        return self._trained
