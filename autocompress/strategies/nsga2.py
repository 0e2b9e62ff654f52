"""Genetic search by non-dominated sorting."""

from __future__ import annotations

from typing import ClassVar

from optuna.samplers import BaseSampler, NSGAIISampler

from autocompress.strategies._base import STRATEGIES
from autocompress.strategies._optuna import OptunaStrategy

POPULATION = 20


@STRATEGIES.register
class NSGA2(OptunaStrategy):
    """Optuna's NSGA-II with a population small enough for budgets of a hundred trials.

    References:
        Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002.
    """

    name: ClassVar[str] = "nsga2"
    skips_pruned: ClassVar[bool] = True

    def make_sampler(self, seed: int) -> BaseSampler:
        """An NSGA-II sampler; its generations are kept in the study."""
        return NSGAIISampler(seed=seed, population_size=POPULATION)
