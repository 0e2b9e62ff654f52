"""The default: uniform policies, a table of sensitivities, models of cost and accuracy, and a solver over the front."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import ClassVar

import numpy as np

from autocompress.data import Array
from autocompress.front import feasible, pareto_front
from autocompress.landscape import Landscape
from autocompress.plan import ORIGINAL, Plan, Recovery, Scalar, split_epochs
from autocompress.probe import Probe, Sensitivity
from autocompress.record import Proposal, Record, Trial
from autocompress.space import Knob, neutral
from autocompress.strategies._base import STRATEGIES, Problem, SearchStrategy
from autocompress.strategies._guided.accuracy import restored
from autocompress.strategies._guided.costs import COSTS
from autocompress.strategies._guided.damage import Key, damages, key_of
from autocompress.strategies._guided.gain import Gain, exclusive_volumes
from autocompress.strategies._guided.models import Models, Result
from autocompress.strategies._guided.policies import LATEST_RESULTS, PolicySpace, savings
from autocompress.strategies._guided.relatives import Relative, is_held, nearest
from autocompress.strategies._guided.solver import everything, mutations, sweep
from autocompress.strategies._guided.study import StudyView
from autocompress.strategies._guided.yardstick import Yardstick

TABLE_SHARE = 0.15
"""Share of the budget that looking at single changes may take."""

LOOKS_FOR_A_TRIAL = 3
"""Entries of the table for each trial that is allowed, at most."""

FINAL_SHARE = 0.75
"""Share of the budget after which nothing begins that was not trained before."""

BLOCK = 8
"""Trials after which the solver sweeps anew."""

SMALL = 4096
"""Points of a space up to which all of them are looked at."""

ETA = 3
"""Factor from one rung of training to the next; one of so many models of a rung goes on."""

RUNGS = 3

WORTHWHILE_S = 3.0
"""Seconds of training on the first rung at least: what a trial takes beside it."""

LATEST = 12
"""Finished models beside the front whose trained weights are kept."""

MOST_RANKED = 60
"""Models of a rung that are compared, the latest ones."""

QUANTILES = np.array([-1.64, -1.04, -0.67, -0.39, -0.13, 0.13, 0.39, 0.67, 1.04, 1.64])
"""Standard normal numbers that stand for a tenth of all each."""

LEAST_GAIN = 5e-4
"""Gain of hypervolume below which a model is not told from its neighbors: the grid is no finer, nor is a score."""

NEXT_TO_NOTHING = 1e-9
"""What decides where no candidate promises anything: how likely it obeys the constraints, and its time."""


Gained = Callable[[Array, Mapping[str, Array]], Array]
"""What models of some losses and shares of the baseline's costs would add (models,)."""


@dataclass(frozen=True)
class Parts:
    """What the strategy does; all of it by default, less to see what each part is worth."""

    table: bool = True
    refit: bool = True
    uniform: bool = True
    inheritance: bool = True


@dataclass(frozen=True)
class _Candidates:
    """Points of one architecture that may be tried, and how they would be trained; all (points,) but the first two.

    Args:
        architecture: Of all of them.
        points: Options (points, sites).
        sources: What proposed each.
        starts: Trial whose weights it would start from, or 0.
        promotes: True for more training of the very model it starts from.
        before: Epochs that count for it already.
        own: Epochs that it would be given now.
        total: Epochs at which its worth is judged.
    """

    architecture: str
    points: Array
    sources: Sequence[str]
    starts: Array
    promotes: Array
    before: Array
    own: Array
    total: Array


