"""How much a new point would add to the hypervolume of a front."""

from __future__ import annotations

import numpy as np

from autocompress.data import Array

MOST_LINES = {1: 4096, 2: 512, 3: 48}
MOST_CELLS = 100_000
"""Lines of the grid along each axis at most, those at 0 and 1 among them, by the number of axes, and cells where there
are more axes; it is exact as long as there is a line for each cost."""


class Gain:
    """The volume that a front leaves uncovered, as a table to look gains up in.

    The lines of the grid go through the points of the front, so that each cell is covered wholly or not at all.

    Args:
        front: Costs of its points, each in [0, 1] by axis, 1 the reference (points, axes).
    """

    def __init__(self, front: Array) -> None:
        axes = front.shape[1]
        self._lines = [_lines(front[:, axis], _most_lines(axes)) for axis in range(axes)]
        volume = np.where(_corners(front, self._lines) > 0, 0.0, 1.0)
        for axis, lines in enumerate(self._lines):
            volume = volume * np.diff(lines).reshape([-1 if other == axis else 1 for other in range(axes)])
        volume = np.pad(volume, [(0, 1)] * axes)
        for axis in range(axes):
            volume = np.flip(np.cumsum(np.flip(volume, axis), axis), axis)
        self._volume = volume

    def of(self, points: Array) -> Array:
        """What each point would add (points,), by linear interpolation between the corners of cells.

        Args:
            points: Costs (points, axes); beyond 1 they add nothing.
        """
        inside = np.clip(points, 0.0, 1.0)
        low = np.empty(points.shape, np.int64)
        part = np.empty(points.shape)
        for axis, lines in enumerate(self._lines):
            low[:, axis] = np.clip(np.searchsorted(lines, inside[:, axis], side="right") - 1, 0, len(lines) - 2)
            below, above = lines[low[:, axis]], lines[low[:, axis] + 1]
            part[:, axis] = (inside[:, axis] - below) / (above - below)
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
    lines = [_lines(points[:, axis], _most_lines(axes)) for axis in range(axes)]
    alone = _corners(points, lines) == 1
    owner = _corners(points, lines, np.arange(len(points), dtype=float))[alone].astype(np.int64)
    volume = np.ones(alone.shape)
    for axis, own in enumerate(lines):
        volume = volume * np.diff(own).reshape([-1 if other == axis else 1 for other in range(axes)])
    return np.bincount(owner, weights=volume[alone], minlength=len(points))


def _most_lines(axes: int) -> int:
    """Lines along each axis.

    >>> [_most_lines(axes) for axes in (3, 4, 5, 6)]
    [48, 18, 11, 7]
    """
    return MOST_LINES.get(axes) or 1 + int(MOST_CELLS ** (1 / axes) + 1e-9)


def _lines(values: Array, most: int) -> Array:
    """Where to cut an axis: at the values themselves, or at some of them where there are too many."""
    lines: Array = np.unique(np.concatenate(([0.0, 1.0], np.clip(values, 0.0, 1.0))))
    if len(lines) > most:
        lines = lines[np.unique(np.linspace(0, len(lines) - 1, most).round().astype(np.int64))]
    return lines


def _corners(points: Array, lines: list[Array], weights: Array | None = None) -> Array:
    """For each cell the sum of the weights of the points that cover it; each counts once by default."""
    cells = np.zeros([len(own) - 1 for own in lines])
    inside = (points < 1.0).all(axis=1)
    nearest = [
        np.abs(own[None, :-1] - np.clip(points[inside, axis], 0.0, 1.0)[:, None]).argmin(axis=1)
        for axis, own in enumerate(lines)
    ]
    np.add.at(cells, tuple(nearest), 1.0 if weights is None else weights[inside])
    for axis in range(len(lines)):
        cells = np.cumsum(cells, axis)
    return cells
