"""How much a new point would add to the hypervolume of a front."""

from __future__ import annotations

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
        middle = (np.arange(self._cells) + 0.5) / self._cells
        for point in front:
            open_cells[np.ix_(*(middle >= value for value in point))] = 0.0
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
