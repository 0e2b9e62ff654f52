"""Screening: dropping a plan before any training, on what was measured of its untrained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from autocompress.front import dominates
from autocompress.objective import LATENCY, Constraint, Objective, is_measured, quantity

HURRIED = 0.04
"""Share by which a latency measured before training may be beyond its bound: it was taken in a hurry."""


@dataclass(frozen=True)
class Screen:
    """What a plan has to beat before it is trained.

    Args:
        objectives: What is better.
        constraints: What is allowed.
        metric: Name of the task's metric, which is not known yet.
        maximize: True if more of it is better.
        baseline: Values of the baseline.
        front: Values of the front now.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    metric: str
    maximize: bool
    baseline: Mapping[str, float]
    front: tuple[Mapping[str, float], ...]

    def verdict(self, measured: Mapping[str, float]) -> str:
        """Why a model with these measured values can't be worth training; empty if it may be.

        It can't if it breaks a constraint that training does not change, or if a model of the front would be better
        even if training brought back the baseline's full score. Once models score better than the baseline, training
        is trusted to gain as much again on the best of them.
        """
        for constraint in self.constraints:
            slack = HURRIED if quantity(constraint.name) == LATENCY else 0.0
            if is_measured(constraint.name) and constraint.violation(measured, self.baseline) > slack:
                bound = constraint.bound(self.baseline)
                return f"{constraint.name} is {measured[constraint.name]:.6g}, beyond the constraint of {bound:.6g}"
        hopeful = {**measured, self.metric: self._hope()}
        for values in self.front:
            if dominates(values, hopeful, self.objectives):
                return "dominated by a model of the front even at the baseline's score"
        return ""

    def _hope(self) -> float:
        """The best score that training is trusted to reach."""
        level = self.baseline[self.metric]
        sign = 1.0 if self.maximize else -1.0
        gain = max((sign * (values[self.metric] - level) for values in self.front), default=0.0)
        return level + sign * 2 * max(0.0, gain)
