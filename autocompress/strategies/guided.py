"""The default: uniform policies, a table of sensitivities, models of cost and accuracy, and a solver over the front."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import ClassVar

import numpy as np

from autocompress.data import Array
from autocompress.objective import LATENCY, LATENCY_RATIO, quantity
from autocompress.plan import ORIGINAL, Plan, Recovery, Scalar
from autocompress.probe import Probe, Sensitivity
from autocompress.record import Proposal, Record, Trial
from autocompress.strategies._base import STRATEGIES, Fits, Problem, SearchStrategy, always, derived_seed
from autocompress.strategies._guided.accuracy import restored
from autocompress.strategies._guided.candidates import Candidates
from autocompress.strategies._guided.models import Models
from autocompress.strategies._guided.plans import Kind, kinds_of, plan_of
from autocompress.strategies._guided.policies import PolicySpace
from autocompress.strategies._guided.proposals import Points, Proposer, is_small
from autocompress.strategies._guided.results import Result, Results
from autocompress.strategies._guided.solver import mutations
from autocompress.strategies._guided.study import PolicyView
from autocompress.strategies._guided.table import Table
from autocompress.strategies._guided.training import Training, best_by_volume
from autocompress.strategies._guided.worth import AtWork, believed_losses, gained, worth
from autocompress.strategies._guided.yardstick import Yardstick

FINAL_SHARE = 0.75
"""Share of the budget, or of the trials, after which no training begins from the original's weights, unless nothing
else is left to do."""

BLOCK = 8
"""Trials after which the solver sweeps anew; as many as there are workers, if these are more.

