"""What a point loses of the metric, with how sure one may be: a Gaussian process over what the table says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from autocompress.data import Array
from autocompress.landscape import Landscape
from autocompress.plan import ORIGINAL

SCALE = 2.0
"""Points of loss up to which the model is linear; beyond, differences count by their ratio."""

SEGMENTS = 4
"""Parts of a network, from input to output, whose changes are taken together where they interact."""

MOST_ROWS = 240
"""Observations that the process is fitted to: cost grows with their cube."""

NOISES = (0.04, 0.1, 0.2)
"""Standard deviations of an observed loss, on the compressed scale, of which the likeliest is taken: what a few hundred
to some ten thousand validation samples give."""

RECOVERY, LASTING = 1.2, 0.08
"""What training leaves of a loss, before any trial has shown it: a share that falls to this power, one that stays."""

STEPS_OF_UNIT = 140
"""Steps of training that are one unit of it, so that small data sets need more epochs."""

REFITTED = 8
"""Trials after which the shape of the process is looked at anew."""

LENGTHS = (1.0, 2.0, 4.0)
AMPLITUDES = (0.15, 0.3, 0.6, 1.2)


Shape = tuple[float, float, float]
"""Length, amplitude and noise of a process."""

DEFAULT: Shape = (2.0, 0.3, 0.1)


def compressed(loss: Array) -> Array:
    """Losses in points on the scale of the model."""
    squeezed: Array = np.arcsinh(loss / SCALE)
    return squeezed


def restored(squeezed: Array) -> Array:
    """Losses in points from the scale of the model."""
    loss: Array = SCALE * np.sinh(np.clip(squeezed, -8, 8))
    return loss


@dataclass(frozen=True)
class Features:
    """What the model looks at, a row a point.

    Args:
        trend: What the loss is linear in.
        region: What points are near one another in.
        changes: Which changes they hold, weighted by how much each hurts (points, changes of all architectures).
        architecture: Number of the architecture.
    """

    trend: Array
    region: Array
    changes: Array
    architecture: Array

    def __getitem__(self, rows: Array) -> Features:
        return Features(self.trend[rows], self.region[rows], self.changes[rows], self.architecture[rows])


class AccuracyModel:
    """Predicts the loss of points; refitted on every result.

    The mean follows the table: the divergences of all changes add up, and training brings a share back. Around it a
    Gaussian process learns what the table can't know: which changes hurt more or less than it says, how well training
    repairs what each method does, and how methods and neighboring layers interact.

    Args:
        landscapes: By architecture; the original among them.
        damages: Divergence of each change, by architecture.
        epoch_steps: Steps of an epoch.

    References:
        Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, section 2.2.
    """

    def __init__(
        self, landscapes: Mapping[str, Landscape], damages: Mapping[str, Array], epoch_steps: int = STEPS_OF_UNIT
    ) -> None:
        self._landscapes = landscapes
        self._damages = damages
        self._epoch_steps = epoch_steps
        self._numbers = {name: number for number, name in enumerate(landscapes)}
        self._methods = sorted({method for landscape in landscapes.values() for method in landscape.methods})
        counts = [len(landscape.changes) for landscape in landscapes.values()]
        self._starts = dict(zip(landscapes, np.concatenate(([0], np.cumsum(counts)))[:-1].astype(int), strict=True))
        self._changes = sum(counts)
        self._owners = {name: _owners(landscape, self._methods) for name, landscape in landscapes.items()}
        self._macs = max(1, sum(landscapes[ORIGINAL].macs))
        self._rows: dict[int, tuple[Features, float]] = {}
        self._shapes: dict[int, Shape] = {}
        self._fitted: _Process | None = None

    def learn(self, number: int, architecture: str, point: Array, *, epochs: float, loss: float) -> None:
        """Take in a result.

        Args:
            number: Of the trial; the order of observations does not depend on when they came.
            architecture: Its architecture.
            point: Options (sites,).
            epochs: Of training that the model had, with those of the relatives it started from.
            loss: Points that were lost of the metric.
        """
        self._rows[number] = self._features(architecture, point[None], np.array([epochs])), loss
        self._fitted = None

    def predict(self, architecture: str, points: Array, epochs: Array) -> tuple[Array, Array]:
        """Expected losses of points (points, sites) on the compressed scale, and their standard deviations."""
        if self._fitted is None:
            self._fitted = self._fit()
        return self._fitted.predict(self._features(architecture, points, epochs))

    def _fit(self) -> _Process:
        if not self._rows:
            empty = next(iter(self._landscapes))
            none = self._features(empty, np.zeros((0, len(self._landscapes[empty].sites)), int), np.zeros(0))
            return _Process(none, np.zeros(0), DEFAULT)
        shape = self._shape()
        rows, values = self._telling(sorted(self._rows))
        return _Process(rows, values, shape)

    def _shape(self) -> Shape:
        """The likeliest length, amplitude and noise, looked at anew once in a while."""
        before = max(self._rows) // REFITTED * REFITTED
        numbers = sorted(number for number in self._rows if number < before)
        if before not in self._shapes:
            shape = DEFAULT
            if len(numbers) > 1:
                rows, values = self._telling(numbers)
                found = (_Process(rows, values, one) for one in product(LENGTHS, AMPLITUDES, NOISES))
                shape = max(found, key=lambda process: process.evidence).shape
            self._shapes = {before: shape}
        return self._shapes[before]

    def _telling(self, numbers: Sequence[int]) -> tuple[Features, Array]:
        """What to fit to of some results; results that are not fitted to now never will be again."""
        values = compressed(np.array([self._rows[number][1] for number in numbers]))
        kept = _most_telling(values)
        for dropped in set(range(len(numbers))) - set(kept.tolist()):
            del self._rows[numbers[dropped]]
        found = [self._rows[numbers[row]][0] for row in kept.tolist()]
        return Features(*(np.concatenate([getattr(row, name) for row in found]) for name in _FIELDS)), values[kept]

    def _features(self, architecture: str, points: Array, epochs: Array) -> Features:
        landscape, damage = self._landscapes[architecture], self._damages[architecture]
        hot = landscape.one_hot(points)
        method, segment = self._owners[architecture]
        hurt = hot * damage
        by_method, by_segment, total = hurt @ method, hurt @ segment, hurt.sum(axis=1)
        macs = sum(landscape.macs) / self._macs
        student = 0.0 if architecture == ORIGINAL else 1.0
        units = epochs * self._epoch_steps / STEPS_OF_UNIT
        trained, kept = np.log2(1 + units), LASTING + (1 - LASTING) * (1 + units) ** -RECOVERY
        expected = compressed((30 * total**0.8 + student * 60) * kept)
        ones = np.ones(len(points))
        trend = np.column_stack(
            [
                0.5 * ones,
                expected,
                0.1 * _squeezed(by_method),
                0.05 * trained[:, None] * _squeezed(by_method),
                0.1 * trained,
                0.2 * trained * expected / 3,
                student * ones,
                student * -np.log2(max(macs, 1e-3)) * 0.5 * ones,
            ]
        )
        region = np.column_stack([_squeezed(by_method), 0.5 * _squeezed(by_segment), 0.5 * trained])
        changes = np.zeros((len(points), self._changes))
        start = self._starts[architecture]
        changes[:, start : start + hot.shape[1]] = hot * (0.05 + 0.25 * _squeezed(damage))
        return Features(trend, region, changes, np.full(len(points), self._numbers[architecture]))


_FIELDS = ("trend", "region", "changes", "architecture")


class _Process:
    """A Gaussian process fitted to some rows."""

    def __init__(self, rows: Features, values: Array, shape: Shape) -> None:
        self._rows, self.shape = rows, shape
        self._length, self._amplitude, noise = shape
        kernel = self._kernel(rows, rows) + noise**2 * np.eye(len(values))
        lower = np.linalg.cholesky(kernel) if len(values) else kernel
        self._whitener = np.linalg.inv(lower) if len(values) else lower
        whitened = self._whitener @ (values - _mean(rows))
        self._weights = self._whitener.T @ whitened
        self.evidence = -0.5 * float(whitened @ whitened) - float(np.log(np.diag(lower)).sum())

    def predict(self, rows: Features) -> tuple[Array, Array]:
        """Means and standard deviations."""
        across = self._kernel(rows, self._rows)
        mean = _mean(rows) + across @ self._weights
        own = (rows.trend**2 * TREND).sum(axis=1) - rows.trend[:, 1] ** 2 * TREND * (1 - SLOPE)
        own = own + self._amplitude**2 * (1 + (rows.changes**2).sum(axis=1)) + ARCHITECTURE
        explained = ((across @ self._whitener.T) ** 2).sum(axis=1)
        return mean, np.sqrt(np.maximum(own - explained, 1e-6))

    def _kernel(self, left: Features, right: Features) -> Array:
        distance = (
            (left.region**2).sum(axis=1)[:, None]
            + (right.region**2).sum(axis=1)[None]
            - 2 * left.region @ right.region.T
        )
        near = np.exp(-0.5 * np.maximum(distance, 0) / self._length**2)
        same = left.architecture[:, None] == right.architecture[None]
        weights = np.full(left.trend.shape[1], TREND)
        weights[1] *= SLOPE
        kernel: Array = (
            (left.trend * weights) @ right.trend.T
            + self._amplitude**2 * (near + left.changes @ right.changes.T)
            + ARCHITECTURE * same
        )
        return kernel


TREND, SLOPE, ARCHITECTURE = 0.12, 0.2, 0.04
"""Variances: of the coefficients of the trend, how much less that of the table's own, of the level of a network."""


