"""What candidates promise: expected hypervolume for each second until they are trained in full."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from autocompress.data import Array
from autocompress.strategies._guided.accuracy import restored
from autocompress.strategies._guided.candidates import Candidates
from autocompress.strategies._guided.gain import Gain
from autocompress.strategies._guided.models import Models
from autocompress.strategies._guided.results import Result
from autocompress.strategies._guided.training import ETA
from autocompress.strategies._guided.yardstick import Yardstick

QUANTILES = np.array([-1.64, -1.04, -0.67, -0.39, -0.13, 0.13, 0.39, 0.67, 1.04, 1.64])
"""Standard normal numbers that stand for a tenth of all each."""

NEXT_TO_NOTHING = 1e-9
"""Weight of what decides where no candidate promises anything: how likely it obeys the constraints, for its time."""

AtWork = tuple[str, Array, float]
"""Architecture, point and epochs of a trial that has not ended."""

Gained = Callable[[Array, Mapping[str, Array]], Array]
"""What models of some losses and shares of the baseline's costs would add (models,)."""


def gained(yardstick: Yardstick, models: Models, front: Collection[Result], at_work: Collection[AtWork]) -> Gained:
    """What models would add to a front, and to the trials at work as they are expected to end."""
    places = [*_believed(models, front), *_expected(yardstick, models, at_work)]
    if yardstick.is_weighted:
        best = min(float(yardstick.weighted(loss, shares).min()) for loss, shares in places)
        return lambda loss, shares: np.maximum(0.0, best - yardstick.weighted(loss, shares))
    found = np.vstack([yardstick.axes(loss, shares) for loss, shares in places])
    gain = Gain(found)
    return lambda loss, shares: gain.of(yardstick.axes(loss, shares))


def believed_losses(models: Models, results: Collection[Result]) -> dict[int, float]:
    """Losses of finished trials by number, as the models believe in them: scores are noisy."""
    by_architecture: dict[str, list[Result]] = {}
    for result in results:
        by_architecture.setdefault(result.architecture, []).append(result)
    found: dict[int, float] = {}
    for name, some in by_architecture.items():
        points, epochs = np.array([one.point for one in some]), np.array([one.epochs for one in some])
        losses, _ = models.accuracy.predict(name, points, epochs)
        numbers = (one.number for one in some)
        found |= dict(zip(numbers, restored(losses).tolist(), strict=True))
    return found


def _believed(models: Models, front: Collection[Result]) -> Iterator[tuple[Array, dict[str, Array]]]:
    """Losses and shares of a front as the models believe in it."""
    if front:
        losses = believed_losses(models, front)
        names = frozenset[str].intersection(*(frozenset(result.shares) for result in front))
        shares = {name: np.array([result.shares[name] for result in front]) for name in names}
        yield np.array([losses[result.number] for result in front]), shares


def _expected(
    yardstick: Yardstick, models: Models, at_work: Collection[AtWork]
) -> Iterator[tuple[Array, dict[str, Array]]]:
    """Losses and shares that trials at work are expected to have, by architecture; of those that rather obey bounds."""
    for architecture in dict.fromkeys(name for name, _, _ in at_work):
        some = [(point, epochs) for name, point, epochs in at_work if name == architecture]
        points, epochs = np.array([point for point, _ in some]), np.array([epochs for _, epochs in some])
        losses, _ = models.accuracy.predict(architecture, points, epochs)
        costs = models.costs.predict(architecture, points)
        found = restored(losses)
        kept = yardstick.allowed(found, costs) >= 0.5
        if kept.any():
            yield found[kept], {name: mean[kept] for name, (mean, _) in costs.items()}


def worth(yardstick: Yardstick, models: Models, gain: Gained, candidates: Candidates) -> Array:
    """Expected gain at the epochs by which candidates are judged, for each second until then (points,)."""
    name, points = candidates.architecture, candidates.points
    mean, deviation = models.accuracy.predict(name, points, candidates.total)
    costs = models.costs.predict(name, points)
    shares = {cost: value for cost, (value, _) in costs.items()}
    loss = restored(mean + QUANTILES[:, None] * deviation)  # (quantiles, points)
    likely = np.array([yardstick.allowed(one, costs) for one in loss]) / len(QUANTILES)
    repeated = {cost: np.tile(value, len(QUANTILES)) for cost, value in shares.items()}
    total = (gain(loss.ravel(), repeated).reshape(loss.shape) * likely).sum(axis=0)
    allowed = likely.sum(axis=0)
    counted = np.where(total < yardstick.least_gain, 0.0, total)
    missing = np.maximum(candidates.total - candidates.before, candidates.own)
    rungs = 1 + np.log(np.maximum(missing / np.maximum(candidates.own, 1), 1)) / math.log(ETA)
    seconds = rungs * models.fixed_s + missing * models.epoch_s(name, points)
    found: Array = (counted + NEXT_TO_NOTHING * (allowed + total)) / seconds
    return found
