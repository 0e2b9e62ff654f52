"""What the guided strategy believes: costs, losses and seconds of points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from autocompress.data import Array
from autocompress.landscape import Landscape
from autocompress.objective import is_measured
from autocompress.plan import ORIGINAL
from autocompress.record import TAKEN_UP
from autocompress.strategies._guided.accuracy import AccuracyModel
from autocompress.strategies._guided.costs import CostModel
from autocompress.strategies._guided.relatives import is_held
from autocompress.strategies._guided.results import Result

FIXED_S = 5.0
"""Seconds of a trial beside its training, before one has ended."""

SHORTEST_S = 0.01
"""Seconds that a trial takes at least, so that none is free."""

UNSHRINKING = 0.25
"""Share of the time of an epoch that does not shrink with the model: of four passes one is the teacher's.

With half of the MACs an epoch takes 0.5 to 0.6 of the original's on the digits example and 0.5 to 0.65 on ResNet-20,
with a third of them 0.4 to 0.6 and 0.5 to 0.6.
"""

HELD_PACE = 1.5
"""How much longer an epoch takes with values held, before any trial has shown it."""

OPTIMISM = 1.0
"""Standard deviations by which a point may be better than expected, for a point to be worth a look."""

LATEST = 32
"""Trials that times are learned from."""


class Models:
    """Beliefs about costs, losses and seconds, refitted on every result.

    Args:
        landscapes: By architecture; the original among them.
        damages: Divergence of each change, by architecture.
        costs: Names of what is predicted beside the loss.
        epoch_s: Seconds of one epoch of the original, measured before the search.
        epoch_steps: Steps of an epoch.
    """

    def __init__(
        self,
        landscapes: Mapping[str, Landscape],
        damages: Mapping[str, Array],
        *,
        costs: Sequence[str],
        epoch_s: float,
        epoch_steps: int,
    ) -> None:
        self._landscapes, self._epoch_s = landscapes, epoch_s
        self.costs = CostModel(landscapes, costs)
        self.accuracy = AccuracyModel(landscapes, damages, epoch_steps)
        self._fixed = _Latest()
        self._pace = {False: _Latest(), True: _Latest()}

    def learn(self, result: Result) -> None:
        """Take in a result."""
        self.costs.learn(result.number, result.architecture, result.point, result.shares)
        self.accuracy.learn(result.number, result.architecture, result.point, epochs=result.epochs, loss=result.loss)
        if not result.number or TAKEN_UP in result.record.details:
            return
        self._fixed.add(result.number, result.record.fixed_s)
        own = result.record.plan.recovery.epochs
        if own:
            expected_s = own * float(self._relative_epoch(result.architecture, result.point[None])[0])
            held = bool(is_held(self._landscapes[result.architecture], result.point[None])[0])
            self._pace[held].add(result.number, result.record.training_s / max(expected_s * self._epoch_s, 1e-9))

    @property
    def fixed_s(self) -> float:
        """Seconds of a trial beside its training."""
        return max(SHORTEST_S, self._fixed.median_or(FIXED_S))

    def epoch_s(self, architecture: str, points: Array) -> Array:
        """Seconds of an epoch of points (points,)."""
        free = self._pace[False].median_with(1.0)
        held = self._pace[True].median_with(HELD_PACE * free)
        pace = np.where(is_held(self._landscapes[architecture], points), held, free)
        seconds: Array = pace * self._epoch_s * self._relative_epoch(architecture, points)
        return seconds

    def _relative_epoch(self, architecture: str, points: Array) -> Array:
        macs = self._landscapes[architecture].work(points).macs.sum(axis=1)
        share: Array = UNSHRINKING + (1 - UNSHRINKING) * macs / max(1, sum(self._landscapes[ORIGINAL].macs))
        return share

    def price(
        self, architecture: str, objectives: tuple[str, ...], epochs_of: Callable[[Array], Array]
    ) -> Callable[[Array], Array]:
        """What loss may be hoped for after the epochs that points are given, and logarithms of the costs."""
        names = [name for name in objectives if is_measured(name)]

        def terms(points: Array) -> Array:
            loss, deviation = self.accuracy.predict(architecture, points, epochs_of(points))
            costs = self.costs.predict(architecture, points)
            return np.column_stack([loss - OPTIMISM * deviation, *(np.log(costs[name][0]) for name in names)])

        return terms


class _Latest:
    """What was seen in the latest trials, in whatever order they ended."""

    def __init__(self) -> None:
        self._values: dict[int, float] = {}

    def add(self, number: int, value: float) -> None:
        """Take in what was seen in a trial."""
        self._values[number] = value
        if len(self._values) > LATEST:
            del self._values[min(self._values)]

    def median_or(self, default: float) -> float:
        """The median; the default if nothing was seen."""
        return float(np.median(list(self._values.values()))) if self._values else default

    def median_with(self, believed: float) -> float:
        """The median of what was seen and of what was believed before, which is as good as one trial."""
        return float(np.median([believed, *self._values.values()]))
