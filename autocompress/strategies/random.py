"""Random search."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autocompress.plan import Scalar
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
        """A sampler that draws evenly."""
        return _Evenly(seed)


class _Evenly(BaseSampler):
    """Draws from each knob as Optuna's `RandomSampler` does, in a tenth of the time, which counts with 150 knobs.

    Args:
        seed: Of what is drawn.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: no knob depends on another."""
        del study, trial
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        del study, trial, search_space
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Scalar:
        """One of the values of a knob."""
        del study, trial, param_name
        match param_distribution:
            case CategoricalDistribution(choices=choices):
                drawn: Scalar = choices[self._rng.integers(len(choices))]  # type: ignore[assignment]
                return drawn
            case IntDistribution(low=low, high=high, step=step):
                return low + step * int(self._rng.integers((high - low) // step + 1))
            case FloatDistribution(low=low, high=high, step=None):
                return float(self._rng.uniform(low, high))
            case FloatDistribution(low=low, high=high, step=float(step)):
                return low + step * int(self._rng.integers(round((high - low) / step) + 1))
        raise TypeError(f"{param_distribution!r}: expected a distribution of Optuna")
