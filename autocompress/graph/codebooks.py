"""Codebooks: weights that share a few values, found by K-means and trained as such."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.data import Array
from autocompress.graph.constraints import Constraint, constraints, hold, release_weights, users

ROUNDS = 300
"""Most rounds of K-means; most weights need fewer than a hundred."""

BLOCKS = 16
"""Blocks of equally many values, for each centroid, from whose widths the density of the values is taken."""

TOLERANCE = 1e-5
"""Relative fall of the cost below which K-means ends."""


class Codebook(Constraint):
    """Gives every weight of a layer one of a few values; the free weight is the codebook itself.

    The codebook is held in units of the weights' root mean square: an optimizer that takes steps of the size of its
    learning rate then moves all weights of a cluster by that share of their size. A value of exactly 0 stays 0.

    Args:
        weight: What is clustered; left as it is.
        centroids: (values,), at most 256.
        limit: Largest q if values are kept on a grid q·s of whole numbers q; None for free values.

    References:
        Han et al., "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman
        Coding", 2016.
    """

    def __init__(self, weight: Tensor, centroids: Tensor, *, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.assignment: Tensor
        self.unit: Tensor
        self.step: Tensor
        self.register_buffer("assignment", nearest(weight, centroids))
        self.register_buffer("unit", weight.detach().square().mean().sqrt() * (centroids != 0))
        self.register_buffer("step", centroids.abs().max() / (limit or 1))
        self._start: Tensor = centroids / self.unit.where(self.unit != 0, 1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The codebook as it is before training."""
        return self._start.to(weight).clone()

    def forward(self, weight: Tensor) -> Tensor:
        """The value of each weight, from the codebook (values,)."""
        values: Tensor = weight * self.unit
        if self.limit is not None:
            rounded = (values / self.step).round().clamp(-self.limit, self.limit) * self.step
            values = rounded.detach() + (values - values.detach())
        chosen: Tensor = values.index_select(0, self.assignment.flatten().int()).reshape(self.assignment.shape)
        return chosen


def codebook(weight: Tensor, bits: int, *, limit: int | None = None) -> Codebook:
    """The constraint that gives a weight at most 2**bits values, those of K-means; exact zeros stay zeros.

    Args:
        weight: Left as it is.
        bits: 1 to 8.
        limit: Largest q if the values have to lie on a grid q·s of whole numbers; None for free values.
    """
    values = weight.detach().float().cpu().flatten().numpy()
    centroids = kmeans(values, 2**bits, keep_zero=bool((values == 0).any()))
    if limit is not None:
        step = np.abs(centroids).max() / limit
        centroids = np.unique(np.rint(centroids / step)) * step
    return Codebook(weight, torch.from_numpy(centroids).to(weight), limit=limit)


def count_values(weight: Tensor) -> int:
    """How many different values a weight has."""
    ordered = weight.detach().flatten().sort().values
    return int((ordered.diff() != 0).sum()) + min(1, len(ordered))


@torch.no_grad()
def nearest(weight: Tensor, centroids: Tensor) -> Tensor:
    """The index of the nearest of some ascending values for each weight, as uint8."""
    middles = (centroids[1:] + centroids[:-1]) / 2
    return torch.bucketize(weight, middles).to(torch.uint8)


def kmeans(values: Array, count: int, *, keep_zero: bool = False) -> Array:
    """The centroids of one-dimensional K-means (Lloyd), no worse than as many evenly spaced ones.

    Sorted values make clusters ranges and their sums differences of running sums, so a round costs count·log(values).
    A centroid that no value is nearest to moves to the costliest cluster.

    Args:
        values: (values,), finite.
        count: Most centroids.
        keep_zero: True to hold the centroid nearest to 0 at exactly 0.

    Returns:
        At most `count` different centroids in ascending order, float32.

    References:
        Lloyd, "Least squares quantization in PCM", 1982; Panter and Dite, "Quantization distortion in pulse-count
        modulation with nonuniform spacing of levels", 1951, for the density of the first centroids.
    """
    ordered = np.sort(values).astype(np.float64)
    if np.count_nonzero(np.diff(ordered)) < count:
        return np.unique(ordered).astype(np.float32)
    running = np.stack([np.concatenate(([0.0], powers.cumsum())) for powers in (ordered, ordered**2)])
    starts = _starts(ordered, count)
    if keep_zero:
        for start in starts:
            start[np.abs(start).argmin()] = 0.0
    centroids = min(starts, key=lambda start: float(_clusters(ordered, running, start)[1].sum()))
    cost = np.inf
    for _ in range(ROUNDS):
        means, costs, sizes = _clusters(ordered, running, centroids)
        if costs.sum() > (1 - TOLERANCE) * cost and sizes.all():
            break
        cost = costs.sum()
        if keep_zero:
            means[centroids == 0] = 0.0
        centroids = _refilled(means, costs, sizes)
    return np.unique(centroids.astype(np.float32))


def _starts(ordered: Array, count: int) -> tuple[Array, Array]:
    """Evenly spaced centroids, and some as dense as the cube root of the values, which is best for many of them."""
    places = np.linspace(0, len(ordered) - 1, min(len(ordered), BLOCKS * count)).astype(np.int64)
    blocks = ordered[places]
    weights = np.concatenate(([0.0], np.diff(blocks) ** (2 / 3))).cumsum()  # density is 1 / gap
    shares = (np.arange(count) + 0.5) / count
    return np.linspace(ordered[0], ordered[-1], count), np.interp(shares, weights / weights[-1], blocks)


def _clusters(ordered: Array, running: Array, centroids: Array) -> tuple[Array, Array, Array]:
    """Mean, squared distance to the centroid and number of the values nearest to each centroid; empty ones stay."""
    inner = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
    edges = np.concatenate(([0], inner, [len(ordered)]))
    sizes = np.diff(edges)
    sums, squares = np.diff(running[:, edges])
    means = np.where(sizes > 0, sums / np.maximum(sizes, 1), centroids)
    costs = np.maximum(squares - 2 * centroids * sums + sizes * centroids**2, 0)
    return means, costs, sizes


def _refilled(centroids: Array, costs: Array, sizes: Array) -> Array:
    """Ascending centroids; those without values are put one deviation beside the most costly."""
    empty = np.flatnonzero(sizes == 0)
    costly = np.argsort(-costs, kind="stable")[: len(empty)]
    centroids[empty[: len(costly)]] = centroids[costly] + np.sqrt(costs[costly] / np.maximum(sizes[costly], 1))
    return np.sort(centroids)


def cluster(model: nn.Module, module: nn.Module, bits: int, *, limit: int | None = None) -> bool:
    """Hold the weight of a module to a codebook from now on, in place, wherever the model uses that weight.

    Constraints that the weight had end with this: what they made of it is clustered.

    Returns:
        False if the weight has no more values than the codebook and is left as it is; True if it is clustered, now or
        before as one that is tied to it.
    """
    known = [one for one in constraints(module) if isinstance(one, Codebook)]
    if any(len(one.unit) <= 2**bits and one.limit == limit for one in known):
        return True
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    if count_values(weight) <= (2**bits if limit is None else 1):
        return False
    constraint = codebook(weight, bits, limit=limit)
    release_weights(users(model, module))
    hold(model, module, constraint)
    return True
