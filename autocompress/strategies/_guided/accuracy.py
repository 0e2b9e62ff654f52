"""What a point loses of the metric, with how sure one may be: what the table says of it, and a Gaussian process."""

from __future__ import annotations

from bisect import insort
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

MOST_ROWS = 200
"""Observations that the process is fitted to: cost grows with their cube."""

NOISES = (0.04, 0.1, 0.2)
"""Standard deviations of an observed loss, on the compressed scale, of which the likeliest is taken: what a few hundred
to some ten thousand validation samples give."""

STEPS_OF_UNIT = 140
"""Steps of training that are one unit of it, so that small data sets need more epochs."""

REFITTED = 8
"""Trials after which the shape of the process is looked at anew."""

LENGTHS = (1.0, 2.0, 4.0)
AMPLITUDES = (0.1, 0.2, 0.4, 0.8)
"""What is tried for how far points are alike, and for how much the logarithm of a loss may deviate from the mean."""

Shape = tuple[float, float, float]
"""Length, amplitude and noise of a process."""

DEFAULT: Shape = (2.0, 0.2, 0.1)

CHANGE = 0.7
"""Standard deviation of the logarithm of what a single change does, against what the table says."""

LEAST_STEEPNESS = 0.05
"""What is left of the doubt about models that lose nothing."""

STUDENT_VARIANCE = 0.04
"""Variance of the level of a student."""


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
        hurt: Divergence by group of changes: each method's that training repairs, each method's that it does not.
        taken: Share of the model that each method takes of it, by changes that training repairs.
        units: Training, in `STEPS_OF_UNIT` steps.
        student: Multiply-adds as a share of the original's for students, 0 for the original.
        region: Coordinates in which points that are near one another lose alike: what each method and each part of the
            network has of all that hurts, and the training.
        changes: Share of each change in all that hurts (points, changes of all architectures).
        architecture: Number of the architecture.
    """

    hurt: Array
    taken: Array
    units: Array
    student: Array
    region: Array
    changes: Array
    architecture: Array


class AccuracyModel:
    """Predicts the loss of points; refitted on every result.

    The mean begins with what the table says: the divergences of all changes add up, those of each method on a scale of
    its own. Training takes them down by a power of its steps, to what the model has become too small for: a power of
    what was taken from it. Scales and powers are learned, beginning with a belief. Around that a Gaussian process
    learns what the table can't know: which changes hurt more or less than it says, and how methods and neighboring
    layers interact.

    Args:
        landscapes: By architecture; the original among them.
        damages: Divergence of each change, by architecture.
        epoch_steps: Steps of an epoch.

    References:
        Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, sections 2.2 and 2.7.
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
        self._taken = {name: _taken(landscape) for name, landscape in landscapes.items()}
        self._macs = max(1, sum(landscapes[ORIGINAL].macs))
        self._rows: dict[int, tuple[Features, float]] = {}
        self._in_order: list[int] = []
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
        if number not in self._rows:
            insort(self._in_order, number)
        self._rows[number] = self._features(architecture, point[None], np.array([epochs])), loss
        self._fitted = None
        self._shapes = {before: shape for before, shape in self._shapes.items() if before <= number}

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
        rows, values = self._telling(self._in_order)
        return _Process(rows, values, shape)

    def _shape(self) -> Shape:
        """The likeliest length, amplitude and noise, looked at anew once in a while."""
        before = self._in_order[-1] // REFITTED * REFITTED
        if before not in self._shapes:
            shape, numbers = DEFAULT, [number for number in self._in_order if number < before]
            if len(numbers) > 1:
                rows, values = self._telling(numbers)
                learned = _Process(rows, values, DEFAULT).learned
                found = (_Process(rows, values, one, learned) for one in product(LENGTHS, AMPLITUDES, NOISES))
                shape = max(found, key=lambda process: process.evidence).shape
            self._shapes = {before: shape}
        return self._shapes[before]

    def _telling(self, numbers: Sequence[int]) -> tuple[Features, Array]:
        """What to fit to of some results."""
        values = compressed(np.array([self._rows[number][1] for number in numbers]))
        kept = _most_telling(values)
        found = [self._rows[numbers[row]][0] for row in kept.tolist()]
        columns = (np.concatenate([getattr(row, name) for row in found]) for name in Features.__dataclass_fields__)
        return Features(*columns), values[kept]

    def _features(self, architecture: str, points: Array, epochs: Array) -> Features:
        landscape, damage = self._landscapes[architecture], self._damages[architecture]
        hot = landscape.one_hot(points)
        group, segment = self._owners[architecture]
        hurt = hot * damage
        by_group, half = hurt @ group, len(self._methods)
        units = epochs * self._epoch_steps / STEPS_OF_UNIT
        region = np.column_stack(
            [
                _squeezed(by_group[:, :half] + by_group[:, half:]),
                0.5 * _squeezed(hurt @ segment),
                0.3 * np.log2(1 + units),
            ]
        )
        share = 0.0 if architecture == ORIGINAL else max(1e-3, sum(landscape.macs) / self._macs)
        changes = np.zeros((len(points), self._changes))
        start = self._starts[architecture]
        changes[:, start : start + hot.shape[1]] = hurt / np.maximum(hurt.sum(axis=1, keepdims=True), 1e-9)
        number = np.full(len(points), self._numbers[architecture])
        taken = (hot * self._taken[architecture]) @ group[:, :half]
        return Features(by_group, taken, units, np.full(len(points), share), region, changes, number)


