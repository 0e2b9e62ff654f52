"""How much a new point would add to the hypervolume of a front."""

from __future__ import annotations

import math

import numpy as np

from autocompress.data import Array

CELLS = {1: 2048, 2: 192, 3: 40, 4: 16}
"""Cells of the grid along each axis, by the number of axes."""


class Gain:
    """The volume that a front leaves uncovered, as a table to look gains up in.

    Args:
        front: Costs of its points, each in [0, 1] by axis, 1 the reference (points, axes).
        axes: Number of axes, 1 to 4.
    """

    def __init__(self, front: Array, axes: int) -> None:
        self._cells = CELLS[axes]
        open_cells = np.ones((self._cells,) * axes)
        for point in front:
            open_cells[_beyond(point, self._cells)] = 0.0
        volume = np.pad(open_cells, [(0, 1)] * axes)
        for axis in range(axes):
            volume = np.flip(np.cumsum(np.flip(volume, axis), axis), axis)
        self._volume = volume / self._cells**axes

    def of(self, points: Array) -> Array:
        """What each point would add (points,), by linear interpolation between the corners of cells.

        Args:
            points: Costs (points, axes); beyond 1 they add nothing.
        """
        scaled = np.clip(points, 0.0, 1.0) * self._cells
        low = np.minimum(scaled.astype(int), self._cells - 1)
        part = scaled - low
        total = np.zeros(len(points))
        axes = points.shape[1]
        for corner in range(2**axes):
            offset = np.array([(corner >> axis) & 1 for axis in range(axes)])
            weight = np.where(offset, part, 1 - part).prod(axis=1)
            total += weight * self._volume[tuple((low + offset).T)]
        return total


def exclusive_volumes(points: Array) -> Array:
    """What each point covers that no other does (points,).

    Args:
        points: Costs (points, axes), each in [0, 1] by axis, 1 the reference.
    """
    axes = points.shape[1]
    covered = np.zeros((CELLS[axes],) * axes, np.int32)
    places = [_beyond(point, CELLS[axes]) for point in points]
    for place in places:
        covered[place] += 1
    return np.array([(covered[place] == 1).sum() for place in places]) / covered.size


def _beyond(point: Array, cells: int) -> tuple[slice, ...]:
    """The cells of a grid whose middle is nowhere better than a point."""
    return tuple(slice(max(0, math.ceil(value * cells - 0.5)), None) for value in np.minimum(point, 2.0))
