"""Random search."""

from __future__ import annotations

from typing import ClassVar

from optuna.samplers import BaseSampler, RandomSampler

from autocompress.strategies._base import STRATEGIES
from autocompress.strategies._optuna import OptunaStrategy


@STRATEGIES.register
class Random(OptunaStrategy):
    """Every knob drawn evenly and by itself.

    References:
        Bergstra and Bengio, "Random search for hyper-parameter optimization", 2012.
    """

    name: ClassVar[str] = "random"

    def make_sampler(self, seed: int) -> BaseSampler:
        """A random sampler."""
        return RandomSampler(seed=seed)
