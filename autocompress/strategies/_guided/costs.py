"""What a point costs: latency, size and peak memory relative to the baseline, from the work of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.data import Array
from autocompress.landscape import Landscape, Work
from autocompress.objective import LATENCY, MEMORY, SIZE, quantity
from autocompress.plan import ORIGINAL
from autocompress.strategies._guided.regression import Fit, fit

FLOAT_BYTES = 4
NOISE = {LATENCY: 0.02, SIZE: 0.005, MEMORY: 0.05}
"""Relative error of one measurement, and of what the features can say."""

HURRIED_NOISE = 0.05
"""The same of a latency that was measured in a hurry."""

UNTOLD = 0.1
"""Standard deviation of what a change may do to a cost whose method does not say what it leaves."""

MOST_ROWS = 600
"""Observations that are kept, the latest ones beside the table."""

SPEED = {"fp32": 0.8}
OTHER_SPEED = 0.4
"""Time of all multiply-adds in a precision as a share of the baseline's latency, before anything is measured."""


@dataclass(frozen=True)
class _Row:
    features: Mapping[str, Array]
    values: Mapping[str, float]
    noise: Mapping[str, float]


class CostModel:
    """Predicts costs; learns from every file that was measured.

    Latency is linear in the multiply-adds by kind of layer and precision, the layers that are left, the changes of
    precision between them, and, for each layer of the original, what it deviates from that. Size is what the weights
    take as encodings store them, and something for each layer. What a change does whose method does not say what it
    leaves is learned for each by itself. All coefficients begin with a belief.

    Args:
        landscapes: By architecture; the original among them.
        names: What is predicted, each as a share of the baseline's; latencies of several machines have the same
            features and coefficients of their own.
    """

    def __init__(self, landscapes: Mapping[str, Landscape], names: Sequence[str]) -> None:
        self._landscapes, self._names = landscapes, tuple(names)
        original = landscapes[ORIGINAL]
        self._layers = len(original.layers)
        self._untold = [
            change
            for change, (site, option) in enumerate(original.changes)
            if not original.effects[site][option].layers
        ]
        self._macs = float(max(1, sum(original.macs)))
        self._bytes = float(max(1, FLOAT_BYTES * sum(original.weights)))
        pairs = {
            (kind, precision)
            for landscape in landscapes.values()
            for kind in landscape.kinds
            for precision in landscape.precisions
        }
        self._pairs = sorted(pairs)
        self._priors = {
            LATENCY: self._latency_prior(),
            SIZE: SIZE_PRIOR,
            MEMORY: MEMORY_PRIOR,
        }
        self._rows: dict[int, _Row] = {}
        self._fits: dict[str, Fit] = {}

    def learn(
        self, number: int, architecture: str, point: Array, values: Mapping[str, float], *, hurried: bool = False
    ) -> None:
        """Take in what was measured of a point.

        Args:
            number: Of the trial, or a negative one; the order of observations does not depend on when they came.
            architecture: Its architecture.
            point: Options (sites,).
            values: Costs as shares of the baseline's; those missing are not learned from.
            hurried: True for a latency that was measured just well enough to see whether a model is worth training.
        """
        features = self._features(architecture, point[None])
        noise = NOISE | ({LATENCY: HURRIED_NOISE} if hurried else {})
        self._rows[number] = _Row({name: rows[0] for name, rows in features.items()}, values, noise)
        trials = [key for key in self._rows if key > 0]
        if len(trials) > MOST_ROWS:
            del self._rows[min(trials)]
        self._fits = {}

    def predict(self, architecture: str, points: Array) -> dict[str, tuple[Array, Array]]:
        """Expected costs of points (points, sites) and their standard deviations, by name."""
        features = self._features(architecture, points)
        found = {}
        for name in self._names:
            what = quantity(name)
            mean, deviation = self._fit(name).predict(features[what])
            found[name] = np.maximum(mean, 0.001), np.hypot(deviation, NOISE[what] * np.abs(mean))
        return found

    def _fit(self, name: str) -> Fit:
        if name not in self._fits:
            rows = [row for _, row in sorted(self._rows.items()) if name in row.values]
            what = quantity(name)
            known, doubt = self._priors[what]
            mean = np.concatenate([known, np.zeros(len(self._untold))])
            deviation = np.concatenate([doubt, np.full(len(self._untold), UNTOLD)])
            features = np.array([row.features[what] for row in rows]).reshape(len(rows), len(mean))
            values = np.array([row.values[name] for row in rows])
            noise = np.array([row.noise[what] for row in rows])
            self._fits[name] = fit(features, values, noise * np.abs(values) + 1e-4, mean, deviation)
        return self._fits[name]

    # -- features ------------------------------------------------------------------------------------------------

    def _features(self, architecture: str, points: Array) -> dict[str, Array]:
        landscape = self._landscapes[architecture]
        work = landscape.work(points)
        found = {
            LATENCY: self._latency_features(landscape, work),
            SIZE: self._size_features(landscape, work),
            MEMORY: self._memory_features(work),
        }
        untold = np.zeros((len(points), len(self._untold)))
        if architecture == ORIGINAL:
            untold = landscape.one_hot(points)[:, self._untold]
        return {name: np.hstack([columns, untold]) for name, columns in found.items()}

    def _latency_features(self, landscape: Landscape, work: Work) -> Array:
        columns = [np.ones(len(work.macs))]
        there, share = work.is_there, work.macs / self._macs
        names = np.array(landscape.precisions)[work.precision]
        kinds = np.array(landscape.kinds)
        for kind, precision in self._pairs:
            chosen = there & (names == precision) & (kinds == kind)
            columns += [(share * chosen).sum(axis=1), chosen.sum(axis=1) / self._layers]
        columns += [_switches(work.precision, there) / self._layers]
        columns += [((work.parts - 1) * there).sum(axis=1) / self._layers]
        own = share if landscape.architecture == ORIGINAL else np.zeros((len(share), self._layers))
        is_float = work.precision == 0 if landscape.architecture == ORIGINAL else np.zeros(own.shape, bool)
        return np.column_stack([*columns, own * is_float, own * ~is_float])

    def _latency_prior(self) -> tuple[Array, Array]:
        mean, deviation = [0.03], [0.05]
        for _, precision in self._pairs:
            mean += [SPEED.get(precision, OTHER_SPEED), 0.1]
            deviation += [0.3, 0.15]
        mean += [0.3, 0.2]
        deviation += [0.3, 0.3]
        layers = 2 * self._layers
        return np.array(mean + [0.0] * layers), np.array(deviation + [0.4] * layers)

    def _size_features(self, landscape: Landscape, work: Work) -> Array:
        there = work.is_there
        whole = work.precision > 0
        columns = [
            np.ones(len(work.macs)),
            work.stored_bytes.sum(axis=1) / self._bytes,
            there.sum(axis=1) / self._layers,
            (whole & there).sum(axis=1) / self._layers,
            ((work.parts - 1) * there).sum(axis=1) / self._layers,
            (((work.stored_bytes < work.weights) & there).sum(axis=1)) / self._layers,
        ]
        return np.column_stack(columns)

    def _memory_features(self, work: Work) -> Array:
        unpacked = work.weights * np.where(work.precision == 0, FLOAT_BYTES, 1)
        columns = [
            np.ones(len(work.macs)),
            work.stored_bytes.sum(axis=1) / self._bytes,
            unpacked.sum(axis=1) / self._bytes,
            (work.macs / self._macs).sum(axis=1),
        ]
        return np.column_stack(columns)


SIZE_PRIOR = np.array([0.0, 1.0, 0.0, 0.01, 0.0, 0.005]), np.full(6, 0.05)
MEMORY_PRIOR = np.array([0.5, 0.2, 0.2, 0.1]), np.array([0.5, 0.3, 0.3, 0.3])
"""Coefficients of the features of a cost before anything is measured, and their standard deviations."""


def _switches(precision: Array, there: Array) -> Array:
    """How often the precision changes from one layer that is there to the next (points,)."""
    counts = np.zeros(len(precision))
    last = np.full(len(precision), -1)
    for layer in range(precision.shape[1]):
        here = there[:, layer]
        counts += here & (last >= 0) & (last != precision[:, layer])
        last = np.where(here, precision[:, layer], last)
    return counts
