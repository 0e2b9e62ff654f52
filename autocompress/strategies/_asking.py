"""One proposal of an Optuna sampler, with all answers kept at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from sys import intern

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autocompress.plan import Scalar
from autocompress.space import Choice, Float, Knob
from autocompress.strategies._study import STUDY

ROUNDING = 1e-6
"""Share of a step by which a value may lie beside it: what arithmetic makes of three times 0.1 is not 0.3."""


class Asked:
    """A trial of a study in memory, as `Study.ask` gives it.

    Optuna's own trial keeps each answer by itself and copies all answers whenever it is asked for them. With 150 knobs
    that takes longer than all that a sampler does.

    Args:
        storage: Holds the study.
        sampler: Answers.
        given: Answers that stand already, of whatever knobs are asked.
    """

    def __init__(self, storage: InMemoryStorage, sampler: BaseSampler, given: Mapping[str, Scalar]) -> None:
        # a study remembers what its trials were when it was last asked, so there is a new one each time
        self._study = Study(STUDY, storage, sampler=sampler)
        self._trial = self._study.ask()
        self._storage = storage
        study = storage.get_study_id_from_name(STUDY)
        self._id = storage.get_trial_id_from_study_id_trial_number(study, self._trial.number)
        self._given = given
        self.params: dict[str, Scalar] = {}
        """The answers so far."""

        self.distributions: dict[str, BaseDistribution] = {}
        """The knobs behind them."""

    def suggest(self, name: str, knob: Knob) -> Scalar:
        """Answer a knob."""
        if name not in self.params:
            name = intern(name)  # thousands of trials have the same
            self.distributions[name] = distribution_of(knob)
            self.params[name] = self._answer(name, knob, self.distributions[name])
        return self.params[name]

    def _answer(self, name: str, knob: Knob, distribution: BaseDistribution) -> Scalar:
        if name in self._given and offers(knob, self._given[name]):
            return _own(knob, self._given[name])
        if distribution.single():
            return knob.options[0] if isinstance(knob, Choice) else knob.low
        relative = self._trial.relative_params
        if name in relative and offers(knob, relative[name]):
            return _own(knob, relative[name])
        drawn = self._study.sampler.sample_independent(self._study, self._stored, name, distribution)
        return _own(knob, drawn)

    def keep(self) -> None:
        """Write the answers into the study, where samplers see them."""
        stored = self._stored
        stored.params, stored.distributions = self.params, self.distributions

    @property
    def attributes(self) -> dict[str, Scalar]:
        """What the sampler keeps with the trial (the generation, for genetic ones); Optuna's own marks are left out."""
        attributes = self._stored.system_attrs
        return {key: int(number) for key, number in attributes.items() if key.endswith(":generation")}

    def end(
        self, state: TrialState, values: Sequence[float] | None = None, violations: Mapping[str, float] | None = None
    ) -> None:
        """Tell the study what came of the trial."""
        for key, violation in (violations or {}).items():
            self._trial.set_constraint(key, violation)
        self._study.sampler.after_trial(self._study, self._stored, state, values)
        self._storage.set_trial_state_values(self._id, state, values)

    @property
    def _stored(self) -> FrozenTrial:
        """The trial itself, as the study has it now."""
        return self._storage.get_trial(self._id)


def distribution_of(knob: Knob) -> BaseDistribution:
    """A knob as Optuna has it."""
    return _distribution(knob, tuple(map(type, knob.options)) if isinstance(knob, Choice) else ())


@lru_cache(maxsize=100_000)
def _distribution(knob: Knob, types: tuple[type, ...]) -> BaseDistribution:
    """The same for all knobs that are equal and of one type: 0, 0.0 and False are equal."""
    del types
    if isinstance(knob, Choice):
        return CategoricalDistribution(knob.options)
    if isinstance(knob, Float):
        return FloatDistribution(knob.low, knob.high, step=knob.step)
    return IntDistribution(knob.low, knob.high, step=knob.step)


def offers(knob: Knob, value: Scalar) -> bool:
    """Whether a value is one of a knob's."""
    if isinstance(knob, Choice):
        return value in knob.options
    if isinstance(value, str) or not knob.low <= value <= knob.high:
        return False
    steps = (value - knob.low) / knob.step if knob.step else 0.0
    return abs(steps - round(steps)) < ROUNDING


def _own(knob: Knob, value: Scalar) -> Scalar:
    """A value as the knob itself has it: what is equal need not be of one type."""
    return knob.options[knob.options.index(value)] if isinstance(knob, Choice) else value