def _mean(rows: Features) -> Array:
    """The loss as the table says, on the compressed scale."""
    return rows.trend[:, 1]


def _squeezed(damage: Array) -> Array:
    """Divergences on a logarithmic scale that begins at 0."""
    found: Array = np.log1p(damage / 0.02)
    return found


def _owners(landscape: Landscape, methods: list[str]) -> tuple[Array, Array]:
    """Which method and which part of the network each change belongs to (changes, methods) and (changes, parts)."""
    method = np.zeros((len(landscape.changes), len(methods)))
    segment = np.zeros((len(landscape.changes), SEGMENTS))
    count = max(1, len(landscape.layers))
    for change, (site, option) in enumerate(landscape.changes):
        method[change, methods.index(landscape.sites[site].method)] = 1.0
        layers = landscape.effects[site][option].layers
        middle = sum(layers) / len(layers) if layers else 0.0
        segment[change, min(SEGMENTS - 1, int(SEGMENTS * middle / count))] = 1.0
    return method, segment


def _most_telling(values: Array) -> Array:
    """The rows to fit to: those that lost least, and the latest."""
    if len(values) <= MOST_ROWS:
        return np.arange(len(values))
    latest = np.arange(len(values) - MOST_ROWS // 3, len(values))
    best = np.argsort(values, kind="stable")[: MOST_ROWS - len(latest)]
    return np.unique(np.concatenate([best, latest]))
