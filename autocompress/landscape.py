"""A landscape: what may be changed about one architecture, and what each change does to the work of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autocompress.data import Array
from autocompress.plan import Plan, Scalar

GONE = 1e-6
"""A share of the multiply-adds of a layer below which the layer is gone."""


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
    """

    method: str
    layer: str
    turn: int
    is_early: bool
    options: tuple[Mapping[str, Scalar], ...]


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
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that act somewhere, in order."""
        return tuple(dict.fromkeys(site.method for site in self.sites))

    @cached_property
    def precisions(self) -> tuple[str, ...]:
        """What layers may be computed in; the first is float."""
        named = (p for options in self.effects for effect in options for p in effect.precision if p)
        return tuple(dict.fromkeys(("fp32", *named)))

    @cached_property
    def _tables(self) -> tuple[_Table, ...]:
        return tuple(_Table.of(options, self.precisions) for options in self.effects)

    @cached_property
    def recovers(self) -> Array:
        """Which changes cost accuracy that fine-tuning brings back (changes,)."""
        return np.array([self.effects[site][option].recovers for site, option in self.changes], np.bool_)

    def neutral(self) -> Array:
        """The point that changes nothing (sites,)."""
        return np.zeros(len(self.sites), np.int64)

    def work(self, points: Array) -> Work:
        """What points leave of the layers.

        Args:
            points: Option of each site, (points, sites).
        """
        count = len(points)
        shape = (count, len(self.layers))
        macs, weights = np.ones(shape), np.ones(shape)
        parts, density = np.ones(shape), np.ones(shape)
        bits, precision = np.full(shape, 32.0), np.zeros(shape, np.int64)
        for site, table in enumerate(self._tables):
            chosen = points[:, site]
            rows = np.flatnonzero(chosen)
            if not len(rows) or not len(table.layers):
                continue
            place, option = np.ix_(rows, table.layers), chosen[rows]
            macs[place] *= table.macs[option]
            weights[place] *= table.weights[option]
            parts[place] = np.maximum(parts[place], table.parts[option])
            density[place] *= table.density[option]
            bits[place] = np.minimum(bits[place], table.bits[option])
            named = table.precision[option]
            precision[place] = np.where(named >= 0, named, precision[place])
        weights *= np.array(self.weights, float)
        stored = weights * np.minimum(bits, 1 + density * bits) / 8
        return Work(macs * np.array(self.macs, float), weights, parts, stored, precision)

    def canonical(self, points: Array) -> Array:
        """The points with the first option at every site that can't act, so that equal ones are equal.

        Sites can't act whose layers are all gone, nor the last of some of which one must not.
        """
        kept = np.ones((len(points), len(self.layers)))
        result: Array = points.copy()
        for together in self.keeps:
            result[(result[:, together] > 0).all(axis=1), together[-1]] = 0
        for site, table in enumerate(self._tables):
            if not len(table.layers):
                continue
            result[kept[:, table.layers].max(axis=1) < GONE, site] = 0
            rows = np.flatnonzero(result[:, site])
            kept[np.ix_(rows, table.layers)] *= table.weights[result[rows, site]]
        return result

    def one_hot(self, points: Array) -> Array:
        """Which changes points hold, (points, changes)."""
        found = np.zeros((len(points), len(self.changes)))
        rows, sites = np.nonzero(points)
        found[rows, self.offsets[sites] + points[rows, sites] - 1] = 1.0
        return found

    def answers(self, point: Array) -> dict[str, Scalar]:
        """The answers to knobs that give a point; knobs that are not named have their neutral answer."""
        given: dict[str, Scalar] = {"architecture": self.architecture}
        for site, option in zip(self.sites, point, strict=True):
            given |= site.options[int(option)]
        return given

    def point(self, answers: Mapping[str, Scalar]) -> Array:
        """The point of some answers; knobs that no site has are left out."""
        found = self.neutral()
        for number, site in enumerate(self.sites):
            options = site.options
            fitting = [o for o in range(1, len(options)) if all(answers.get(k) == v for k, v in options[o].items())]
            found[number] = max(fitting, key=lambda option: len(options[option]), default=0)
        point: Array = self.canonical(found[None])[0]
        return point

    def realized(self, plan: Plan) -> Array:
        """The point of what a plan does, which leaves out what means nothing to it (sites,)."""
        steps = {step.method: step.settings for step in plan.steps}
        found = self.neutral()
        for number, site in enumerate(self.sites):
            setting = steps.get(site.method, {}).get(site.layer)
            if setting is not None:
                found[number] = next(
                    (option for option, answers in enumerate(site.options) if option and _says(setting, answers)), 0
                )
        return found

    def uniform_moves(self) -> Iterator[tuple[Array, Array]]:
        """The same setting for all sites of a method: their indices and options, once for each setting.

        Sites that do not offer the very setting take the option of the same rank, if they have one.
        """
        for method in self.methods:
            sites = np.array([number for number, site in enumerate(self.sites) if site.method == method])
            for option in range(int(self.sizes[sites].max())):
                yield sites, np.minimum(option, self.sizes[sites] - 1)


def _says(setting: Mapping[str, Scalar], answers: Mapping[str, Scalar]) -> bool:
    """True if a setting is what answers to knobs ask for; defaults may be left out of it."""
    wanted = {name.rpartition("/")[2]: value for name, value in answers.items()}
    return all(setting.get(parameter, value) == value for parameter, value in wanted.items()) and any(
        parameter in setting for parameter in wanted
    )


@dataclass(frozen=True)
class _Table:
    """The effects of a site's options as arrays (options, layers it touches)."""

    layers: Array
    macs: Array
    weights: Array
    parts: Array
    density: Array
    bits: Array
    precision: Array

    @classmethod
    def of(cls, options: Sequence[Effect], precisions: tuple[str, ...]) -> _Table:
        layers = sorted({layer for effect in options for layer in effect.layers})
        place = {layer: column for column, layer in enumerate(layers)}
        shape = (len(options), len(layers))
        macs, weights, parts, density = (np.ones(shape) for _ in range(4))
        bits, precision = np.full(shape, 32.0), np.full(shape, -1, np.int64)
        for row, effect in enumerate(options):
            columns = [place[layer] for layer in effect.layers]
            if columns:
                macs[row, columns], weights[row, columns] = effect.macs, effect.weights
                parts[row, columns], density[row, columns] = effect.parts, effect.density
                bits[row, columns] = effect.bits
                precision[row, columns] = [precisions.index(p) if p else -1 for p in effect.precision]
        return cls(np.array(layers, np.int64), macs, weights, parts, density, bits, precision)
