"""A few numbers that say how much of each method there is, decoded through the table; Optuna's TPE searches them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from autocompress.data import Array
from autocompress.landscape import Landscape
from autocompress.plan import ARCHITECTURE

Policy = Mapping[str, float | str]
"""`architecture`, and for each method how much of what it could save is saved, in [0, 1]."""

LATEST_RESULTS = 200
"""Results that the sampler looks at."""


def savings(landscape: Landscape) -> Array:
    """What each change alone saves of the multiply-adds and of the bytes, summed as shares (changes,)."""
    work = landscape.work(np.vstack([landscape.neutral(), landscape.single_changes]))
    slow = work.macs * np.where(work.precision > 0, 0.5, 1.0)
    macs, stored = slow.sum(axis=1), work.stored_bytes.sum(axis=1)
    saved: Array = (1 - macs / max(macs[0], 1))[1:] + (1 - stored / max(stored[0], 1))[1:]
    return np.maximum(saved, 0.0)


class PolicySpace:
    """The policies of some landscapes.

    Args:
        landscapes: By architecture.
        damages: Divergence of each change, by architecture.
    """

    def __init__(self, landscapes: Mapping[str, Landscape], damages: Mapping[str, Array]) -> None:
        self._landscapes = landscapes
        self._savings = {name: savings(landscape) for name, landscape in landscapes.items()}
        self._names = sorted({method for landscape in landscapes.values() for method in landscape.methods})
        self._changes = {name: _changes_of(landscape) for name, landscape in landscapes.items()}
        self._most = {name: _most_saved(landscape, self._savings[name]) for name, landscape in landscapes.items()}
        self._order = {
            name: np.argsort(damages[name] / (self._savings[name] + 1e-6), kind="stable") for name in landscapes
        }

    def distributions(self) -> dict[str, BaseDistribution]:
        """What a policy consists of."""
        found: dict[str, BaseDistribution] = {ARCHITECTURE: CategoricalDistribution(tuple(self._landscapes))}
        return found | {method: FloatDistribution(0.0, 1.0) for method in self._names}

    def encode(self, architecture: str, point: Array) -> Policy:
        """How much of each method a point has."""
        landscape, saved = self._landscapes[architecture], self._savings[architecture]
        amounts = dict.fromkeys(self._names, 0.0)
        own, most = landscape.one_hot(point[None])[0] * saved, self._most[architecture]
        for method, changes in self._changes[architecture].items():
            if most[method] > 0:
                amounts[method] = min(1.0, float(own[changes].sum()) / most[method])
        return {ARCHITECTURE: architecture, **amounts}

    def decode(self, policy: Policy) -> tuple[str, Array]:
        """Architecture and point of a policy: of each method the changes that hurt least for what they save."""
        architecture = str(policy[ARCHITECTURE])
        landscape, saved = self._landscapes[architecture], self._savings[architecture]
        point = landscape.neutral()
        most = self._most[architecture]
        own = dict.fromkeys(most, 0.0)
        for change in self._order[architecture]:
            site, option = landscape.changes[change]
            method = landscape.sites[site].method
            before = saved[landscape.offsets[site] + point[site] - 1] if point[site] else 0.0
            if own[method] < float(policy[method]) * most[method] - 1e-9 and saved[change] > before:
                own[method] += float(saved[change] - before)
                point[site] = option
        return architecture, landscape.canonical(point[None])[0]

    def suggest(self, results: Sequence[tuple[Policy, Sequence[float]]], count: int, seed: int) -> list[Policy]:
        """Policies that TPE expects something of.

        Args:
            results: Policies that were tried, and their costs, less being better.
            count: How many to suggest.
            seed: For the sampler.
        """
        space = self.distributions()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            axes = len(results[0][1]) if results else 1
            sampler = TPESampler(seed=seed, multivariate=True, n_startup_trials=10)
            study = optuna.create_study(directions=["minimize"] * axes, sampler=sampler)
            for policy, costs in results:
                study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.COMPLETE, params=dict(policy), distributions=space, values=list(costs)
                    )
                )
            return [dict(study.ask(space).params) for _ in range(count)]


def _changes_of(landscape: Landscape) -> dict[str, Array]:
    """The changes of each method."""
    owners = [landscape.sites[site].method for site, _ in landscape.changes]
    return {
        method: np.array([change for change, owner in enumerate(owners) if owner == method])
        for method in landscape.methods
    }


def _most_saved(landscape: Landscape, saved: Array) -> dict[str, float]:
    """What each method saves where every site takes the change that saves most."""
    most = dict.fromkeys(landscape.methods, 0.0)
    for site, size in enumerate(landscape.sizes):
        start = int(landscape.offsets[site])
        most[landscape.sites[site].method] += float(saved[start : start + size - 1].max())
    return most
