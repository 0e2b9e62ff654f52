"""Finished trials as a guided search sees them, and the front of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autocompress.data import Array
from autocompress.front import feasible, pareto_front, undominated
from autocompress.objective import Constraint, Objective
from autocompress.plan import Plan
from autocompress.record import Record

LATEST = 12
"""Finished models beside the front whose trained weights are kept."""

MOST_STARTS = 5
"""Plans that a plan starts from, one after another: whoever replays it has to train them all."""


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
        rung: How often its training was prolonged.
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
    rung: int
    loss: float
    shares: Mapping[str, float]
    record: Record

    @property
    def is_trained(self) -> bool:
        """True if it was trained itself, and not only what it began with."""
        return self.record.plan.recovery.epochs > 0


@dataclass
class Results:
    """All finished trials, in whatever order they ended.

    Args:
        objectives, constraints: What the front is by.
    """

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    by_number: dict[int, Result] = field(default_factory=dict)
    _allowed: tuple[Record, ...] = ()
    _all: tuple[Record, ...] = ()
    _front: list[Result] | None = None

    def add(self, result: Result) -> None:
        """Take in a result; that of the baseline first."""
        self.by_number[result.number] = result
        self._all = undominated([*self._all, result.record], self.objectives)
        if feasible([result.record], self.constraints, self.by_number[0].record.values):
            self._allowed = undominated([*self._allowed, result.record], self.objectives)
        self._front = None

    @property
    def front(self) -> list[Result]:
        """The front of all; of those that obey the constraints if there are any."""
        if self._front is None:
            best = pareto_front(self._allowed or self._all, self.objectives)
            self._front = [self.by_number[record.number] for record in best]
        return self._front

    def front_of(self, some: Sequence[Result]) -> list[Result]:
        """The front of some results, in the same way."""
        records = [result.record for result in some]
        allowed = feasible(records, self.constraints, self.by_number[0].record.values)
        return [self.by_number[record.number] for record in pareto_front(allowed or records, self.objectives)]

    def before(self, number: int, unknown: Collection[int]) -> Results:
        """What was known when a trial was proposed while some others were at work."""
        found = Results(self.objectives, self.constraints)
        for key, result in sorted(self.by_number.items()):
            if key < number and key not in unknown:
                found.add(result)
        return found

    def trained(self) -> list[Result]:
        """Models whose weights others may start from: of the front, those that the front began with, and the latest."""
        latest = sorted(number for number, result in self.by_number.items() if result.is_trained)[-LATEST:]
        front = [result.number if result.is_trained else result.start for result in self.front]
        known = sorted({*latest, *front} & self.by_number.keys() - {0})
        return [self.by_number[number] for number in known if _starts(self.by_number[number]) < MOST_STARTS]


def _starts(result: Result) -> int:
    """How many plans the plan of a result starts from, one after another."""
    return sum(1 for _ in _ancestors(result.record.plan))


def _ancestors(plan: Plan) -> Iterator[Plan]:
    while plan.start is not None:
        plan = plan.start
        yield plan
