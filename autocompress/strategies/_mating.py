"""How genetic samplers make a child where trials of different architectures are asked different knobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from autocompress.plan import ARCHITECTURE

MUTATIONS = 1.0
"""Knobs of a child that are drawn anew, on average."""


class KnobsOfParents:
    """For genetic samplers of Optuna with `Mating`, whose children have the knobs of their parents.

    By themselves they look in all trials for the knobs that these share: where architectures differ, nothing else.
    """

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing, as no trial but the parents is looked at."""
        del study, trial
        return {}


class Mating:
    """A child of two parents with the same architecture, by uniform crossover of all their knobs and some mutations.

    Args:
        seed: Of what is drawn.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(
        self, study: Study, search_space: dict[str, BaseDistribution], parents: Sequence[FrozenTrial]
    ) -> dict[str, Any]:
        """Answers of the child to knobs that offer more than one; what is left out is drawn evenly."""
        del search_space
        ordered = sorted(parents, key=lambda one: one.number)
        first = ordered[int(self._rng.integers(len(ordered)))]
        mates = [one for one in ordered if one.params.get(ARCHITECTURE) == first.params.get(ARCHITECTURE)]
        second = mates[int(self._rng.integers(len(mates)))]
        known = sorted(name for name, knob in first.distributions.items() if not knob.single())
        child = {}
        for name in known:
            giver = second if self._rng.random() < 0.5 and name in second.params else first
            if self._rng.random() >= MUTATIONS / len(known):
                child[name] = giver.params[name]
        return child