# -- the mean ----------------------------------------------------------------------------------------------------

LEVEL, CURVE = 30.0, 0.8
"""Points that a divergence of 1 costs, and the power by which they grow with it."""

FIRST_STEPS, POWER = 15.0, 0.7
"""How training takes a loss down: by a power of the units of training, counted from a fraction of one on."""

SMALLNESS, SMALLNESS_CURVE = 5.0, 1.5
"""Points to some power that a model loses for good as all is taken from it, and the power by which they grow."""

WHOLE_BITS = 8
"""Bits of a weight that hold all that a model needs of it."""

STUDENT, STUDENT_POWER, STUDENT_SHARE = 60.0, 0.6, 0.3
"""What a student as large as the original loses untrained, how training takes that down, and how its loss grows as it
gets smaller."""

DOUBT = {"scale": 0.6, "smallness": 0.6, "power": 0.25, "student": 0.5, "student_power": 0.3, "student_share": 0.3}
"""Standard deviations of the logarithms of what is learned of the mean."""

SETTLED = 4
"""Steps of Gauss and Newton after which what is learned does not move any more."""

LARGEST_STEP = 1.0
"""How far one of these steps moves a logarithm at most."""

NUDGE = 1e-4
"""By how much a logarithm is moved to see how the mean changes with it."""


