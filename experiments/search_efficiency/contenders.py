"""The strategies that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, RandomSampler, TPESampler

from autocompress.front import pareto_front
from autocompress.plan import Scalar
from autocompress.record import Record, Trial
from autocompress.space import Suggest, neutral, record_answers
from autocompress.strategies import STRATEGIES, Fits, Problem, SearchStrategy, always
from autocompress.strategies._guided.solver import mutations
from autocompress.strategies._mating import KnobsOfParents, Mating
from autocompress.strategies._optuna import OptunaStrategy
from autocompress.strategies.guided import Guided, Parts


class UnivariateTPE(OptunaStrategy):
    """Optuna's default sampler."""

    name = "tpe_univariate"

    def make_sampler(self, seed: int) -> BaseSampler:
        """TPE that looks at each knob by itself."""
        return TPESampler(seed=seed)


class NSGA3(OptunaStrategy):
    """Optuna's NSGA-III with the population of our NSGA-II."""

    name = "nsga3"
    skips_pruned = True

    def make_sampler(self, seed: int) -> BaseSampler:
        """An NSGA-III sampler, with children as those of our NSGA-II."""
        return _NSGA3(seed=seed, population_size=20, child_generation_strategy=Mating(seed))


class _NSGA3(KnobsOfParents, NSGAIIISampler):
    pass


class GP(OptunaStrategy):
    """Optuna's Gaussian process."""

    name = "gp"
    skips_pruned = True

    def make_sampler(self, seed: int) -> BaseSampler:
        """A GP sampler."""
        return GPSampler(seed=seed)


class UniformThenLocal(OptunaStrategy):
    """Uniform policies, then random changes of one to three sites of the front."""

    name = "uniform_local"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._records: list[Record] = []

    def make_sampler(self, seed: int) -> BaseSampler:
        """Answers what local search leaves open."""
        return RandomSampler(seed=seed)

    def ask(self, fits: Fits = always) -> Trial | None:
        """A policy, else a change of a model of the front."""
        if not self._policies:
            rng = np.random.default_rng([self._problem.seed, self._next])
            front = pareto_front(self._records, self._problem.objectives)
            for _ in range(100):
                record = front[int(rng.integers(len(front)))]
                landscape = self._problem.landscapes[record.plan.architecture]
                parent = landscape.point(record.trial.proposal.params)
                point = mutations(landscape, [parent], 1, rng)[0]
                asked = self._answers(landscape.answers(point))
                trial = self._propose(self._next, self.name, 0, answers=asked, fits=fits)
                if trial is not None:
                    return trial
        return super().ask(fits)

    def _answers(self, given: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """All answers behind a point, the neutral ones too."""
        asked: dict[str, Scalar] = {}
        self._problem.plan(record_answers(_replayed(given), asked))
        return asked

    def tell(self, record: Record) -> None:
        """Keep what was found."""
        self._records.append(record)
        super().tell(record)


def _replayed(answers: Mapping[str, Scalar]) -> Suggest:
    """The answers, and the neutral one for all other knobs."""
    return lambda name, knob: answers.get(name, neutral(knob))


@dataclass(frozen=True)
class Contender:
    """A strategy under test.

    Args:
        make: Builds it.
        policies: Whether it is given the uniform policies to begin with.
        screens: Whether plans are measured before they are trained, and dropped where the front has better ones.
        of_training: Whether it differs from another only where models are trained.
    """

    make: Callable[[Problem], SearchStrategy]
    policies: bool = False
    screens: bool = True
    of_training: bool = False


CONTENDERS: dict[str, Contender] = {
    "random": Contender(STRATEGIES["random"]),
    "tpe_univariate": Contender(UnivariateTPE),
    "tpe_multivariate": Contender(STRATEGIES["tpe"]),
    "nsga2": Contender(STRATEGIES["nsga2"]),
    "nsga3": Contender(NSGA3),
    "gp": Contender(GP),
    "tpe_with_policies": Contender(STRATEGIES["tpe"], policies=True),
    "uniform_local": Contender(UniformThenLocal, policies=True),
    "guided": Contender(Guided, policies=True),
    "guided_without_table": Contender(lambda problem: Guided(problem, Parts(table=False)), policies=True),
    "guided_without_refit": Contender(lambda problem: Guided(problem, Parts(refit=False)), policies=True),
    "guided_without_uniform": Contender(lambda problem: Guided(problem, Parts(uniform=False)), policies=True),
    "guided_without_inheritance": Contender(
        lambda problem: Guided(problem, Parts(inheritance=False)), policies=True, of_training=True
    ),
    "guided_without_screening": Contender(Guided, policies=True, screens=False, of_training=True),
}
