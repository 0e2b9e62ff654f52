"""What a search strategy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from autocompress.objective import Constraint, Objective
from autocompress.plan import Plan, Scalar
from autocompress.record import Record, Trial
from autocompress.registry import Registry
from autocompress.space import Suggest


@dataclass(frozen=True)
class Problem:
    """What a strategy searches.

    Args:
        plan: Asks every knob and gives the plan.
        policies: Answers and plans of the uniform policies, to be tried first.
        objectives, constraints: What is better, what is allowed.
        seed: For everything random; the same seed and the same results give the same plans.
        journal: File for Optuna's own view of the search.
    """

    plan: Callable[[Suggest], Plan]
    policies: Sequence[tuple[Mapping[str, Scalar], Plan]]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    seed: int
    journal: Path


class SearchStrategy(ABC):
    """Proposes trials and learns from their records.

    A strategy never proposes a plan twice. Trial numbers count from 1; 0 is the baseline, which the search runs by
    itself and tells first.
    """

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, problem: Problem) -> None: ...

    @abstractmethod
    def ask(self) -> Trial | None:
        """The next trial, or None when nothing new can be found."""

    @abstractmethod
    def tell(self, record: Record) -> None:
        """Learn from a finished trial, asked here or in an earlier process."""


STRATEGIES: Registry[type[SearchStrategy]] = Registry("search strategy", "autocompress.strategies")
