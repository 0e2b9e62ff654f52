"""Finished models whose trained weights a new one may start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.data import Array
from autocompress.landscape import Landscape
from autocompress.plan import ORIGINAL

LEAST_ALIKE = 0.3
"""Share of what hurts in the changes of structure that a relative must have been trained with."""


@dataclass(frozen=True)
class Relative:
    """A model that was trained.

    Args:
        number: Of its trial.
        point: Its options (sites,).
        epochs: Training that its weights have had.
    """

    number: int
    point: Array
    epochs: float


def nearest(landscape: Landscape, points: Array, relatives: Sequence[Relative], damage: Array) -> tuple[Array, Array]:
    """For each point the relative whose training is worth most to it.

    A relative has some or all of the changes of structure, factors and zeros of the point and none beside them, and
    what is missing comes after what it has. Its epochs count as far as what they repaired is the same: restricted
    values alone leave nothing to begin with.

    Args:
        landscape: Whose points.
        points: Options (points, sites).
        relatives: Trained models of the same architecture.
        damage: Divergence by change.

    Returns:
        Numbers of trials (points,), 0 where none fits, and the epochs that count (points,).
    """
    if not relatives or not len(landscape.sites):
        return np.zeros(len(points), np.int64), np.zeros(len(points))
    turns = np.array([site.turn for site in landscape.sites])
    own, begun = points * landscape.early, np.array([relative.point for relative in relatives]) * landscape.early
    hot, begun_hot = landscape.one_hot(own), landscape.one_hot(begun)
    all_held = hot @ begun_hot.T == begun_hot.sum(axis=1)
    is_before = turns[:, None] < np.where(begun > 0, turns, -1).max(axis=1)  # the last turn of a relative
    comes_after = (own > 0) @ is_before.astype(float) <= ((begun > 0) * is_before.T).sum(axis=1)
    hurt, repaired = hot @ damage, begun_hot @ damage
    alike = repaired / np.maximum(hurt, 1e-12)[:, None]
    if landscape.architecture != ORIGINAL:  # its weights were trained from nothing
        alike = 0.5 + 0.5 * np.where(hurt[:, None] > 0, alike, 1.0)
    epochs = np.array([relative.epochs for relative in relatives])
    counted = np.where(all_held & comes_after & (alike >= LEAST_ALIKE), epochs * alike, 0.0)
    best, worth = counted.argmax(axis=1), counted.max(axis=1)
    numbers = np.where(worth > 0, np.array([relative.number for relative in relatives])[best], 0)
    return numbers, worth


def is_held(landscape: Landscape, points: Array) -> Array:
    """True for points with restricted values that training has to follow (points,)."""
    late = ~np.repeat(landscape.early, landscape.sizes - 1)
    held: Array = landscape.one_hot(points) @ (late & landscape.recovers) > 0
    return held