def _doubts(groups: int) -> Array:
    """Standard deviations of what is learned, in its order."""
    shared = [DOUBT[name] for name in ("power", "student", "student_power", "student_share")]
    return np.array([DOUBT["scale"]] * groups + [DOUBT["smallness"]] * (groups // 2) + shared)


def _mean(rows: Features, learned: Array) -> Array:
    """The losses on the compressed scale (…, rows)."""
    changed, fresh = _losses(rows, learned)
    return compressed(changed + fresh)


def _losses(rows: Features, learned: Array) -> tuple[Array, Array]:
    """Points that are lost by changes, and by being a student that has learned from nothing; both (…, rows).

    Args:
        rows: The points.
        learned: Logarithms of factors on scales by group, on what lasts by method, and on what all have in common;
            (…, learned), for one belief or several at once.
    """
    groups = rows.hurt.shape[1]
    methods = groups // 2
    factors = np.exp(np.clip(learned, -5, 5))
    scale, smallness = factors[..., :groups], SMALLNESS * factors[..., groups : groups + methods]
    power, student, student_power, student_share = np.moveaxis(factors[..., groups + methods :, None], -2, 0)
    total = scale @ rows.hurt.T
    repaired = scale[..., :methods] @ rows.hurt[:, :methods].T
    trained = (1 + FIRST_STEPS * rows.units) ** (-POWER * power)
    loss = LEVEL * np.maximum(total, 1e-9) ** (CURVE - 1) * (total - repaired + repaired * trained)
    loss = loss + (1 - trained) * (smallness @ rows.taken.T) ** SMALLNESS_CURVE
    is_student = rows.student > 0
    larger = np.where(is_student, rows.student, 1.0) ** (-STUDENT_SHARE * student_share)
    fresh = STUDENT * student * larger * (1 + rows.units) ** (-STUDENT_POWER * student_power)
    return loss, is_student * fresh


def _slopes(rows: Features, learned: Array, doubts: Array) -> Array:
    """How the mean changes with what is learned, in standard deviations of it (rows, learned)."""
    nudged = _mean(rows, learned + NUDGE * np.vstack([np.zeros(len(learned)), np.eye(len(learned))]))
    slopes: Array = ((nudged[1:] - nudged[0]) / NUDGE * doubts[:, None]).T
    return slopes


class _Process:
    """The mean and a Gaussian process around it, fitted to some rows.

    Args:
        rows, values: What was seen, losses on the compressed scale.
        shape: Of the process.
        learned: What is learned of the mean, if that is known already.
    """

    def __init__(self, rows: Features, values: Array, shape: Shape, learned: Array | None = None) -> None:
        self._rows, self._values, self.shape = rows, values, shape
        self._length, self._amplitude, self._noise = shape
        self._doubts = _doubts(rows.hurt.shape[1])
        self._alike = self._likeness(rows, rows)  # whatever is learned
        self.learned = np.zeros(len(self._doubts)) if learned is None else learned
        if learned is None:
            self._learn()
        self._slopes, kernel, at_first = self._linear()
        lower = np.linalg.cholesky(kernel)
        self._whitener = np.linalg.inv(lower)
        whitened = self._whitener @ at_first
        self._weights = self._whitener.T @ whitened
        self.evidence = -0.5 * float(whitened @ whitened) - float(np.log(np.diag(lower)).sum())

    def _learn(self) -> None:
        """Find the mean, by steps of Gauss and Newton."""
        for _ in range(SETTLED):
            slopes, kernel, at_first = self._linear()
            target = (slopes.T @ np.linalg.solve(kernel, at_first)) * self._doubts
            self.learned = self.learned + np.clip(target - self.learned, -LARGEST_STEP, LARGEST_STEP)

    def _linear(self) -> tuple[Array, Array, Array]:
        """The model made linear in what is to be learned: slopes, covariance of the values, values without the mean."""
        slopes = _slopes(self._rows, self.learned, self._doubts)
        kernel = (
            slopes @ slopes.T
            + self._kernel(self._rows, self._rows, self._alike)
            + self._noise**2 * np.eye(len(self._values))
        )
        return slopes, kernel, self._values - _mean(self._rows, self.learned) + slopes @ (self.learned / self._doubts)

    def predict(self, rows: Features) -> tuple[Array, Array]:
        """Means and standard deviations."""
        near = self._kernel(rows, self._rows, self._likeness(rows, self._rows))
        slopes = _slopes(rows, self.learned, self._doubts)
        across = near + slopes @ self._slopes.T
        mean = _mean(rows, self.learned) + near @ self._weights
        own = (slopes**2).sum(axis=1) + STUDENT_VARIANCE * (rows.student > 0)
        all_of_it, by_changes = self._steepness(rows)
        own = own + (all_of_it * self._amplitude) ** 2 + (by_changes * CHANGE) ** 2 * (rows.changes**2).sum(axis=1)
        explained = ((across @ self._whitener.T) ** 2).sum(axis=1)
        return mean, np.sqrt(np.maximum(own - explained, 1e-6))

    def _likeness(self, left: Features, right: Features) -> tuple[Array, Array]:
        """How near two rows are to each other, and how much of what hurts is the same (left, right)."""
        distance = (
            (left.region**2).sum(axis=1)[:, None]
            + (right.region**2).sum(axis=1)[None]
            - 2 * left.region @ right.region.T
        )
        return np.exp(-0.5 * np.maximum(distance, 0) / self._length**2), left.changes @ right.changes.T

    def _kernel(self, left: Features, right: Features, likeness: tuple[Array, Array]) -> Array:
        """How much what the mean does not say of two rows goes together (left, right)."""
        near, shared = likeness
        same = (left.architecture[:, None] == right.architecture[None]) & (right.student > 0)[None]
        (all_left, changes_left), (all_right, changes_right) = self._steepness(left), self._steepness(right)
        kernel: Array = self._amplitude**2 * near * np.outer(all_left, all_right) + STUDENT_VARIANCE * same
        kernel += CHANGE**2 * shared * np.outer(changes_left, changes_right)
        return kernel

    def _steepness(self, rows: Features) -> tuple[Array, Array]:
        """How the compressed loss changes with the logarithm of all that is lost, and of what changes lose."""
        changed, fresh = _losses(rows, self.learned)
        scale = np.hypot(changed + fresh, SCALE)
        return LEAST_STEEPNESS + (changed + fresh) / scale, changed / scale


def _squeezed(damage: Array) -> Array:
    """Divergences on a logarithmic scale that begins at 0."""
    found: Array = np.log1p(damage / 0.02)
    return found


def _owners(landscape: Landscape, methods: list[str]) -> tuple[Array, Array]:
    """Which group and which part of the network each change belongs to (changes, groups) and (changes, parts).

    Groups are the methods where training repairs a change, then the methods where it does not.
    """
    group = np.zeros((len(landscape.changes), 2 * len(methods)))
    segment = np.zeros((len(landscape.changes), SEGMENTS))
    count = max(1, len(landscape.layers))
    for change, (site, option) in enumerate(landscape.changes):
        effect = landscape.effects[site][option]
        group[change, methods.index(landscape.sites[site].method) + len(methods) * (not effect.recovers)] = 1.0
        middle = sum(effect.layers) / len(effect.layers) if effect.layers else 0.0
        segment[change, min(SEGMENTS - 1, int(SEGMENTS * middle / count))] = 1.0
    return group, segment


def _taken(landscape: Landscape) -> Array:
    """What each change alone takes: the mean of the shares of the multiply-adds and of the weights (changes,).

    Weights count by their bits up to `WHOLE_BITS`, so that 4 bits take half of a weight and 8 bits nothing.
    """
    work = landscape.work(np.vstack([landscape.neutral(), landscape.single_changes]))
    macs = work.macs.sum(axis=1)
    held = np.minimum(work.weights, 8 * work.stored_bytes / WHOLE_BITS).sum(axis=1)
    shares: Array = 1 - 0.5 * (macs / max(macs[0], 1) + held / max(held[0], 1))
    return np.maximum(shares[1:], 0.0)


def _most_telling(values: Array) -> Array:
    """The rows to fit to: those that lost least, and the latest."""
    if len(values) <= MOST_ROWS:
        return np.arange(len(values))
    before = len(values) - MOST_ROWS // 3
    best = np.argsort(values[:before], kind="stable")[: MOST_ROWS - MOST_ROWS // 3]
    return np.concatenate([np.sort(best), np.arange(before, len(values))])
