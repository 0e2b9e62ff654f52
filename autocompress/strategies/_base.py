"""What a search strategy is."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from autocompress.landscape import Landscape
from autocompress.objective import MEASURED, Constraint, Objective, is_measured, quantity
from autocompress.plan import Plan, Scalar
from autocompress.probe import Probe, Sensitivity
from autocompress.record import Record, Trial
from autocompress.registry import Registry
from autocompress.space import Suggest

Fits = Callable[[Trial], bool]
"""Whether a trial that began now would end in time."""


def always(_: Trial) -> bool:
    """There is time for every trial."""
    return True


@dataclass(frozen=True)
class Problem:
    """What a strategy searches.

    Args:
        plan: Asks every knob and gives the plan.
        policies: Answers and plans of the uniform policies, to be tried early, cheapest first.
        objectives, constraints: What is better, what is allowed.
        seed: For everything random; the same seed and the same results give the same plans.
        journal: File for Optuna's own view of the search.
        metric: The task's metric, whether it is an objective or not; by default the first objective.
        is_percentage: True if it is a share in [0, 1].
        landscapes: Every architecture as points and what they leave of its layers; the original among them.
        epoch_s: Seconds of one epoch of recovery of the original.
        epoch_steps: Steps of such an epoch.
        budget_s: Seconds for the whole search, or None.
        trials: Limit on trials, or None.
        workers: Trials at the same time.
    """

    plan: Callable[[Suggest], Plan]
    policies: Sequence[tuple[Mapping[str, Scalar], Plan]]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    seed: int
    journal: Path
    metric: Objective | None = None
    is_percentage: bool = True
    landscapes: Mapping[str, Landscape] = field(default_factory=dict)
    epoch_s: float = 1.0
    epoch_steps: int = 140
    budget_s: float | None = None
    trials: int | None = None
    workers: int = 1

    @property
    def costs(self) -> tuple[str, ...]:
        """Names of all that is measured and of use: each quantity, on the machines for which it is asked."""
        asked = [*(one.name for one in self.objectives), *(one.name for one in self.constraints)]
        told = {quantity(name) for name in asked}
        unasked = (one.name for one in MEASURED if one.name not in told)
        return tuple(dict.fromkeys((*filter(is_measured, asked), *unasked)))

    @property
    def the_metric(self) -> Objective:
        """The task's metric."""
        return self.metric or self.objectives[0]


class SearchStrategy(ABC):
    """Proposes trials and learns from their records.

    A strategy never proposes a plan twice. Trial numbers count from 1; 0 is the baseline, which the search runs by
    itself and tells first.
    """

    name: ClassVar[str]
    has_rungs: ClassVar[bool] = False
    """True if training begins short and is prolonged for the best: a plan then holds the most epochs there are."""

    @abstractmethod
    def __init__(self, problem: Problem) -> None: ...

    @abstractmethod
    def ask(self, fits: Fits = always) -> Trial | Probe | None:
        """The next trial, a change to look at before, or None when nothing new can be found that ends in time.

        Args:
            fits: Whether a trial that began now would end in time. Only such a one is proposed; those that were
                refused are not lost, and may be proposed once there is more time.
        """

    @abstractmethod
    def tell(self, record: Record) -> None:
        """Learn from a finished trial, asked here or in an earlier process."""

    def drop(self, number: int) -> None:  # noqa: B027
        """Forget a trial that was asked here and cancelled: no record of it will come."""

    def parents(self) -> frozenset[str]:
        """Digests of finished plans whose weights later trials may start from; the weights of others are deleted."""
        return frozenset()

    def believed(self) -> Mapping[int, float]:
        """The metric of finished trials as the strategy believes in it, by number: scores are noisy, the best lucky."""
        return {}

    def note(self, entry: Sensitivity) -> None:  # noqa: B027
        """Learn from a change that was looked at, for strategies that ask for some."""


def derived_seed(*what: object) -> int:
    """A seed for one purpose, independent of all others.

    Args:
        what: The search's seed, and what tells the purpose from others.
    """
    text = "/".join(map(str, what)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") & 0x7FFFFFFF


STRATEGIES: Registry[type[SearchStrategy]] = Registry("search strategy", "autocompress.strategies")
