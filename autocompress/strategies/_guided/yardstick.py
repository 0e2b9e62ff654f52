"""What results and predictions are worth: losses, shares of the baseline, and axes of the hypervolume."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from autocompress.data import Array
from autocompress.objective import is_measured
from autocompress.strategies._base import Problem

WORTH_SCALE, WORTH_POWER = 2.0, 1.5
"""Points of loss at which a model is worth a third of one that loses nothing, and how the worth falls around them:
slowly at first, where scores can't be told apart, and to next to nothing at seven points."""

LEAST_TOLERANCE = 0.1
"""Points of loss that the axis of the metric spans at least, where constraints allow none."""

LEAST_GAIN = 2e-3
"""Gain of hypervolume below which a model is not told from its neighbors."""

Cost = tuple[Array, Array]
"""Expected values and standard deviations."""


class Yardstick:
    """Measures everything against the baseline.

    Args:
        problem: Objectives, constraints and the metric.
        baseline: Values of the baseline.
    """

    def __init__(self, problem: Problem, baseline: Mapping[str, float]) -> None:
        self._problem, self._baseline = problem, baseline

    def loss(self, value: float) -> float:
        """Points of the metric lost against the baseline, percent of it for metrics that are no shares."""
        metric = self._problem.the_metric
        return metric.lost(value, self._baseline[metric.name], is_share=self._problem.is_percentage)

    def value(self, loss: float) -> float:
        """The metric of a model that loses so many points of it."""
        metric = self._problem.the_metric
        return metric.at_loss(loss, self._baseline[metric.name], is_share=self._problem.is_percentage)

    def shares(self, values: Mapping[str, float]) -> dict[str, float]:
        """Costs as shares of the baseline's."""
        names = [name for name in self._problem.costs if name in values]
        return {name: values[name] / max(self._baseline[name], 1e-12) for name in names}

    def axes(self, loss: Array, shares: Mapping[str, Array]) -> Array:
        """Costs by objective, in [0, 1] for what is worth anything (points, objectives).

        The axis of the metric ends at the bound on it, if there is one; else it is bent, so that models far from the
        baseline count for little.
        """
        columns = [
            np.maximum(shares[objective.name], 0.0)
            if is_measured(objective.name)
            else self._worth_lost(np.maximum(loss, 0.0))
            for objective in self._problem.objectives
        ]
        return np.column_stack(columns)

    def _worth_lost(self, loss: Array) -> Array:
        if self._most_loss is not None:
            within: Array = loss / max(self._most_loss, LEAST_TOLERANCE)
            return within
        lost: Array = 1 - np.exp(-((loss / WORTH_SCALE) ** WORTH_POWER))
        return lost

    @cached_property
    def _most_loss(self) -> float | None:
        """Points that the constraints let a model lose; None if they do not say."""
        metric = self._problem.the_metric
        worse = ">=" if metric.direction == "maximize" else "<="
        bounds = [
            c.bound(self._baseline) for c in self._problem.constraints if (c.name, c.operator) == (metric.name, worse)
        ]
        return max(0.0, min(self.loss(bound) for bound in bounds)) if bounds else None

    @property
    def is_weighted(self) -> bool:
        """True if one model is wanted, by the weights of the objectives."""
        return all(objective.weight for objective in self._problem.objectives)

    @property
    def least_gain(self) -> float:
        """Gain below which a model is not told from its neighbors; nothing is too little where one model is wanted."""
        return 0.0 if self.is_weighted else LEAST_GAIN

    def weighted(self, loss: Array, shares: Mapping[str, Array]) -> Array:
        """What points change against the baseline by the weights of the objectives; less is better (points,)."""
        total = np.zeros(len(loss))
        for objective in self._problem.objectives:
            change = 100 * (shares[objective.name] - 1) if is_measured(objective.name) else loss
            total += objective.weight * change
        return total / (100 * sum(objective.weight for objective in self._problem.objectives))

    def obeys(self, values: Mapping[str, float]) -> bool:
        """True if a finished model obeys the constraints."""
        return all(constraint.violation(values, self._baseline) <= 0 for constraint in self._problem.constraints)

    def allowed(self, loss: Array, costs: Mapping[str, Cost]) -> Array:
        """How likely points obey the constraints, at some loss (points,)."""
        likely = np.ones(len(loss))
        for constraint in self._problem.constraints:
            bound = constraint.bound(self._baseline)
            if is_measured(constraint.name):
                mean, deviation = costs[constraint.name]
                distance = (bound / max(self._baseline[constraint.name], 1e-12) - mean) / np.maximum(deviation, 1e-9)
                below = 1 / (1 + np.exp(-1.7 * np.clip(distance, -20, 20)))  # close to the normal distribution
                likely *= below if constraint.operator == "<=" else 1 - below
            elif constraint.name == self._problem.the_metric.name:
                keeps_up = (constraint.operator == ">=") == (self._problem.the_metric.direction == "maximize")
                likely *= loss <= self.loss(bound) if keeps_up else loss >= self.loss(bound)
        return likely
