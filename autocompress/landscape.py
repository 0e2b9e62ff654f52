"""A landscape: what may be changed about one architecture, and what each change does to the work of its layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autocompress.data import Array
from autocompress.plan import ARCHITECTURE, Plan, Scalar


@dataclass(frozen=True)
class Site:
    """One place where one method may act.

    Args:
        method: Name of the method.
        layer: What it acts on: a layer, a channel group or a block.
        turn: When the method acts among those of a plan.
        is_early: True for what is done before the weights are restricted to values, which plans may start from.
        options: Answers to the knobs below `architecture/method/layer`, by their full names; the first is empty and
            leaves the layer alone.
        settings: What a plan holds of the layer under each option; empty for the first.
    """

    method: str
    layer: str
    turn: int
    is_early: bool
    options: tuple[Mapping[str, Scalar], ...]
    settings: tuple[Mapping[str, Scalar], ...]


@dataclass(frozen=True)
class Effect:
    """What one option of a site does to layers.

    Args:
        layers: Indices of the layers that it changes.
        macs, weights: Factors on their multiply-adds and weights; 0 where the layer is gone.
        parts: Layers that stand in the place of each.
        density: Factor on the share of weights that are not zero.
        bits: What a stored weight takes at most.
        precision: What it is computed in; empty if that is as before.
        recovers: True if it costs accuracy that fine-tuning brings back.
    """

    layers: tuple[int, ...] = ()
    macs: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    parts: tuple[int, ...] = ()
    density: tuple[float, ...] = ()
    bits: tuple[float, ...] = ()
    precision: tuple[str, ...] = ()
    recovers: bool = False


@dataclass(frozen=True)
class Work:
    """What is left of the layers in some points of a landscape; arrays (points, layers).

    Args:
        macs: Multiply-adds.
        weights: Number of weights.
        parts: Layers that stand in the place of each.
        stored_bytes: What the weights take.
        precision: Index into `Landscape.precisions`.
    """

    macs: Array
    weights: Array
    parts: Array
    stored_bytes: Array
    precision: Array

    @property
    def is_there(self) -> Array:
        """False for layers that are gone."""
        return self.macs + self.weights > 0


@dataclass(frozen=True)
class Landscape:
    """One architecture as a strategy sees it; a point of it is one option for every site.

    Args:
        architecture: Its name.
        sites: Where something may be changed, in the order in which methods act.
        effects: For each site, what each of its options does; the first does nothing.
        layers: Names, in the order of the model.
        kinds: Of the layers.
        macs, weights: Of the layers, unchanged.
        keeps: Sites that can't all act: where the others do, the last is left alone.
    """

    architecture: str
    sites: tuple[Site, ...]
    effects: tuple[tuple[Effect, ...], ...]
    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    macs: tuple[int, ...]
    weights: tuple[int, ...]
    keeps: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def sizes(self) -> Array:
        """Number of options of each site (sites,)."""
        return np.array([len(site.options) for site in self.sites], np.int64)

    @cached_property
    def offsets(self) -> Array:
        """Where the changes of each site begin; a change is an option that is not the first."""
        return np.concatenate(([0], np.cumsum(self.sizes - 1)))[:-1].astype(np.int64)

    @cached_property
    def changes(self) -> tuple[tuple[int, int], ...]:
        """Site and option of each change."""
        return tuple((site, option) for site, size in enumerate(self.sizes) for option in range(1, size))

    @cached_property
    def single_changes(self) -> Array:
        """Each change alone, as points (changes, sites)."""
        points = np.zeros((len(self.changes), len(self.sites)), np.int64)
        for change, (site, option) in enumerate(self.changes):
            points[change, site] = option
        return points

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that act somewhere, in order."""
        return tuple(dict.fromkeys(site.method for site in self.sites))

    @cached_property
    def precisions(self) -> tuple[str, ...]:
        """What layers may be computed in; the first is float."""
        named = (p for options in self.effects for effect in options for p in effect.precision if p)
        return tuple(dict.fromkeys(("fp32", *named)))

    @cached_property
    def _rows(self) -> _Rows:
        return _Rows.of(self)

    @cached_property
    def recovers(self) -> Array:
        """Which changes cost accuracy that fine-tuning brings back (changes,)."""
        return np.array([self.effects[site][option].recovers for site, option in self.changes], np.bool_)

    @cached_property
    def early(self) -> Array:
        """Which sites plans may start from (sites,)."""
        return np.array([site.is_early for site in self.sites], np.bool_)

    def neutral(self) -> Array:
        """The point that changes nothing (sites,)."""
        return np.zeros(len(self.sites), np.int64)

    def work(self, points: Array) -> Work:
        """What points leave of the layers.

        Args:
            points: Option of each site, (points, sites).
        """
        rows, hot = self._rows, self.one_hot(points)
        weights = _product(hot, rows.weights) * np.array(self.weights, float)
        density = _product(hot, rows.density)
        bits = np.min([32 - hot @ saved for saved in rows.bits], axis=0)
        parts = np.max([1 + hot @ added for added in rows.parts], axis=0)
        stored = weights * np.minimum(bits, 1 + density * bits) / 8  # with many zeros a bit each tells where they are
        macs = _product(hot, rows.macs) * np.array(self.macs, float)
        return Work(macs, weights, parts, stored, np.rint(hot @ rows.precision).astype(np.int64))

    def canonical(self, points: Array) -> Array:
        """The points with the first option at every site that can't act, so that equal ones are equal.

        Sites can't act whose layers are all gone, nor the last of some of which one must not.
        """
        result: Array = points.copy()
        for together in self.keeps:
            result[(result[:, together] > 0).all(axis=1), together[-1]] = 0
        rows = self._rows
        gone = np.zeros((len(points), len(self.layers)), np.bool_)
        for site, options in rows.removing.items():
            touched = rows.touches[site]
            result[gone[:, touched].all(axis=1), site] = 0
            gone[np.ix_(np.isin(result[:, site], options), touched)] = True
        if gone.any():
            void = gone @ rows.touches.T.astype(np.int64) >= rows.touches.sum(axis=1)
            void[:, [*rows.removing, *np.flatnonzero(~rows.touches.any(axis=1))]] = False
            result[void] = 0
        return result

    def one_hot(self, points: Array) -> Array:
        """Which changes points hold, (points, changes)."""
        found = np.zeros((len(points), len(self.changes)))
        rows, sites = np.nonzero(points)
        found[rows, self.offsets[sites] + points[rows, sites] - 1] = 1.0
        return found

    def answers(self, point: Array) -> dict[str, Scalar]:
        """The answers to knobs that give a point; knobs that are not named have their neutral answer."""
        given: dict[str, Scalar] = {ARCHITECTURE: self.architecture}
        for site, option in zip(self.sites, point, strict=True):
            given |= site.options[int(option)]
        return given

    def point(self, answers: Mapping[str, Scalar]) -> Array:
        """The point of some answers; knobs that no site has are left out."""
        found = self.neutral()
        given: dict[str, dict[str, Scalar]] = {}
        for name, value in answers.items():
            given.setdefault(name.rpartition("/")[0], {})[name] = value
        for path, own in given.items():
            if path in self._numbers:
                number = self._numbers[path]
                options = self.sites[number].options
                fitting = [option for option, wanted in enumerate(options) if option and wanted.items() <= own.items()]
                found[number] = max(fitting, key=lambda option: len(options[option]), default=0)
        point: Array = self.canonical(found[None])[0]
        return point

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Sites by the part that the names of their knobs have in common."""
        return {next(iter(site.options[1])).rpartition("/")[0]: number for number, site in enumerate(self.sites)}

    def realized(self, plan: Plan) -> Array:
        """The point of what a plan does, which leaves out what means nothing to it (sites,)."""
        steps = {step.method: step.settings for step in plan.steps}
        found = self.neutral()
        for number, site in enumerate(self.sites):
            setting = steps.get(site.method, {}).get(site.layer)
            if setting is not None:
                same = (option for option, own in enumerate(site.settings) if option and dict(own) == dict(setting))
                found[number] = next(same, 0)
        return found

    def uniform_moves(self) -> Iterator[tuple[Array, Array]]:
        """The option of one rank at all sites of a method: their indices and options, once for each rank.

        Sites with fewer options take their last.
        """
        for method in self.methods:
            sites = np.array([number for number, site in enumerate(self.sites) if site.method == method])
            for option in range(int(self.sizes[sites].max())):
                yield sites, np.minimum(option, self.sizes[sites] - 1)


NOTHING = -30.0
"""Logarithm of a factor that leaves nothing."""


def _product(hot: Array, logarithms: Array) -> Array:
    """The product of the factors of the changes that points hold; 0 where one of them leaves nothing."""
    total = hot @ logarithms
    factors: Array = np.where(total <= NOTHING, 0.0, np.exp(total))
    return factors


@dataclass(frozen=True)
class _Rows:
    """The effects of all changes as arrays (changes, layers).

    Args:
        macs, weights, density: Logarithms of factors.
        bits, parts: What is taken from 32 bits and added to one part, an array for each method that does so.
        precision: Index of the precision.
        touches: Which layers each site changes (sites, layers).
        removing: Sites that take layers away, in order, and the options that do.
    """

    macs: Array
    weights: Array
    density: Array
    bits: tuple[Array, ...]
    parts: tuple[Array, ...]
    precision: Array
    touches: Array
    removing: Mapping[int, list[int]]

    @classmethod
    def of(cls, land: Landscape) -> _Rows:
        shape = (len(land.changes), len(land.layers))
        macs, weights, density, precision = (np.zeros(shape) for _ in range(4))
        bits = {method: np.zeros(shape) for method in land.methods or ("",)}
        parts = {method: np.zeros(shape) for method in land.methods or ("",)}
        touches = np.zeros((len(land.sites), len(land.layers)), np.bool_)
        removing: dict[int, list[int]] = {}
        for change, (site, option) in enumerate(land.changes):
            effect, method = land.effects[site][option], land.sites[site].method
            columns = list(effect.layers)
            touches[site, columns] = True
            macs[change, columns] = [_logarithm(factor) for factor in effect.macs]
            weights[change, columns] = [_logarithm(factor) for factor in effect.weights]
            density[change, columns] = [_logarithm(factor) for factor in effect.density]
            bits[method][change, columns] = [32 - number for number in effect.bits]
            parts[method][change, columns] = [number - 1 for number in effect.parts]
            precision[change, columns] = [land.precisions.index(name) if name else 0 for name in effect.precision]
            if effect.weights and max(effect.weights) <= 0:
                removing.setdefault(site, []).append(option)
        return cls(
            macs,
            weights,
            density,
            tuple(one for one in bits.values() if one.any()) or (np.zeros(shape),),
            tuple(one for one in parts.values() if one.any()) or (np.zeros(shape),),
            precision,
            touches,
            removing,
        )


def _logarithm(factor: float) -> float:
    return math.log(factor) if factor > 0 else 2 * NOTHING
