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
    numbers, worth = np.zeros(len(points), np.int64), np.zeros(len(points))
    if not relatives or not len(landscape.sites):
        return numbers, worth
    turns = np.array([site.turn for site in landscape.sites])
    own = points * landscape.early
    hurt = landscape.one_hot(own) @ damage
    is_student = landscape.architecture != ORIGINAL
    for relative in relatives:
        begun = relative.point * landscape.early
        last = turns[begun > 0].max(initial=-1)
        too_late = (own > 0) & (begun == 0) & (turns < last)
        fits: Array = ((begun == 0) | (begun == own)).all(axis=1) & ~too_late.any(axis=1)
        repaired = float((landscape.one_hot(begun[None]) @ damage)[0])
        alike = repaired / np.maximum(hurt, 1e-12)
        if is_student:  # its weights were trained from nothing
            alike = 0.5 + 0.5 * np.where(hurt > 0, alike, 1.0)
        counted = np.where(fits & (alike >= LEAST_ALIKE), relative.epochs * alike, 0.0)
        better = counted > worth
        numbers[better], worth[better] = relative.number, counted[better]
    return numbers, worth


def is_held(landscape: Landscape, points: Array) -> Array:
    """True for points with restricted values that training has to follow (points,)."""
    late = ~np.repeat(landscape.early, landscape.sizes - 1)
    held: Array = landscape.one_hot(points) @ (late & landscape.recovers) > 0
    return held
