"""Uniform policies first, then an Optuna sampler over all knobs, by ask and tell."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from autocompress.objective import Constraint, is_measured
from autocompress.plan import Plan, Scalar
from autocompress.record import Proposal, Record, Trial
from autocompress.space import Knob, neutral, neutral_answers
from autocompress.strategies._asking import Asked, distribution_of, offers
from autocompress.strategies._base import Fits, Problem, SearchStrategy, always, derived_seed
from autocompress.strategies._study import Shown, StudyView, new_study, state_of

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
        self._running: dict[int, tuple[Asked, Shown]] = {}
        self._baseline: Mapping[str, float] = {}
        self._worst: Mapping[str, float] = {}
        self._storage = InMemoryStorage()
        self._study = new_study(problem.objectives, self._storage)
        self._view = StudyView(problem.journal, problem.objectives)

    @abstractmethod
    def make_sampler(self, seed: int) -> BaseSampler:
        """The sampler for one trial."""

    def ask(self, fits: Fits = always) -> Trial | None:
        """The next uniform policy, then the sampler's next plan not tried yet."""
        number = self._next
        self._policies = [(answers, plan) for answers, plan in self._policies if plan.digest not in self._seen]
        for place, (answers, plan) in enumerate(self._policies):
            if fits(Trial(number, plan)):
                del self._policies[place]
                return self._propose(number, "policy", 0, answers=answers)
        for attempt in range(ATTEMPTS + RANDOM_ATTEMPTS):
            trial = self._propose(number, self.name, attempt, fits=fits)
            if trial is not None:
                return trial
        return None

    def tell(self, record: Record) -> None:
        """Tell the study; failed trials, and those that had less than full training, are told without values."""
        self._seen.add(record.plan.digest)
        self._next = max(self._next, record.number + 1)
        if record.number == 0:
            self._baseline = record.values
        told, state = self._as_told(record), state_of(record)
        if record.number in self._running:
            asked, shown = self._running.pop(record.number)
            asked.end(state_of(told), self._values(told), self._violations(told))
        else:
            shown = self._past(record)
            self._study.add_trial(self._frozen(told, shown))
        self._view.end(shown, state, self._values(record), self._violations(record))

    def drop(self, number: int) -> None:
        """Tell the study that a trial came to nothing."""
        asked, _ = self._running.pop(number)
        asked.end(TrialState.FAIL)
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

    def _propose(
        self,
        number: int,
        source: str,
        attempt: int,
        *,
        answers: Mapping[str, Scalar] = MappingProxyType({}),
        fits: Fits = always,
    ) -> Trial | None:
        """Ask the sampler once, or take what answers there are; None if the plan is known, or does not end in time."""
        seed = derived_seed(self._problem.seed, number, attempt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = self.make_sampler(seed) if attempt < ATTEMPTS else RandomSampler(seed=seed)
            asked = Asked(self._storage, sampler, answers)
            plan = self._problem.plan(asked.suggest)
        asked.keep()
        shown = Shown(number, source, asked.params, asked.distributions, asked.attributes)
        proposal = Proposal(source, shown.params, shown.attributes)
        trial = Trial(number, plan, seed=self._problem.seed, proposal=proposal)
        if plan.digest in self._seen or not fits(trial):
            asked.end(TrialState.FAIL)
            return None
        self._seen.add(plan.digest)
        self._next = number + 1
        self._running[number] = asked, shown
        self._view.begin(shown)
        return trial

    def _values(self, record: Record) -> list[float] | None:
        if state_of(record) != TrialState.COMPLETE:
            return None
        return [record.values[objective.name] for objective in self._problem.objectives]

    def _violations(self, record: Record) -> dict[str, float]:
        if state_of(record) != TrialState.COMPLETE:
            return {}
        baseline = self._baseline or record.values
        return {_key(c): c.violation(record.values, baseline) for c in self._problem.constraints}

    def _past(self, record: Record) -> Shown:
        """A record from an earlier process, or of the baseline, as a trial.

        The baseline has the neutral answer to every knob. With none it would leave nothing to samplers that look at
        what all trials share (NSGA-II, GP), and they would fall back to chance.
        """
        proposal = record.trial.proposal
        params = proposal.params if record.number else neutral_answers(self._problem.plan)
        distributions = self._distributions(params)
        known = params if distributions else {}
        return Shown(record.number, proposal.source, known, distributions, proposal.attributes)

    def _frozen(self, record: Record, shown: Shown) -> optuna.trial.FrozenTrial:
        """A trial that has ended, as the study in memory holds it."""
        return optuna.trial.create_trial(
            state=state_of(record),
            values=self._values(record),
            params=dict(shown.params),
            distributions=dict(shown.distributions),
            system_attrs=dict(shown.attributes),
            constraints=self._violations(record),
        )

    def _distributions(self, params: Mapping[str, Scalar]) -> dict[str, BaseDistribution]:
        """The knobs behind a trial's answers; none if the model has other knobs now."""
        found: dict[str, BaseDistribution] = {}
        fits = bool(params)

        def replay(name: str, knob: Knob) -> Scalar:
            nonlocal fits
            found[name] = distribution_of(knob)
            if name in params and offers(knob, params[name]):
                return params[name]
            fits = False
            return neutral(knob)

        if params:
            self._problem.plan(replay)
        return found if fits and found.keys() == params.keys() else {}


def _key(constraint: Constraint) -> str:
    return str(constraint)
