"""Multivariate tree-structured Parzen estimator."""

from __future__ import annotations

from typing import ClassVar

from optuna.samplers import BaseSampler, TPESampler

from autocompress.strategies._base import STRATEGIES
from autocompress.strategies._optuna import OptunaStrategy


@STRATEGIES.register
class TPE(OptunaStrategy):
    """Optuna's multivariate TPE, with the knobs of each architecture as a group of their own.

    References:
        Bergstra et al., "Algorithms for hyper-parameter optimization", 2011; Ozaki et al., "Multiobjective
        tree-structured Parzen estimator", 2022.
    """

    name: ClassVar[str] = "tpe"

    def make_sampler(self, seed: int) -> BaseSampler:
        """A TPE sampler that counts running trials as bad, so that parallel workers spread."""
        return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