@STRATEGIES.register
class Guided(SearchStrategy):
    """Spends each second where it adds most to the hypervolume.

    First come the uniform policies that need no training, so that a front exists at once; then every single change is
    looked at without training or labels, the most promising first; then models of cost and accuracy, refitted on every
    result, tell a solver what to try over the whole front. Points near the front, uniform policies and what Optuna's
    TPE says in the space of policies compete with what the solver finds. Models that need training begin with little of
    it, from the weights of their nearest relative; the best of each rung go on. The last quarter of the budget goes to
    those that were trained before.

    Args:
        problem: What to search.
        parts: What to leave out.

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020, for the rungs.
    """

    name: ClassVar[str] = "guided"
    has_rungs: ClassVar[bool] = True

    def __init__(self, problem: Problem, parts: Parts = Parts()) -> None:
        self._problem, self._parts = problem, parts
        self._landscapes = problem.landscapes
        self._policies = list(problem.policies) if parts.uniform else []
        self._seen: set[str] = {Plan().digest}
        self._tried: set[tuple[str, bytes]] = {(ORIGINAL, self._landscapes[ORIGINAL].neutral().tobytes())}
        self._next = 1
        self._yardstick: Yardstick | None = None
        self._results: dict[int, Result] = {}
        self._front: list[Result] = []
        self._running: dict[int, tuple[str, Array, float]] = {}
        self._promoted: set[int] = set()
        self._known_methods: set[str] = set()
        self._offered: set[str] = set()
        self._elapsed_s = 0.0
        self._table: dict[str, Sensitivity] = {}
        self._probes = self._list_probes() if parts.table else {}
        self._waiting = list(self._probes)
        self._damage: dict[str, Array] | None = None
        self._policy_space: PolicySpace | None = None
        self._models: Models | None = None
        self._block: tuple[int, list[tuple[str, Array, list[str]]]] | None = None
        self._full = {name: self._full_epochs(name) for name in self._landscapes}
        self._study = StudyView(problem.journal, problem.objectives, self._policy_view.distributions())

    # -- the strategy's face -------------------------------------------------------------------------------------

    def ask(self) -> Trial | Probe | None:
        """An untrained policy, an entry of the table, the first policy of a method, or what promises most."""
        for answers, plan in self._policies:
            if not plan.recovery.epochs and plan.digest not in self._seen | self._offered:
                self._offered.add(plan.digest)
                point = self._landscapes[plan.architecture].point(answers)
                trial = self._propose(_single(plan.architecture, point, "policy"), 0)
                if trial is not None:
                    return trial
        if self._waiting and self._may_look():
            return self._probes[self._waiting.pop(0)][0]
        return self._policy_of_new_method() or self._next_trial()

    def tell(self, record: Record) -> None:
        """Learn from a finished trial."""
        self._seen.add(record.plan.digest)
        self._known_methods |= {step.method for step in record.plan.steps}
        self._next = max(self._next, record.number + 1)
        self._elapsed_s = max(self._elapsed_s, record.ended_s)
        self._running.pop(record.number, None)
        if record.number == 0:
            self._yardstick = Yardstick(self._problem, record.values)
        landscape = self._landscapes.get(record.plan.architecture)
        if landscape is None:  # it can't be built any more
            self._study.end(record, None, whole=True)
            return
        attributes = record.trial.proposal.attributes
        point = landscape.point(record.trial.proposal.params)
        self._tried.add((landscape.architecture, point.tobytes()))
        self._promoted.add(int(attributes.get("promotes", 0)))
        policy = self._policy_view.encode(landscape.architecture, point)
        self._study.end(record, policy, whole=record.trial.fidelity >= 1)
        if record.status != "complete":
            return
        assert self._yardstick is not None, "the baseline is told first"
        result = Result(
            record.number,
            landscape.architecture,
            point,
            float(attributes.get("before", 0.0)) + record.plan.recovery.epochs,
            float(attributes.get("before", 0.0)) + self._free_epochs(landscape, point, record.plan.recovery.epochs),
            int(attributes.get("rung", 0)),
            self._yardstick.loss(record.values[self._problem.the_metric.name]),
            self._yardstick.shares(record.values),
            record,
        )
        self._results[record.number] = result
        self._front = self._front_of([*self._front, result])
        if self._models is not None and (self._parts.refit or record.number == 0):
            self._models.learn(result)

    def note(self, entry: Sensitivity) -> None:
        """Learn from a change that was looked at."""
        digest = entry.plan.digest
        self._elapsed_s = max(self._elapsed_s, entry.ended_s)
        if digest in self._probes:
            self._table[digest] = entry
            self._models = self._block = self._damage = self._policy_space = None
            if digest in self._waiting:
                self._waiting.remove(digest)

    def parents(self) -> frozenset[str]:
        """The trained models of the front, and the latest ones."""
        return frozenset(result.record.plan.digest for result in self._trained())

    # -- the table -----------------------------------------------------------------------------------------------

    def _list_probes(self) -> dict[str, tuple[Probe, int]]:
        """Every change of the original by the digest of its plan: those that save most first, methods by turns."""
        landscape = self._landscapes[ORIGINAL]
        saved = savings(landscape)
        by_method: dict[str, list[int]] = {}
        for change in np.argsort(-saved, kind="stable"):
            by_method.setdefault(landscape.sites[landscape.changes[change][0]].method, []).append(int(change))
        found = {}
        for turn in zip_longest(*by_method.values()):
            for change in turn:
                if change is not None:
                    site, option = landscape.changes[change]
                    plan = self._plan(dict(landscape.sites[site].options[option])).without_recovery()
                    found[plan.digest] = Probe(plan, self._problem.seed), change
        return found

    def _may_look(self) -> bool:
        """True while the table has taken less than its share of the budget, and has not many times the trials."""
        if self._problem.trials is not None and len(self._table) >= LOOKS_FOR_A_TRIAL * self._problem.trials:
            return False
        if self._problem.budget_s is None:
            return True
        spent_s = sum(entry.seconds for entry in self._table.values()) / self._problem.workers
        return spent_s < TABLE_SHARE * self._problem.budget_s

    @property
    def _damages(self) -> dict[str, Array]:
        if self._damage is None:
            original = self._landscapes[ORIGINAL]
            known: dict[Key, float] = {
                key_of(original, self._probes[digest][1]): entry.divergence
                for digest, entry in sorted(self._table.items())
                if not entry.reason
            }
            self._damage = {name: damages(landscape, known) for name, landscape in self._landscapes.items()}
        return self._damage

    @property
    def _policy_view(self) -> PolicySpace:
        if self._policy_space is None:
            self._policy_space = PolicySpace(self._landscapes, self._damages)
        return self._policy_space

    def _policy_of_new_method(self) -> Trial | None:
        """The first policy with a method that no trial has had yet, since nothing is known of how it recovers."""
        if self._is_late:
            return None
        for answers, plan in self._policies:
            name, methods = plan.architecture, {step.method for step in plan.steps}
            if name == ORIGINAL and not methods <= self._known_methods:
                self._known_methods |= methods
                point = self._landscapes[name].point(answers)
                trial = self._propose(self._trained_as_needed(name, point[None], ["policy"]), 0)
                if trial is not None:
                    return trial
        return None

    # -- what next -----------------------------------------------------------------------------------------------

    def _next_trial(self) -> Trial | None:
        """The candidate that adds most for its time; None if there is nothing new."""
        models = self._fitted()
        gain = self._gain(models)
        best: tuple[float, _Candidates, int] | None = None
        for candidates in self._candidates():
            if not len(candidates.points):
                continue
            worth = self._worth(models, gain, candidates)
            row = int(np.argmax(worth))
            if best is None or worth[row] > best[0]:
                best = float(worth[row]), candidates, row
        if best is None:
            return self._by_chance()
        return self._propose(best[1], best[2]) or self._next_trial()

    def _propose(self, candidates: _Candidates, row: int) -> Trial | None:
        """The trial of a candidate; None if its plan is known, since another point rounds to it."""
        name, point, start = candidates.architecture, candidates.points[row], int(candidates.starts[row])
        self._tried.add((name, point.tobytes()))
        self._promoted.add(start if candidates.promotes[row] else 0)
        plan = self._plan(self._landscapes[name].answers(point))
        point = self._landscapes[name].realized(plan)
        own, trained = int(candidates.own[row]), float(candidates.before[row] + candidates.own[row])
        attributes: dict[str, Scalar] = {}
        if plan.recovery.epochs:
            recovery = replace(plan.recovery, epochs=own) if own else Recovery()
            if start:
                recovery = recovery.without_penalty()
                attributes |= {"start": start, "before": float(candidates.before[row])}
            plan = replace(plan, recovery=recovery, start=self._results[start].record.plan if start else None)
        if candidates.promotes[row]:
            attributes |= {"promotes": start, "rung": self._results[start].rung + 1}
        if plan.digest in self._seen:
            return None
        attributes |= self._expectations(name, point, trained)
        number = self._next
        self._next += 1
        self._seen.add(plan.digest)
        self._running[number] = name, point, trained
        source = candidates.sources[row]
        self._study.begin(number, source, self._policy_view.encode(name, point))
        fidelity = min(1.0, trained / self._full[name]) if self._full[name] and plan.total_epochs else 1.0
        return Trial(
            number,
            plan,
            seed=self._problem.seed,
            fidelity=fidelity,
            proposal=Proposal(source, self._landscapes[name].answers(point), attributes),
        )

    def _expectations(self, architecture: str, point: Array, epochs: float) -> dict[str, Scalar]:
        """What the models say of a trial before it is run, by which they can be judged afterwards."""
        models = self._fitted()
        loss, deviation = models.accuracy.predict(architecture, point[None], np.array([epochs]))
        costs = {name: float(mean[0]) for name, (mean, _) in models.costs.predict(architecture, point[None]).items()}
        told = {"expected_loss": float(restored(loss)[0]), "expected_deviation": float(deviation[0])}
        told |= {f"expected_{name}_ratio": costs[name] for name in COSTS}
        told["expected_epoch_s"] = float(models.epoch_s(architecture, point[None])[0])
        return {name: round(value, 5) for name, value in told.items()}

    def _by_chance(self) -> Trial | None:
        """A random point that was not tried; None if none is found."""
        rng = np.random.default_rng(self._seed_of("chance", self._next))
        names = list(self._landscapes)
        for _ in range(200):
            name = names[int(rng.integers(len(names)))]
            landscape = self._landscapes[name]
            drawn = (rng.random(len(landscape.sizes)) * landscape.sizes).astype(np.int64)
            point = landscape.canonical(drawn[None])[0]
            if (name, point.tobytes()) not in self._tried:
                trial = self._propose(self._trained_as_needed(name, point[None], ["random"]), 0)
                if trial is not None:
                    return trial
        return None

    def _candidates(self) -> Iterator[_Candidates]:
        """All that may be done next."""
        for name, points, sources in (*self._proposals(), *self._near_front()):
            fresh = [row for row, point in enumerate(points) if (name, point.tobytes()) not in self._tried]
            if fresh:
                candidates = self._trained_as_needed(name, points[fresh], [sources[row] for row in fresh])
                if not self._is_late:
                    yield candidates
                    continue
                kept = np.flatnonzero((candidates.starts > 0) | (candidates.own == 0))
                yield _chosen(candidates, kept)
        yield from self._promotions()

    def _proposals(self) -> list[tuple[str, Array, list[str]]]:
        """What the solver, the policies and TPE propose; the same for all trials of a block."""
        first = self._next - (self._next - 1) % BLOCK
        if self._block is None or self._block[0] != first:
            self._block = first, list(self._make_proposals(first))
        return self._block[1]

    def _make_proposals(self, first: int) -> Iterator[tuple[str, Array, list[str]]]:
        if self._is_small:
            for name, landscape in self._landscapes.items():
                points = everything(landscape)
                yield name, points, ["solver"] * len(points)
            return
        found: dict[str, list[tuple[Array, str]]] = {name: [] for name in self._landscapes}
        for answers, plan in self._policies:
            found[plan.architecture].append((self._landscapes[plan.architecture].point(answers), "policy"))
        for policy in self._policy_view.suggest(self._told_before(first), 4, self._seed_of("tpe", first)):
            architecture, point = self._policy_view.decode(policy)
            found[architecture].append((point, "tpe"))
        is_now = max(self._results) < first  # else the block began in an earlier process
        models = self._fitted() if is_now else self._models_before(first)
        front = self._front if is_now else self._front_of(self._before(first))
        objectives = tuple(objective.name for objective in self._problem.objectives)
        for name in self._worth_solving(front):
            landscape = self._landscapes[name]
            known = [result.point for result in front if result.architecture == name]
            starts = np.array([landscape.neutral(), *(point for point, _ in found[name]), *known])
            price = models.price(name, objectives, self._full[name])
            found[name] += [(point, "solver") for point in sweep(landscape, price, starts)]
        for name, pairs in found.items():
            if pairs:
                yield name, np.array([point for point, _ in pairs]), [source for _, source in pairs]

    @property
    def _is_small(self) -> bool:
        """True if all points can be looked at."""
        return sum(math.prod(map(int, one.sizes)) for one in self._landscapes.values()) <= SMALL

    @property
    def _is_late(self) -> bool:
        """True once the rest of the budget belongs to what was trained before."""
        budget_s = self._problem.budget_s
        return budget_s is not None and self._elapsed_s > FINAL_SHARE * budget_s

    def _near_front(self) -> Iterator[tuple[str, Array, list[str]]]:
        """Points near those of the front now."""
        rng = np.random.default_rng(self._seed_of("local", self._next))
        parents: dict[str, list[Array]] = {}
        for result in self._front:
            parents.setdefault(result.architecture, []).append(result.point)
        for name, points in () if self._is_small else parents.items():
            if len(self._landscapes[name].sites):
                near = mutations(self._landscapes[name], points, 96, rng)
                yield name, near, ["local"] * len(near)

    def _worth_solving(self, front: Sequence[Result]) -> tuple[str, ...]:
        """The original, and the two other architectures that the front holds most of."""
        counts: dict[str, int] = {}
        for result in front:
            counts[result.architecture] = counts.get(result.architecture, 0) + 1
        counts.pop(ORIGINAL, None)
        others = sorted(counts, key=lambda name: (-counts[name], name))[:2]
        return tuple(name for name in (ORIGINAL, *others) if len(self._landscapes[name].sites))

    # -- training ------------------------------------------------------------------------------------------------

    def _full_epochs(self, architecture: str) -> int:
        """Epochs of a model that is trained in full."""
        if architecture != ORIGINAL:
            return self._plan({"architecture": architecture}).recovery.epochs
        landscape = self._landscapes[ORIGINAL]
        recovering = (change for change, needs in zip(landscape.changes, landscape.recovers, strict=True) if needs)
        site, option = next(recovering, (None, None))
        if site is None or option is None:
            return 0
        plan = self._plan(dict(landscape.sites[site].options[option]))
        return plan.recovery.epochs

    def _free_epochs(self, landscape: Landscape, point: Array, epochs: int) -> int:
        """Epochs of a recovery whose weights others may start from."""
        rebuilt = landscape.architecture != ORIGINAL or bool(point[landscape.early].any())
        return split_epochs(epochs, is_rebuilt=rebuilt, is_held=bool(is_held(landscape, point[None])[0]))[0]

    def _first_epochs(self, architecture: str) -> int:
        """Epochs of a model on the first rung."""
        full = self._full[architecture]
        first = max(full / ETA ** (RUNGS - 1), WORTHWHILE_S / self._problem.epoch_s)
        return min(full, max(1, round(first))) if self._parts.inheritance else full

    def _trained_as_needed(self, name: str, points: Array, sources: Sequence[str]) -> _Candidates:
        """Points with the training of the first rung, from their nearest relatives."""
        landscape, full = self._landscapes[name], float(self._full[name])
        relatives = [
            Relative(result.number, result.point, result.free)
            for result in self._trained()
            if result.architecture == name and result.free
        ]
        trains = np.full(len(points), full > 0)
        if name == ORIGINAL:
            trains &= landscape.one_hot(points) @ landscape.recovers > 0
        starts, before = nearest(landscape, points, relatives, self._damages[name])
        starts, before = np.where(trains, starts, 0), np.where(trains, before, 0.0)
        held = is_held(landscape, points)
        done = np.array(
            [
                start > 0 and np.array_equal(self._results[start].point[landscape.early], point[landscape.early])
                for start, point in zip(starts.tolist(), points, strict=True)
            ],
            np.bool_,
        )
        least = self._first_epochs(name)
        first = np.where(held, min(int(full), max(2, least)), least)  # free epochs and held ones
        own = np.where(trains & ~(done & ~held), first, 0)
        total = np.where(own > 0, np.maximum(full, before + own), before)
        return _Candidates(name, points, sources, starts, np.zeros(len(points), bool), before, own, total)

    def _trained(self) -> list[Result]:
        """Models with trained weights: of the front, and the latest."""
        if not self._parts.inheritance:
            return []
        trained = [result for result in self._front if result.record.plan.total_epochs]
        latest = sorted(number for number, result in self._results.items() if result.record.plan.recovery.epochs)
        known = {result.number: result for result in trained}
        known |= {number: self._results[number] for number in latest[-LATEST:]}
        return [result for _, result in sorted(known.items()) if result.record.plan.recovery.epochs]

    def _promotions(self) -> Iterator[_Candidates]:
        """More training for the best of each rung."""
        by_rung: dict[int, list[Result]] = {}
        for result in self._trained():
            by_rung.setdefault(result.rung, []).append(result)
        for _, rung in sorted(by_rung.items()):
            latest = rung[-MOST_RANKED:]
            for result in self._best_of(latest, math.ceil(len(latest) / ETA)):
                most = self._full[result.architecture] * (ETA if self._is_late else 1)
                own = min((ETA - 1) * math.ceil(result.epochs), most - math.ceil(result.epochs))
                if own > 0 and result.number not in self._promoted:
                    yield _Candidates(
                        result.architecture,
                        result.point[None],
                        ["promotion"],
                        np.array([result.number]),
                        np.array([True]),
                        np.array([result.epochs]),
                        np.array([own]),
                        np.array([max(result.epochs + own, float(self._full[result.architecture]))]),
                    )

    def _best_of(self, results: Sequence[Result], count: int) -> list[Result]:
        """Some results by non-domination rank, within the last rank by what each adds to the volume of the others."""
        left = list(results)
        ranked: list[Result] = []
        while left and len(ranked) < count:
            best = self._front_of(left)
            if len(ranked) + len(best) > count:
                adds = exclusive_volumes(np.array([self._axes_of(result) for result in best]))
                best = [best[row] for row in np.argsort(-adds, kind="stable")]
            ranked += best
            chosen = {result.number for result in best}
            left = [result for result in left if result.number not in chosen]
        return ranked[:count]

    # -- models --------------------------------------------------------------------------------------------------

    def _fitted(self) -> Models:
        if self._models is None:
            self._models = self._models_before(self._next)
        return self._models

    def _models_before(self, number: int) -> Models:
        """The models on the table and the results of trials before a number."""
        models = Models(self._landscapes, self._damages, self._problem.epoch_s, self._problem.epoch_steps)
        original = self._landscapes[ORIGINAL]
        for index, (digest, entry) in enumerate(sorted(self._table.items())):
            if not entry.reason:
                site, option = original.changes[self._probes[digest][1]]
                point = original.neutral()
                point[site] = option
                models.costs.learn(index - len(self._table), ORIGINAL, point, self._shares_of(entry))
        for result in self._before(number):
            if self._parts.refit or result.number == 0:
                models.learn(result)
        return models

    def _shares_of(self, entry: Sensitivity) -> dict[str, float]:
        assert self._yardstick is not None, "the baseline is told first"
        shares = self._yardstick.shares({"size_bytes": entry.values["size_bytes"]})
        return {"latency_ms": entry.values["latency_ratio"], **shares}

    def _before(self, number: int) -> list[Result]:
        return [result for key, result in sorted(self._results.items()) if key < number]

    def _front_of(self, results: Sequence[Result]) -> list[Result]:
        """The front of some results; of those that obey the constraints if there are any."""
        by_number = {result.number: result for result in results}
        records = [result.record for result in by_number.values()]
        baseline = self._results[0].record.values
        allowed = feasible(records, self._problem.constraints, baseline)
        return [by_number[record.number] for record in pareto_front(allowed or records, self._problem.objectives)]

    def _told_before(self, number: int) -> list[tuple[Mapping[str, float | str], list[float]]]:
        return [
            (
                self._policy_view.encode(result.architecture, result.point),
                [objective.cost(result.record.values) for objective in self._problem.objectives],
            )
            for result in self._before(number)[-LATEST_RESULTS:]
            if result.number > 0 and result.record.trial.fidelity >= 1
        ]

    # -- gain ----------------------------------------------------------------------------------------------------

    def _gain(self, models: Models) -> Gained:
        """What models would add to the front, and to the trials at work as they are expected to end."""
        assert self._yardstick is not None, "the baseline is told first"
        yardstick = self._yardstick
        places = [*self._believed(models), *self._expected(models)]
        if yardstick.is_weighted:
            best = min(float(yardstick.weighted(loss, shares)[0]) for loss, shares in places)
            return lambda loss, shares: np.maximum(0.0, best - yardstick.weighted(loss, shares))
        axes = len(self._problem.objectives)
        gain = Gain(np.array([yardstick.axes(loss, shares)[0] for loss, shares in places]).reshape(-1, axes), axes)
        return lambda loss, shares: gain.of(yardstick.axes(loss, shares))

    def _believed(self, models: Models) -> Iterator[tuple[Array, dict[str, Array]]]:
        """Loss and shares of the front, the loss as the models believe in it, since scores are noisy."""
        by_architecture: dict[str, list[Result]] = {}
        for result in self._front:
            by_architecture.setdefault(result.architecture, []).append(result)
        for name, results in by_architecture.items():
            points, epochs = (np.array([getattr(one, what) for one in results]) for what in ("point", "epochs"))
            losses, _ = models.accuracy.predict(name, points, epochs)
            for result, loss in zip(results, restored(losses), strict=True):
                yield np.array([loss]), {cost: np.array([share]) for cost, share in result.shares.items()}

    def _expected(self, models: Models) -> Iterator[tuple[Array, dict[str, Array]]]:
        """Loss and shares that the trials at work are expected to have."""
        for architecture, point, epochs in self._running.values():
            loss, _ = models.accuracy.predict(architecture, point[None], np.array([epochs]))
            costs = models.costs.predict(architecture, point[None])
            yield restored(loss), {name: mean for name, (mean, _) in costs.items()}

    def _axes_of(self, result: Result) -> Array:
        assert self._yardstick is not None, "the baseline is told first"
        shares = {name: np.array([share]) for name, share in result.shares.items()}
        row: Array = self._yardstick.axes(np.array([result.loss]), shares)[0]
        return row

    def _worth(self, models: Models, gain: Gained, candidates: _Candidates) -> Array:
        """Expected gain, once trained in full, for each second until then (points,)."""
        assert self._yardstick is not None, "the baseline is told first"
        name, points = candidates.architecture, candidates.points
        mean, deviation = models.accuracy.predict(name, points, candidates.total)
        costs = models.costs.predict(name, points)
        shares = {cost: value for cost, (value, _) in costs.items()}
        total, allowed = np.zeros(len(points)), np.zeros(len(points))
        for quantile in QUANTILES:
            loss = restored(mean + quantile * deviation)
            likely = self._yardstick.allowed(loss, costs)
            total += gain(loss, shares) * likely / len(QUANTILES)
            allowed += likely / len(QUANTILES)
        total[total < LEAST_GAIN] = 0.0
        missing = np.maximum(candidates.total - candidates.before, candidates.own)
        rungs = 1 + np.log(np.maximum(missing / np.maximum(candidates.own, 1), 1)) / math.log(ETA)
        seconds = rungs * models.fixed_s + missing * models.epoch_s(name, points)
        worth: Array = (total + NEXT_TO_NOTHING * (allowed + total)) / seconds
        return worth

    # -- small things --------------------------------------------------------------------------------------------

    def _plan(self, answers: Mapping[str, Scalar]) -> Plan:
        """The plan of some answers, with the neutral one for all other knobs."""

        def suggest(name: str, knob: Knob) -> Scalar:
            return answers.get(name, ORIGINAL if name == "architecture" else neutral(knob))

        return self._problem.plan(suggest)

    def _seed_of(self, what: str, number: int) -> int:
        text = f"{self._problem.seed}/{what}/{number}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") & 0x7FFFFFFF


def _single(architecture: str, point: Array, source: str) -> _Candidates:
    """A point that is not trained."""
    none, zero = np.zeros(1, np.int64), np.zeros(1)
    return _Candidates(architecture, point[None], [source], none, np.array([False]), zero, none, zero)


def _chosen(candidates: _Candidates, rows: Array) -> _Candidates:
    """Some rows of candidates."""
    return _Candidates(
        candidates.architecture,
        candidates.points[rows],
        [candidates.sources[row] for row in rows],
        candidates.starts[rows],
        candidates.promotes[rows],
        candidates.before[rows],
        candidates.own[rows],
        candidates.total[rows],
    )
