"""Points that are best for some exchange of accuracy, latency and size: a sweep over multipliers, by local search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np

from autocompress.data import Array
from autocompress.landscape import Landscape

Price = Callable[[Array], Array]
"""Terms of points (points, terms), each smaller where it is better; the first is the loss."""

LOSS_WEIGHTS = tuple(float(weight) for weight in np.geomspace(0.08, 8.0, 8))
"""Multipliers of the loss, from points that give up accuracy to points that keep it."""

MIXES = (1.0, 0.5, 0.0)
"""Share of the first cost against the others."""

STEPS = 40
LEAST_STEP = 1e-6
"""Share of a value by which a step makes it better at least."""

CHANGES_IN_A_STEP = 4
"""Changes that a step takes together, as long as they are better together too."""


def sweep(landscape: Landscape, price: Price, starts: Array) -> Iterator[Array]:
    """The best point found for every mix of costs and multiplier of the loss.

    Args:
        landscape: Whose points.
        price: Says what points cost.
        starts: Points to begin from (points, sites), one at least; each sweep begins from the best of them and goes on
            from its last result.

    References:
        Everett, "Generalized Lagrange multiplier method for solving problems of optimum allocation of resources", 1963.
    """
    moves = _moves(landscape)
    terms = price(starts)
    mixes = MIXES if terms.shape[1] > 2 else (1.0,)
    for mix in mixes:
        costs = terms.shape[1] - 1
        shares = np.array([mix, *[(1 - mix) / max(1, costs - 1)] * (costs - 1)]) if costs else np.zeros(0)
        known, known_terms = starts, terms
        for weight in LOSS_WEIGHTS:
            multipliers = np.concatenate(([weight], shares))
            best = known[int(np.argmin(known_terms @ multipliers))]
            found = descend(landscape, price, best, multipliers, moves)
            known = np.vstack([known, found[None]])
            known_terms = np.vstack([known_terms, price(found[None])])
            yield found


def climb(landscape: Landscape, worth: Callable[[Array], Array], starts: Array) -> Iterator[Array]:
    """From each of some points one that is worth more than all that differ from it by a single move.

    A sweep finds what is best for some exchange of costs, which leaves out what lies in the hollows of a front.

    Args:
        landscape: Whose points.
        worth: What points are worth (points,); more is better.
        starts: Points to begin from (points, sites).
    """
    moves = _moves(landscape)
    for start in starts:
        yield descend(landscape, lambda points: -worth(points)[:, None], start, np.ones(1), moves)


def descend(landscape: Landscape, price: Price, start: Array, multipliers: Array, moves: Array) -> Array:
    """A point that no single move improves, by steepest descent."""
    point, value = start, float(price(start[None])[0] @ multipliers)
    for _ in range(STEPS):
        near = landscape.canonical(np.where(moves >= 0, moves, point))
        values = price(near) @ multipliers
        order = np.argsort(values, kind="stable")[:CHANGES_IN_A_STEP]
        better = order[values[order] < value - LEAST_STEP * abs(value)]
        if not len(better):
            break
        joint = point.copy()
        for row in better:
            joint = np.where((near[row] != point) & (joint == point), near[row], joint)
        tried = np.vstack([landscape.canonical(joint[None]), near[better[0]][None]])
        reached = price(tried) @ multipliers
        chosen = int(np.argmin(reached))
        point, value = tried[chosen], float(reached[chosen])
    return point


def _moves(landscape: Landscape) -> Array:
    """Every change of one site and every uniform change of a method, as rows with -1 where nothing moves."""
    rows = []
    for site, size in enumerate(landscape.sizes):
        for option in range(size):
            row = np.full(len(landscape.sites), -1)
            row[site] = option
            rows.append(row)
    for sites, options in landscape.uniform_moves():
        row = np.full(len(landscape.sites), -1)
        row[sites] = options
        rows.append(row)
    return np.array(rows).reshape(len(rows), len(landscape.sites))


def mutations(landscape: Landscape, parents: Sequence[Array], count: int, rng: np.random.Generator) -> Array:
    """Points near some others (count, sites): a few sites changed, or crossed with another parent."""
    if not parents:
        return np.zeros((0, len(landscape.sites)), np.int64)
    found = []
    for _ in range(count):
        point = parents[int(rng.integers(len(parents)))].copy()
        if len(parents) > 1 and rng.random() < 0.3:
            other = parents[int(rng.integers(len(parents)))]
            point = np.where(rng.random(len(point)) < 0.5, point, other)
        for _ in range(int(rng.integers(1, 4))):
            site = int(rng.integers(len(landscape.sites)))
            point[site] = rng.integers(landscape.sizes[site])
        found.append(point)
    return landscape.canonical(np.array(found, np.int64))


def everything(landscape: Landscape) -> Array:
    """All points of a small landscape (points, sites)."""
    if not landscape.sites:
        return landscape.neutral()[None]
    points = np.array(list(product(*(range(size) for size in landscape.sizes))), np.int64)
    return np.unique(landscape.canonical(points), axis=0)