What it finds is as good for all trials that begin before one of them has ended, and with 150 knobs it takes seconds.
"""

FIRST_POLICIES = 2
"""Policies without training that are tried before anything is known; others compete with what the models find."""

NEIGHBORS = 96
"""Points near the front that compete for each trial; to judge as many takes milliseconds."""

DRAWS = 200
"""Random points in a row that may be known before the space counts as spent."""

SETTLED_LOSS = 0.3
"""Points that a model loses at most that has little to gain from more training."""


@dataclass(frozen=True)
class Parts:
    """What the strategy does; all of it by default, less to see what each part is worth.

    Args:
        table: Look at single changes first.
        refit: Let the models learn from trials, and not only from the table.
        uniform: Try the uniform policies.
        inheritance: Train on rungs, from the weights of relatives.
    """

    table: bool = True
    refit: bool = True
    uniform: bool = True
    inheritance: bool = True


@dataclass(frozen=True)
class _Block:
    """Trials that choose from the same proposals of the solver.

    Args:
        first: Number of its first trial.
        unknown: Numbers of the trials that were at work then.
        proposals: What may be tried.
    """

    first: int
    unknown: tuple[int, ...]
    proposals: tuple[Points, ...]


@STRATEGIES.register
class Guided(SearchStrategy):
    """Spends each second where it adds most to the hypervolume.

    First come two uniform policies that need no training, so that a front exists at once; then every single change is
    looked at without training or labels, the most promising first; then models of cost and accuracy, refitted on every
    result, tell a solver what to try over the whole front. Points near the front, uniform policies and what Optuna's
    TPE says in the space of policies compete with what the solver finds. Models that need training begin with little of
    it, from the weights of their nearest relative; the best of each rung go on. The last quarter goes to those that
    were trained before.

    Args:
        problem: What to search.
        parts: What to leave out.
    """

    name: ClassVar[str] = "guided"
    has_rungs: ClassVar[bool] = True

    def __init__(self, problem: Problem, parts: Parts = Parts()) -> None:
        self._problem, self._parts = problem, parts
        self._landscapes = problem.landscapes
        self._policies = list(problem.policies) if parts.uniform else []
        untrained = [(answers, plan) for answers, plan in self._policies if not plan.recovery.epochs]
        self._untrained = untrained[:FIRST_POLICIES]
        self._seen: set[str] = {Plan().digest}
        self._tried: set[tuple[str, bytes]] = {(ORIGINAL, self._landscapes[ORIGINAL].neutral().tobytes())}
        self._promoted: set[int] = set()
        self._known_kinds: set[Kind] = set()
        self._kinds_at_work: dict[int, set[Kind]] = {}
        self._next = 1
        self._elapsed_s = 0.0
        self._at_work: dict[int, AtWork] = {}
        self._results = Results(problem.objectives, problem.constraints)
        self._screened: dict[int, tuple[str, Array, Mapping[str, float]]] = {}
        self._plan_of = plan_of(problem)
        self._table = Table(problem, self._plan_of, is_wanted=parts.table)
        self._training = Training(self._landscapes, self._plan_of, problem.epoch_s, inherits=parts.inheritance)
        self._yardstick: Yardstick | None = None
        self._models: Models | None = None
        self._policy_space: PolicySpace | None = None
        self._block: _Block | None = None
        self._shown = PolicyView(problem.journal, problem.objectives, self._policies_now.distributions())

    # -- the strategy's face -------------------------------------------------------------------------------------

    def ask(self, fits: Fits = always) -> Trial | Probe | None:
        """An untrained policy, an entry of the table, the first policy of a kind, or what promises most."""
        while self._untrained:
            answers, plan = self._untrained.pop(0)
            point = self._landscapes[plan.architecture].point(answers)
            trial = self._propose(Candidates.untrained(plan.architecture, point, "policy"), 0, fits=fits)
            if trial is not None:
                return trial
        return self._table.next() or self._policy_of_new_kind(fits) or self._next_trial(fits)

    def tell(self, record: Record) -> None:
        """Learn from a finished trial."""
        self._seen.add(record.plan.digest)
        self._kinds_at_work.pop(record.number, None)
        if record.status == "complete":
            self._known_kinds |= kinds_of(record.plan)
        self._next = max(self._next, record.number + 1)
        self._elapsed_s = max(self._elapsed_s, record.ended_s)
        self._at_work.pop(record.number, None)
        if record.number == 0:
            self._yardstick = Yardstick(self._problem, record.values)
        landscape = self._landscapes.get(record.plan.architecture)
        if landscape is None:  # it can't be built any more
            self._shown.end(record, None)
            return
        name, attributes = landscape.architecture, record.trial.proposal.attributes
        point = landscape.point(record.trial.proposal.params)
        self._tried.add((name, point.tobytes()))
        self._promoted.add(int(attributes.get("promotes", 0)))
        if "block" in attributes and (self._block is None or self._block.first < int(attributes["block"])):
            self._block = _Block(int(attributes["block"]), _numbers(attributes.get("unknown", "")), ())
        policy = self._policies_now.encode(name, point)
        self._shown.end(record, policy)
        if record.status == "screened":
            self._learn_costs(record.number, name, point, record.values)
        if record.status == "complete":
            self._learn(name, point, record)

    def drop(self, number: int) -> None:
        """Expect nothing of a trial any more."""
        del self._at_work[number]
        self._kinds_at_work.pop(number, None)
        self._shown.drop(number)

    def note(self, entry: Sensitivity) -> None:
        """Learn from a change that was looked at."""
        self._elapsed_s = max(self._elapsed_s, entry.ended_s)
        if self._table.note(entry):
            self._models = self._policy_space = None
            if self._block is not None:
                self._block = replace(self._block, proposals=())

    def parents(self) -> frozenset[str]:
        """The trained models of the front, those whose weights it has, and the latest ones."""
        return frozenset(result.record.plan.digest for result in self._training.begins_with(self._results))

    def believed(self) -> Mapping[int, float]:
        """The metric of finished trials, from what the accuracy model makes of all of them."""
        if not self._results.by_number:
            return {}
        losses, yardstick = believed_losses(self._fitted(), self._results.by_number.values()), self._the_yardstick
        return {number: yardstick.value(loss) for number, loss in losses.items()}

    # -- what next -----------------------------------------------------------------------------------------------

    def _policy_of_new_kind(self, fits: Fits) -> Trial | None:
        """The first policy with a kind of change that no trial has had yet, as nothing is known of how it recovers.

        None where policies are not trained: of those the table tells as much.
        """
        if self._is_late:
            return None
        known = self._known_kinds.union(*self._kinds_at_work.values())
        for answers, plan in self._policies:
            name, kinds = plan.architecture, kinds_of(plan)
            if name == ORIGINAL and plan.recovery.epochs and not kinds <= known:
                point = self._landscapes[name].point(answers)
                trial = self._propose(self._first_rung(name, point[None], ["policy"]), 0, fits=fits)
                if trial is not None:
                    self._kinds_at_work[trial.number] = kinds
                    return trial
        return None

    def _next_trial(self, fits: Fits) -> Trial | None:
        """The candidate that adds most for its time; None if there is nothing new."""
        block = self._current_block()
        return (
            self._best_of(self._candidates(block), block, fits)
            or self._best_of(self._promotions(everyone=True), block, fits)
            or self._by_chance(block, fits)
        )

    def _best_of(self, candidates: Iterator[Candidates], block: _Block, fits: Fits) -> Trial | None:
        """The trial of the candidate that adds most for its time, of those that can be proposed."""
        yardstick, models = self._the_yardstick, self._fitted()
        gain = gained(yardstick, models, self._results.front, self._at_work.values())
        groups = groupby((some for some in candidates if len(some)), key=lambda some: some.architecture)
        found = [Candidates.joined(list(some)) for _, some in groups]
        if not found:
            return None
        values = np.concatenate([worth(yardstick, models, gain, some) for some in found])
        places = [(some, row) for some in found for row in range(len(some))]
        for place in np.argsort(-values, kind="stable").tolist():
            some, row = places[place]
            trial = self._propose(some, row, block, fits)
            if trial is not None:
                return trial
        return None

    def _propose(
        self, candidates: Candidates, row: int, block: _Block | None = None, fits: Fits = always
    ) -> Trial | None:
        """The trial of a candidate; None if it does not end in time, or the plan that comes of it was tried before."""
        name, asked, landscape = (
            candidates.architecture,
            candidates.points[row],
            self._landscapes[candidates.architecture],
        )
        plan, trained = self._planned(candidates, row)
        point, promotes = landscape.realized(plan), int(candidates.promotes[row])
        is_another = not np.array_equal(point, asked) and (name, point.tobytes()) in self._tried
        if plan.digest in self._seen or (is_another and not promotes):
            self._tried |= {(name, asked.tobytes()), (name, point.tobytes())}
            return None
        attributes: dict[str, Scalar] = {"promotes": promotes} if promotes else {}
        if plan.start is not None:
            attributes |= {"start": int(candidates.starts[row]), "before": float(candidates.before[row])}
        if block is not None:
            attributes |= {"block": block.first, "unknown": ",".join(map(str, block.unknown))}
        attributes |= self._expectations(name, point, trained)
        source, full, fidelity = candidates.sources[row], self._training.full[name], 1.0
        if full and plan.total_epochs:
            attributes["full"], fidelity = full, min(1.0, trained / full)
        proposal = Proposal(source, landscape.answers(point), attributes)
        trial = Trial(self._next, plan, seed=self._problem.seed, fidelity=fidelity, proposal=proposal)
        if not fits(trial):
            return None
        self._next += 1
        self._seen.add(plan.digest)
        self._tried |= {(name, asked.tobytes()), (name, point.tobytes())}
        self._promoted.add(promotes)
        self._at_work[trial.number] = name, point, trained
        self._shown.begin(trial.number, source, self._policies_now.encode(name, point))
        return trial

    def _planned(self, candidates: Candidates, row: int) -> tuple[Plan, float]:
        """The plan of a candidate, and the epochs that its model has had in the end."""
        plan = self._plan_of(self._landscapes[candidates.architecture].answers(candidates.points[row]))
        if not plan.recovery.epochs:  # nothing that training brings back
            return plan, 0.0
        start, own = int(candidates.starts[row]), int(candidates.own[row])
        recovery = replace(plan.recovery, epochs=own) if own else Recovery()
        trained = float(candidates.before[row] + own)
        if not start:
            return replace(plan, recovery=recovery), trained
        begins = self._results.by_number[start].record.plan
        return replace(plan, recovery=recovery.without_penalty(), start=begins), trained

    def _expectations(self, architecture: str, point: Array, epochs: float) -> dict[str, Scalar]:
        """What the models say of a trial before it is run, by which they can be judged afterwards."""
        models = self._fitted()
        loss, deviation = models.accuracy.predict(architecture, point[None], np.array([epochs]))
        costs = {name: float(mean[0]) for name, (mean, _) in models.costs.predict(architecture, point[None]).items()}
        told = {"expected_loss": float(restored(loss)[0]), "expected_deviation": float(deviation[0])}
        told |= {f"expected_{name}_ratio": cost for name, cost in costs.items()}
        told["expected_epoch_s"] = float(models.epoch_s(architecture, point[None])[0])
        return {name: round(value, 5) for name, value in told.items()}

    # -- candidates ----------------------------------------------------------------------------------------------

    def _candidates(self, block: _Block) -> Iterator[Candidates]:
        """All that may be done next."""
        for name, points, sources in (*block.proposals, *self._near_front()):
            new = [row for row, point in enumerate(points) if (name, point.tobytes()) not in self._tried]
            if new:
                found = self._first_rung(name, points[new], [sources[row] for row in new])
                yield found[np.flatnonzero((found.starts > 0) | (found.own == 0))] if self._is_late else found
        yield from self._promotions()

    def _first_rung(self, name: str, points: Array, sources: list[str]) -> Candidates:
        return self._training.first_rung(name, points, sources, self._results, self._table.damages[name])

    def _promotions(self, *, everyone: bool = False) -> Iterator[Candidates]:
        """More training for the best of each rung that did not have it yet, or for everyone."""
        found = self._training.promotions(self._results, self._best_of_rung, longest=self._is_late, everyone=everyone)
        return (one for one in found if int(one.promotes[0]) not in self._promoted)

    def _best_of_rung(self, some: Sequence[Result], count: int) -> Sequence[Result]:
        """Who goes on: those that add most volume, or that are best by the weights of the objectives."""
        yardstick = self._the_yardstick
        if not yardstick.is_weighted:
            return best_by_volume(some, count, self._results, self._axes_of)

        def weighted(result: Result) -> float:
            return float(yardstick.weighted(np.array([result.loss]), result.share_rows)[0])

        return sorted(some, key=lambda result: (weighted(result), result.number))[:count]

    def _near_front(self) -> Iterator[Points]:
        """Points near those of the front now, but for those near models that may yet become better by training.

        Changing a model that has had little training tells less of what it is worth than training it.
        """
        if is_small(self._landscapes):
            return
        rng = np.random.default_rng(self._seed_of("local", self._next))
        parents: dict[str, list[Array]] = {}
        for result in self._results.front:
            if result.loss <= SETTLED_LOSS or self._is_settled(result):
                parents.setdefault(result.architecture, []).append(result.point)
        for name, points in parents.items():
            if len(self._landscapes[name].sites):
                near = mutations(self._landscapes[name], points, NEIGHBORS, rng)
                yield name, near, ["local"] * len(near)

    def _is_settled(self, result: Result) -> bool:
        """True if a model has had all its training, or more of it is under way."""
        return result.number in self._promoted or not 0 < result.epochs < self._training.full[result.architecture]

    def _by_chance(self, block: _Block, fits: Fits) -> Trial | None:
        """A random point that was not tried; None if none is found."""
        rng = np.random.default_rng(self._seed_of("chance", self._next))
        names = list(self._landscapes)
        for _ in range(DRAWS):
            name = names[int(rng.integers(len(names)))]
            landscape = self._landscapes[name]
            drawn = (rng.random(len(landscape.sizes)) * landscape.sizes).astype(np.int64)
            point = landscape.canonical(drawn[None])[0]
            if (name, point.tobytes()) not in self._tried:
                trial = self._propose(self._first_rung(name, point[None], ["random"]), 0, block, fits)
                if trial is not None:
                    return trial
        return None

    def _current_block(self) -> _Block:
        """The block that the next trial belongs to; one that began in an earlier process is solved again."""
        block = self._block
        if block is None or self._next - block.first >= max(BLOCK, self._problem.workers):
            block = _Block(self._next, tuple(sorted(self._at_work)), ())
        if not block.proposals:
            is_new = block.first == self._next
            results = self._results if is_new else self._results.before(block.first, block.unknown)
            models = self._fitted() if is_new else self._models_of(results, block.first, block.unknown)
            block = replace(block, proposals=tuple(self._proposer.after(results, models, block.first)))
        self._block = block
        return block

    # -- beliefs -------------------------------------------------------------------------------------------------

    def _learn(self, name: str, point: Array, record: Record) -> None:
        """Take in a complete trial."""
        attributes, epochs = record.trial.proposal.attributes, record.plan.recovery.epochs
        before = float(attributes.get("before", 0.0))
        result = Result(
            number=record.number,
            architecture=name,
            point=point,
            epochs=before + epochs,
            free=self._training.free_epochs(name, point, before=before, own=epochs),
            start=int(attributes.get("start", 0)),
            loss=self._the_yardstick.loss(record.values[self._problem.the_metric.name]),
            shares=self._the_yardstick.shares(record.values),
            record=record,
        )
        self._results.add(result)
        if self._models is not None and (self._parts.refit or record.number == 0):
            self._models.learn(result)

    def _learn_costs(self, number: int, name: str, point: Array, values: Mapping[str, float]) -> None:
        """Take in what was measured of a model that was not worth training."""
        self._screened[number] = name, point, self._the_yardstick.shares(values)
        if self._models is not None and self._parts.refit:
            self._models.costs.learn(number, *self._screened[number], hurried=True)

    def _fitted(self) -> Models:
        """The models on all that is known now."""
        if self._models is None:
            self._models = self._models_of(self._results, self._next, ())
        return self._models

    def _models_of(self, results: Results, number: int, unknown: Collection[int]) -> Models:
        """The models on the table, on some results and on what was screened until a trial was proposed."""
        problem = self._problem
        models = Models(
            self._landscapes,
            self._table.damages,
            costs=problem.costs,
            epoch_s=problem.epoch_s,
            epoch_steps=problem.epoch_steps,
        )
        for index, (point, entry) in enumerate(self._table.points()):
            shares = self._the_yardstick.shares({"size_bytes": entry.values["size_bytes"]})
            ratios = {name: value for name, value in entry.values.items() if quantity(name) == LATENCY_RATIO}
            shares |= {LATENCY + name.removeprefix(LATENCY_RATIO): value for name, value in ratios.items()}
            models.costs.learn(-1 - index, ORIGINAL, point, shares, hurried=True)
        for key, result in sorted(results.by_number.items()):
            if self._parts.refit or key == 0:
                models.learn(result)
        for key, screened in self._screened.items():
            if self._parts.refit and key < number and key not in unknown:
                models.costs.learn(key, *screened, hurried=True)
        return models

    @property
    def _proposer(self) -> Proposer:
        return Proposer(
            self._problem, self._policies, self._policies_now, self._training, self._table.damages, self._the_yardstick
        )

    @property
    def _policies_now(self) -> PolicySpace:
        if self._policy_space is None:
            self._policy_space = PolicySpace(self._landscapes, self._table.damages)
        return self._policy_space

    def _axes_of(self, result: Result) -> Array:
        row: Array = self._the_yardstick.axes(np.array([result.loss]), result.share_rows)[0]
        return row

    @property
    def _the_yardstick(self) -> Yardstick:
        assert self._yardstick is not None, "the baseline is told first"
        return self._yardstick

    # -- small things --------------------------------------------------------------------------------------------

    @property
    def _is_late(self) -> bool:
        """True once what is left belongs to what was trained before, if weights are inherited at all."""
        budget_s, trials = self._problem.budget_s, self._problem.trials
        late = budget_s is not None and self._elapsed_s > FINAL_SHARE * budget_s
        late |= trials is not None and self._next >= FINAL_SHARE * trials + 1
        return late and self._parts.inheritance

    def _seed_of(self, what: str, number: int) -> int:
        return derived_seed(self._problem.seed, what, number)


def _numbers(text: Scalar) -> tuple[int, ...]:
    """Numbers of trials from their text."""
    return tuple(int(number) for number in str(text).split(",") if number)
