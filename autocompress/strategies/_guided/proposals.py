"""What may be tried next: points of the solver, uniform policies, and what Optuna's TPE suggests among policies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from autocompress.data import Array
from autocompress.landscape import Landscape
from autocompress.plan import ORIGINAL, Plan, Scalar
from autocompress.strategies._base import Problem, derived_seed
from autocompress.strategies._guided.models import Models
from autocompress.strategies._guided.policies import LATEST_RESULTS, Policy, PolicySpace
from autocompress.strategies._guided.results import Result, Results
from autocompress.strategies._guided.solver import climb, everything, sweep
from autocompress.strategies._guided.training import Training
from autocompress.strategies._guided.worth import gained, worth
from autocompress.strategies._guided.yardstick import Yardstick

SMALL = 4096
"""Points of a space up to which all of them are looked at."""

CLIMBS = 6
"""Points that the solver makes better by what they promise, the best of its sweep."""

SUGGESTIONS = 4
"""Policies that TPE suggests for each sweep, which also begins from them."""

OTHERS_SOLVED = 2
"""Architectures beside the original that are solved at a time: a sweep takes as long for each."""

Points = tuple[str, Array, list[str]]
"""An architecture, points of it (points, sites), and what proposed each."""


def is_small(landscapes: Mapping[str, Landscape]) -> bool:
    """True if all points of a space can be looked at."""
    return sum(math.prod(map(int, one.sizes)) for one in landscapes.values()) <= SMALL


@dataclass(frozen=True)
class Proposer:
    """Finds what may be tried after some results.

    Args:
        problem: What is searched.
        policies: The uniform policies, by answers and plans.
        space: In which TPE suggests policies.
        training: How candidates would be trained.
        damages: By architecture: what each change does to the outputs.
        yardstick: What results and predictions are worth.
    """

    problem: Problem
    policies: Sequence[tuple[Mapping[str, Scalar], Plan]]
    space: PolicySpace
    training: Training
    damages: Mapping[str, Array]
    yardstick: Yardstick

    def after(self, results: Results, models: Models, number: int) -> Iterator[Points]:
        """What the solver, the policies and TPE propose; of a small space everything.

        Args:
            results, models: All that is known.
            number: Of the trial that is the first to choose from it.
        """
        if is_small(self.problem.landscapes):
            for name, landscape in self.problem.landscapes.items():
                points = everything(landscape)
                yield name, points, ["solver"] * len(points)
            return
        found: dict[str, list[tuple[Array, str]]] = {name: [] for name in self.problem.landscapes}
        for answers, plan in self.policies:
            found[plan.architecture].append((self.problem.landscapes[plan.architecture].point(answers), "policy"))
        seed = derived_seed(self.problem.seed, "tpe", number)
        for policy in self.space.suggest(self.told(results), SUGGESTIONS, seed):
            architecture, point = self.space.decode(policy)
            found[architecture].append((point, "tpe"))
        for name in self._worth_solving(results):
            solved = self._solved(name, [point for point, _ in found[name]], results, models)
            found[name] += [(point, "solver") for point in solved]
        for name, pairs in found.items():
            if pairs:
                yield name, np.array([point for point, _ in pairs]), [source for _, source in pairs]

    def told(self, results: Results) -> list[tuple[Policy, list[float]]]:
        """What TPE is told: policies and costs of the latest results that are final; if any obeys bounds, of those."""
        final = [
            result
            for number, result in sorted(results.by_number.items())
            if number > 0 and result.record.trial.fidelity >= 1
        ]
        allowed = [result for result in final if self.yardstick.obeys(result.record.values)]
        return [(self._policy(result), self._costs(result)) for result in (allowed or final)[-LATEST_RESULTS:]]

    def _policy(self, result: Result) -> Policy:
        return self.space.encode(result.architecture, result.point)

    def _costs(self, result: Result) -> list[float]:
        return [objective.cost(result.record.values) for objective in self.problem.objectives]

    def _worth_solving(self, results: Results) -> tuple[str, ...]:
        """The original, and the other architectures that the front holds most of."""
        counts: dict[str, int] = {}
        for result in results.front:
            counts[result.architecture] = counts.get(result.architecture, 0) + 1
        counts.pop(ORIGINAL, None)
        others = sorted(counts, key=lambda name: (-counts[name], name))[:OTHERS_SOLVED]
        return tuple(name for name in (ORIGINAL, *others) if len(self.problem.landscapes[name].sites))

    def _solved(self, name: str, others: Sequence[Array], results: Results, models: Models) -> Iterator[Array]:
        """Points of an architecture for every exchange of costs, and better ones near the best of them.

        Args:
            name: Of the architecture.
            others: Points to begin from, beside the unchanged network and what is on the front.
            results, models: All that is known.
        """
        landscape = self.problem.landscapes[name]
        on_front = [result.point for result in results.front if result.architecture == name]
        starts = np.array([landscape.neutral(), *others, *on_front])
        objectives = tuple(objective.name for objective in self.problem.objectives)
        price = models.price(name, objectives, partial(self.training.epochs_needed, name))
        solved = np.unique([*starts, *sweep(landscape, price, starts)], axis=0)
        gain = gained(self.yardstick, models, results.front, ())
        known = {result.point.tobytes() for result in results.by_number.values() if result.architecture == name}

        def value(points: Array) -> Array:
            """What points promise; nothing if they are known (points,)."""
            sources = ["solver"] * len(points)
            some = self.training.first_rung(name, points, sources, results, self.damages[name])
            is_new = np.array([point.tobytes() not in known for point in points])
            promised: Array = worth(self.yardstick, models, gain, some) * is_new
            return promised

        best = solved[np.argsort(-value(solved), kind="stable")[:CLIMBS]]
        yield from climb(landscape, value, best)
        yield from solved
