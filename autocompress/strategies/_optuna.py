"""Uniform policies first, then an Optuna sampler over all knobs, by ask and tell."""

from __future__ import annotations

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

from autocompress.objective import Constraint, is_measured
from autocompress.plan import Plan, Scalar
from autocompress.record import Proposal, Record, Trial
from autocompress.space import Choice, Float, Knob, neutral, neutral_answers
from autocompress.strategies._base import Problem, SearchStrategy
from autocompress.strategies._study import STATES, StudyView, new_study

ATTEMPTS = 20
"""Proposals of the sampler in a row that may repeat known plans before chance is asked."""

RANDOM_ATTEMPTS = 100
"""Random proposals in a row that may repeat known plans before the space counts as spent."""


class OptunaStrategy(SearchStrategy):
    """Any Optuna sampler; a subclass says which.

    The records are the truth and the study is made from them: the sampler of each trial is seeded by the search's
    seed and the trial's number, so that a search that was cut short goes on as if it had not been. The sampler's study
    is in memory; what optuna-dashboard shows beside it has no proposals that repeat known plans.
    """

    skips_pruned: ClassVar[bool] = False
    """True if the sampler looks at complete trials alone: a screened one is told as one that learned nothing."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._policies = list(problem.policies)
        self._seen: set[str] = {Plan().digest}
        self._next = 1
        self._running: dict[int, optuna.trial.Trial] = {}
        self._baseline: Mapping[str, float] = {}
        self._worst: Mapping[str, float] = {}
        self._study = new_study(problem.objectives)
        self._view = StudyView(problem.journal, problem.objectives)

    @abstractmethod
    def make_sampler(self, seed: int) -> BaseSampler:
        """The sampler for one trial."""

    def ask(self) -> Trial | None:
        """The next uniform policy, then the sampler's next plan that was not tried yet."""
        number = self._next
        while self._policies:
            answers, plan = self._policies.pop(0)
            if plan.digest not in self._seen:
                self._study.enqueue_trial(dict(answers))
                return self._propose(number, "policy", 0)
        for attempt in range(ATTEMPTS + RANDOM_ATTEMPTS):
            trial = self._propose(number, self.name, attempt)
            if trial is not None:
                return trial
        return None

    def tell(self, record: Record) -> None:
        """Tell the study; failed trials are told without values."""
        self._seen.add(record.plan.digest)
        self._next = max(self._next, record.number + 1)
        if record.number == 0:
            self._baseline = record.values
        told = self._as_told(record)
        running = self._running.pop(record.number, None)
        if running is None:
            params, distributions = self._past(record)
            self._study.add_trial(self._frozen(told, params, distributions))
        else:
            params, distributions = running.params, running.distributions
            if told.status == "complete":
                for key, value in self._violations(told).items():
                    running.set_constraint(key, value)
            self._study.tell(running, self._values(told), STATES[told.status])
        self._view.show(record.number, self._frozen(record, params, distributions))

    def drop(self, number: int) -> None:
        """Tell the study that a trial came to nothing."""
        self._study.tell(self._running.pop(number), state=TrialState.FAIL)
        self._view.drop(number)

    def _as_told(self, record: Record) -> Record:
        """The record, or of a screened one what the sampler can use: what was measured, with the worst score so far.

        Without that a genetic search whose plans are mostly screened would never see the end of a generation.
        """
        if record.status == "complete":
            metric = [one for one in self._problem.objectives if not is_measured(one.name)]
            known = self._worst or record.values
            self._worst = max(known, record.values, key=lambda values: [one.cost(values) for one in metric])
        if record.status != "screened" or not self.skips_pruned:
            return record
        return replace(record, status="complete", values={**self._worst, **record.values})

    def _propose(self, number: int, source: str, attempt: int) -> Trial | None:
        """Ask the study once; None if the plan is known already."""
        seed = _derived_seed(self._problem.seed, number, attempt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.sampler = self.make_sampler(seed) if attempt < ATTEMPTS else RandomSampler(seed=seed)
            asked = self._study.ask()
            plan = self._problem.plan(lambda name, knob: _suggest(asked, name, knob))
        if plan.digest in self._seen:
            self._study.tell(asked, state=TrialState.FAIL)
            return None
        self._seen.add(plan.digest)
        self._next = number + 1
        self._running[number] = asked
        attributes = self._sampler_attributes(asked.number)
        shown = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=asked.params,
            distributions=asked.distributions,
            user_attrs={"trial": number, "source": source},
            system_attrs=dict(attributes),
        )
        self._view.show(number, shown)
        return Trial(number, plan, seed=self._problem.seed, proposal=Proposal(source, dict(asked.params), attributes))

    def _sampler_attributes(self, number: int) -> dict[str, Scalar]:
        """What the sampler keeps with a trial (the generation, for genetic ones); Optuna's own marks are left out."""
        attributes = self._study.get_trials(deepcopy=False)[number].system_attrs
        return {key: int(number) for key, number in attributes.items() if key.endswith(":generation")}

    def _values(self, record: Record) -> list[float] | None:
        if record.status != "complete":
            return None
        return [record.values[objective.name] for objective in self._problem.objectives]

    def _violations(self, record: Record) -> dict[str, float]:
        baseline = self._baseline or record.values
        return {_key(c): c.violation(record.values, baseline) for c in self._problem.constraints}

    def _past(self, record: Record) -> tuple[dict[str, Scalar], dict[str, BaseDistribution]]:
        """The answers of a record from an earlier process, or of the baseline, and the knobs behind them.

        The baseline has the neutral answer to every knob. With none it would leave nothing to samplers that look at
        what all trials share (NSGA-II, GP), and they would fall back to chance.
        """
        params = dict(record.trial.proposal.params) if record.number else neutral_answers(self._problem.plan)
        distributions = self._distributions(params)
        return params if distributions else {}, distributions

    def _frozen(
        self, record: Record, params: Mapping[str, Scalar], distributions: Mapping[str, BaseDistribution]
    ) -> optuna.trial.FrozenTrial:
        """A trial that has ended, as studies hold it."""
        return optuna.trial.create_trial(
            state=STATES[record.status],
            values=self._values(record),
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={"trial": record.number, "source": record.trial.proposal.source},
            system_attrs=dict(record.trial.proposal.attributes),
            constraints=self._violations(record) if record.status == "complete" else None,
        )

    def _distributions(self, params: Mapping[str, Scalar]) -> dict[str, BaseDistribution]:
        """The knobs behind a trial's answers; none if the model has other knobs now."""
        found: dict[str, BaseDistribution] = {}
        fits = bool(params)

        def replay(name: str, knob: Knob) -> Scalar:
            nonlocal fits
            found[name] = _distribution(knob)
            if name in params and _offers(knob, params[name]):
                return params[name]
            fits = False
            return neutral(knob)

        if params:
            self._problem.plan(replay)
        return found if fits and found.keys() == params.keys() else {}


def _suggest(trial: optuna.trial.Trial, name: str, knob: Knob) -> Scalar:
    if isinstance(knob, Choice):
        return knob.options[knob.options.index(trial.suggest_categorical(name, knob.options))]
    if isinstance(knob, Float):
        return trial.suggest_float(name, knob.low, knob.high, step=knob.step)
    return trial.suggest_int(name, knob.low, knob.high, step=knob.step)


def _offers(knob: Knob, value: Scalar) -> bool:
    if isinstance(knob, Choice):
        return value in knob.options
    return not isinstance(value, str) and knob.low <= value <= knob.high


def _distribution(knob: Knob) -> BaseDistribution:
    if isinstance(knob, Choice):
        return CategoricalDistribution(knob.options)
    if isinstance(knob, Float):
        return FloatDistribution(knob.low, knob.high, step=knob.step)
    return IntDistribution(knob.low, knob.high, step=knob.step)


def _key(constraint: Constraint) -> str:
    return str(constraint)


def _derived_seed(seed: int, number: int, attempt: int) -> int:
    """A seed for one proposal, independent of what was proposed before."""
    text = f"{seed}/{number}/{attempt}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") & 0x7FFFFFFF
