"""How much each change of a landscape hurts, from the sensitivity table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np

from autocompress.data import Array
from autocompress.landscape import Effect, Landscape
from autocompress.plan import Scalar

LEAST = 1e-5
"""A divergence below which outputs count as the same."""

UNKNOWN = 0.05
"""The divergence that a change is taken to cause where nothing like it was looked at."""

Key = tuple[str, str, tuple[tuple[str, Scalar], ...]]
"""Method, layer and setting of a change, whatever the architecture."""


def key_of(landscape: Landscape, change: int) -> Key:
    """What a change is called in every architecture that has it."""
    number, option = landscape.changes[change]
    site = landscape.sites[number]
    setting = tuple(sorted((name.rpartition("/")[2], value) for name, value in site.options[option].items()))
    return site.method, site.layer, setting


def damages(landscape: Landscape, known: Mapping[Key, float]) -> Array:
    """Divergence by change (changes,), each at least `LEAST`.

    Changes not looked at are taken to hurt as the median of those with the same setting elsewhere does, else as that
    of the method. What takes more from a layer than another change of the same kind does not hurt less: guesses give
    way to what was measured.

    Args:
        landscape: Of any architecture; one with the layer names of the original shares its entries.
        known: Divergences that were measured.
    """
    like: dict[tuple[object, ...], list[float]] = {}
    for (method, _, setting), value in known.items():
        like.setdefault((method, setting), []).append(value)
        like.setdefault((method,), []).append(value)
    found, measured = np.empty(len(landscape.changes)), np.zeros(len(landscape.changes), np.bool_)
    for change in range(len(found)):
        method, layer, setting = key_of(landscape, change)
        similar = like.get((method, setting)) or like.get((method,)) or [UNKNOWN]
        measured[change] = (method, layer, setting) in known
        found[change] = max(LEAST, known.get((method, layer, setting), median(similar)))
    for site, options in enumerate(landscape.effects):
        first = int(landscape.offsets[site])
        settings = landscape.sites[site].settings
        words = [tuple(value for value in own.values() if isinstance(value, str)) for own in settings]
        for chain in _chains(options[1:], words[1:]):
            rows = [first + option for option in chain]
            found[rows] = np.exp(_ordered(np.log(found[rows]), measured[rows]))
    return found


def _chains(options: Sequence[Effect], words: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """Options that differ in how much they take alone, from the one that leaves most to the one that leaves least.

    Options that leave the same, or that differ in what is chosen by name, are in different chains.
    """
    kinds: dict[tuple[object, ...], list[list[int]]] = {}
    for index in sorted(range(len(options)), key=lambda index: -_left(options[index])):
        chains = kinds.setdefault((options[index].precision, options[index].parts, words[index]), [])
        longer = (chain for chain in chains if _left(options[chain[-1]]) > _left(options[index]))
        chain = next(longer, None)
        if chain is None:
            chains.append([index])
        else:
            chain.append(index)
    return [chain for chains in kinds.values() for chain in chains]


def _left(effect: Effect) -> float:
    return sum(effect.macs) + sum(
        weights * min(bits, 1 + density * bits)
        for weights, bits, density in zip(effect.weights, effect.bits, effect.density, strict=True)
    )


def _ordered(values: Array, measured: Array) -> Array:
    """Numbers that do not decrease, as near as can be to what was measured; guesses are put between (values,)."""
    ordered = values.copy()
    ordered[measured] = _increasing(values[measured])
    above = np.minimum.accumulate(np.where(measured, ordered, np.inf)[::-1])[::-1]
    result: Array = np.maximum.accumulate(np.minimum(ordered, above))
    return result


def _increasing(values: Array) -> Array:
    """The nearest numbers that do not decrease, by pooling neighbors that do (isotonic regression)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (left, m), (right, n) = pools[-2], pools[-1]
            pools[-2:] = [((left * m + right * n) / (m + n), m + n)]
    return np.array([value for value, count in pools for _ in range(count)])
