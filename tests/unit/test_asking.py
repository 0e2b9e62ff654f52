"""Proposals of Optuna's samplers, and the study that is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autocompress.objective import Objective, make_objectives
from autocompress.plan import Scalar
from autocompress.space import Choice, Float, Int, Knob
from autocompress.strategies._asking import Asked, distribution_of
from autocompress.strategies._study import Shown, StudyView, new_study
from autocompress.strategies.random import _Evenly

KNOBS: dict[str, Knob] = {
    "bits": Choice((16, 8, 4)),
    "ratio": Float(0.0, 0.5, step=0.25),
    "rank": Int(1, 9),
    "is_folded": Choice((False, True)),
    "alone": Choice(("only",)),
}
OBJECTIVES = make_objectives((), "accuracy", "maximize")


def as_optuna_asks(study: optuna.Study) -> dict[str, Scalar]:
    trial = study.ask()
    return {
        "bits": trial.suggest_categorical("bits", (16, 8, 4)),
        "ratio": trial.suggest_float("ratio", 0.0, 0.5, step=0.25),
        "rank": trial.suggest_int("rank", 1, 9),
        "is_folded": trial.suggest_categorical("is_folded", (False, True)),
        "alone": trial.suggest_categorical("alone", ("only",)),
    }


@pytest.mark.parametrize("sampler", [RandomSampler, lambda seed: TPESampler(seed=seed, multivariate=True)])
def test_answers_are_those_of_optuna(sampler: Callable[..., BaseSampler]) -> None:
    storage = InMemoryStorage()
    ours, theirs = new_study(OBJECTIVES, storage), new_study(OBJECTIVES)
    for seed in range(15):  # more than the trials that TPE draws by chance
        theirs.sampler = sampler(seed=seed)
        expected = as_optuna_asks(theirs)
        asked = Asked(storage, sampler(seed=seed), {})
        assert {name: asked.suggest(name, knob) for name, knob in KNOBS.items()} == expected
        asked.keep()
        values = [0.9 - seed / 100, 1.0 + expected["rank"], 100.0]
        theirs.tell(seed, values)
        asked.end(TrialState.COMPLETE, values)
    assert [trial.params for trial in ours.trials] == [trial.params for trial in theirs.trials]
    assert [trial.values for trial in ours.trials] == [trial.values for trial in theirs.trials]


def test_the_study_has_the_answers_while_a_trial_runs_and_what_came_of_it() -> None:
    storage = InMemoryStorage()
    study = new_study(OBJECTIVES, storage)
    asked = Asked(storage, RandomSampler(seed=0), {"bits": 4, "is_folded": True})
    answers = {name: asked.suggest(name, knob) for name, knob in KNOBS.items()}
    asked.keep()
    assert answers["bits"] == 4
    assert answers["is_folded"] is True
    (running,) = study.trials
    assert (running.state, running.params) == (TrialState.RUNNING, answers)
    assert running.distributions == {name: distribution_of(knob) for name, knob in KNOBS.items()}
    asked.end(TrialState.COMPLETE, [0.9, 1.0, 100.0], {"accuracy >= 0.95": 0.05})
    (ended,) = study.trials
    assert (ended.state, ended.values) == (TrialState.COMPLETE, [0.9, 1.0, 100.0])
    assert ended.constraints == {"accuracy >= 0.95": 0.05}
    assert study.ask().number == 1


def test_knobs_that_are_equal_keep_the_types_of_their_answers() -> None:
    for options in ((0, 1), (False, True), (0.0, 1.0)):
        choices = distribution_of(Choice(options)).choices  # type: ignore[attr-defined]
        assert [type(one) for one in choices] == [type(one) for one in options]


def test_a_given_answer_that_a_knob_does_not_offer_is_not_taken() -> None:
    storage = InMemoryStorage()
    new_study(OBJECTIVES, storage)
    asked = Asked(storage, RandomSampler(seed=0), {"bits": 5, "rank": 12})
    assert asked.suggest("bits", KNOBS["bits"]) in (16, 8, 4)
    assert asked.suggest("rank", KNOBS["rank"]) in range(1, 10)


def shown(number: int) -> Shown:
    distributions = {name: distribution_of(knob) for name, knob in KNOBS.items()}
    params: dict[str, Scalar] = {"bits": 8, "ratio": 0.25, "rank": number, "is_folded": False, "alone": "only"}
    return Shown(number, "policy", params, distributions, {"NSGAIISampler:generation": 2})


def read(journal: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.load_study(study_name="autocompress", storage=storage).trials


def test_optuna_reads_the_study_that_is_shown(tmp_path: Path) -> None:
    view = StudyView(tmp_path / "study.journal", OBJECTIVES)
    view.end(shown(3), TrialState.COMPLETE, [0.9, 1.0, 100.0], {"latency_ms <= 1": -0.5})  # of an earlier process
    for number in (4, 5, 6):
        view.begin(shown(number))
    view.end(shown(5), TrialState.COMPLETE, [0.8, 0.5, 50.0], {"latency_ms <= 1": 0.25})
    view.drop(4)
    trials = read(tmp_path / "study.journal")
    states = [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.RUNNING]
    assert [trial.state for trial in trials] == states
    assert [trial.user_attrs for trial in trials] == [{"trial": n, "source": "policy"} for n in (3, 4, 5, 6)]
    assert [trial.values for trial in trials] == [[0.9, 1.0, 100.0], None, [0.8, 0.5, 50.0], None]
    assert [trial.constraints.get("latency_ms <= 1") for trial in trials] == [-0.5, None, 0.25, None]
    for number, trial in zip((3, 4, 5, 6), trials, strict=True):
        assert trial.params == shown(number).params
        assert trial.distributions == shown(number).distributions
        assert trial.system_attrs["NSGAIISampler:generation"] == 2
        assert (trial.datetime_complete is None) == (trial.state == TrialState.RUNNING)


def test_the_study_of_one_objective_has_single_values(tmp_path: Path) -> None:
    view = StudyView(tmp_path / "study.journal", [Objective("accuracy", "maximize")])
    view.end(shown(1), TrialState.COMPLETE, [0.9], {})
    view.begin(shown(2))
    view.end(shown(2), TrialState.COMPLETE, [0.8], {})
    assert [trial.value for trial in read(tmp_path / "study.journal")] == [0.9, 0.8]


def test_random_draws_every_value_evenly() -> None:
    storage = InMemoryStorage()
    new_study(OBJECTIVES, storage)
    drawn: dict[str, list[Scalar]] = {name: [] for name in KNOBS}
    for seed in range(600):
        asked = Asked(storage, _Evenly(seed), {})
        for name, knob in KNOBS.items():
            drawn[name].append(asked.suggest(name, knob))
    values = {"bits": (16, 8, 4), "ratio": (0.0, 0.25, 0.5), "rank": range(1, 10), "is_folded": (False, True)}
    for name, expected in values.items():
        assert set(drawn[name]) == set(expected)
        for value in expected:  # five standard deviations
            share = 1 / len(expected)
            assert drawn[name].count(value) / 600 == pytest.approx(share, abs=5 * (share * (1 - share) / 600) ** 0.5)
    assert set(drawn["alone"]) == {"only"}
    asked = Asked(storage, _Evenly(0), {})
    assert 0.5 <= asked.suggest("share", Float(0.5, 0.75)) <= 0.75
