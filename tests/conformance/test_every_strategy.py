"""Laws that every search strategy keeps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autocompress.graph.view import ChannelGroup, Layer, LayerView
from autocompress.landscapes import landscape
from autocompress.objective import Constraint, make_objectives
from autocompress.plan import Plan
from autocompress.planner import planner, policy_plans
from autocompress.probe import Probe, Sensitivity
from autocompress.profile import HardwareProfile
from autocompress.record import Proposal, Record, Trial
from autocompress.run_directory import RunDirectory
from autocompress.space import MethodSpace, RecoverySpace, SearchSpace
from autocompress.storage import Database, write_study
from autocompress.strategies import STRATEGIES, Problem, SearchStrategy
from autocompress.strategies._optuna import OptunaStrategy
from autocompress.strategies._study import STUDY

PROFILE = HardwareProfile("test", kernels={"conv": ("int8",), "linear": ("int8", "dynamic_int8")})
POLICIES = (
    {"quantization/precision": "int8"},
    {"channel_pruning/pruning_ratio": 0.5, "quantization/precision": "int8"},
)


def view(architecture: str, layers: int) -> LayerView:
    names = [f"conv{index}" for index in range(layers)]
    return LayerView(
        architecture,
        tuple(Layer(name, "conv", 1000, 100_000) for name in names),
        tuple(ChannelGroup(name, (name,), 64) for name in names),
    )


def problem(
    folder: Path, *, seed: int = 0, layers: int = 6, policies: int = 2, widths: tuple[float, ...] = (0.5,)
) -> Problem:
    space = SearchSpace(
        "test",
        methods={
            "channel_pruning": MethodSpace({"pruning_ratio": (0, 0.25, 0.5)}),
            "quantization": MethodSpace({"precision": ("fp32", "int8"), "bits": (8,)}),
        },
        widths=widths,
        recovery=RecoverySpace(epochs=1, student_epochs=2),
        policies=POLICIES[:policies],
    )
    views = {name: view(name, layers) for name in ("original", *(f"width_{width:g}" for width in widths))}
    plan = planner(space, views, PROFILE)
    folder.mkdir(parents=True, exist_ok=True)
    return Problem(
        plan=plan,
        policies=policy_plans(space, plan),
        objectives=make_objectives((), "accuracy", "maximize"),
        constraints=(Constraint.parse("latency_ms<=0.9x"),),
        seed=seed,
        journal=folder / "study.journal",
        landscapes={name: landscape(space, plan, one, PROFILE) for name, one in views.items()},
    )


def result(trial: Trial) -> Record:
    """A made-up outcome that depends on the plan alone; every seventh trial fails, every fifth is screened."""
    work = int(trial.plan.digest[:6], 16) / 0xFFFFFF
    measured = {"latency_ms": 1 - work / 2, "size_bytes": 1e5 * (1 + work)}
    if trial.number % 7 == 6:
        return Record(trial, "failed", "made up")
    if trial.number % 5 == 4:
        return Record(trial, "screened", "made up", values=measured)
    return Record(trial, "complete", values=measured | {"accuracy": 0.5 + work / 2})


BASELINE = Record(
    Trial(0, Plan(), proposal=Proposal("baseline")),
    "complete",
    values={"accuracy": 0.9, "latency_ms": 1.0, "size_bytes": 2e5},
)


def go(strategy: SearchStrategy, count: int) -> list[Record]:
    records = []
    for _ in range(count):
        trial = next_trial(strategy)
        assert trial is not None
        records.append(result(trial))
        strategy.tell(records[-1])
    return records


def next_trial(strategy: SearchStrategy) -> Trial | None:
    """The next trial, once everything was looked at that the strategy asks for before."""
    while isinstance(asked := strategy.ask(), Probe):
        strategy.note(entry(asked))
    return asked


def entry(probe: Probe) -> Sensitivity:
    """What looking at a change gives."""
    divergence = int(probe.plan.digest[:4], 16) / 0xFFFF
    values = {"latency_ratio": 1 - divergence / 10, "size_bytes": 2e5 * (1 - divergence / 5)}
    return Sensitivity(probe, divergence=divergence, values=values)


@pytest.fixture(params=list(STRATEGIES))
def kind(request: pytest.FixtureRequest) -> type[SearchStrategy]:
    return STRATEGIES[request.param]


def begun(kind: type[SearchStrategy], problem: Problem, records: tuple[Record, ...] = ()) -> SearchStrategy:
    strategy = kind(problem)
    for record in (BASELINE, *records):
        strategy.tell(record)
    return strategy


def test_no_plan_is_proposed_twice(kind: type[SearchStrategy], tmp_path: Path) -> None:
    records = go(begun(kind, problem(tmp_path)), 40)
    digests = [record.plan.digest for record in records]
    assert len(set(digests)) == len(digests)
    assert Plan().digest not in digests


def test_numbers_count_from_one(kind: type[SearchStrategy], tmp_path: Path) -> None:
    assert [record.number for record in go(begun(kind, problem(tmp_path)), 5)] == [1, 2, 3, 4, 5]


def test_uniform_policies_come_first(kind: type[SearchStrategy], tmp_path: Path) -> None:
    given = problem(tmp_path)
    records = go(begun(kind, given), 1 if kind.name == "guided" else len(given.policies))
    assert {record.trial.proposal.source for record in records} == {"policy"}
    assert [record.plan for record in records] == [plan for _, plan in given.policies][: len(records)]


class Refused:
    """Refuses all trials, and keeps their plans."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []

    def __call__(self, trial: Trial) -> bool:
        self.plans.append(trial.plan)
        return False


def test_what_does_not_end_in_time_is_refused_without_being_lost(kind: type[SearchStrategy], tmp_path: Path) -> None:
    for count in (2, 12):  # among the policies, and after them
        whole, short = (begun(kind, problem(tmp_path / f"{name}{count}")) for name in "ab")
        expected = go(whole, count + 1)[-1].trial
        go(short, count)
        refused = Refused()
        while isinstance(found := short.ask(refused), Probe):
            short.note(entry(found))
        assert found is None
        assert expected.plan in refused.plans
        assert next_trial(short) == expected


def test_the_same_seed_gives_the_same_plans_in_the_same_order(kind: type[SearchStrategy], tmp_path: Path) -> None:
    first = go(begun(kind, problem(tmp_path / "a")), 25)
    second = go(begun(kind, problem(tmp_path / "b")), 25)
    assert [record.trial for record in first] == [record.trial for record in second]


def test_another_seed_gives_other_plans(kind: type[SearchStrategy], tmp_path: Path) -> None:
    first = go(begun(kind, problem(tmp_path / "a", seed=0)), 10)
    second = go(begun(kind, problem(tmp_path / "b", seed=1)), 10)
    assert [record.plan for record in first] != [record.plan for record in second]


def test_a_search_cut_short_goes_on_as_if_it_had_not_been(kind: type[SearchStrategy], tmp_path: Path) -> None:
    whole = go(begun(kind, problem(tmp_path / "a")), 45)
    resumed = begun(kind, problem(tmp_path / "b"), tuple(whole[:30]))
    assert [record.trial for record in go(resumed, 15)] == [record.trial for record in whole[30:]]


def test_several_trials_may_run_at_once_and_end_in_any_order(kind: type[SearchStrategy], tmp_path: Path) -> None:
    strategy = begun(kind, problem(tmp_path))
    trials = [next_trial(strategy) for _ in range(4)]
    assert len({trial.plan.digest for trial in trials if trial}) == 4
    for trial in reversed(trials):
        assert trial is not None
        strategy.tell(result(trial))
    assert next_trial(strategy) is not None


def test_a_spent_space_ends_the_search(kind: type[SearchStrategy], tmp_path: Path) -> None:
    strategy = begun(kind, problem(tmp_path, layers=1, policies=0))
    proposed = []
    while (trial := next_trial(strategy)) is not None:
        proposed.append(trial.plan)
        strategy.tell(result(trial))
    assert len(proposed) == 2 * 3 * 2 - 1, "two architectures, three ratios, two precisions, without the baseline"


def test_a_damaged_journal_is_written_anew(kind: type[SearchStrategy], tmp_path: Path) -> None:
    records = go(begun(kind, problem(tmp_path)), 8)
    journal = tmp_path / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-37])
    assert next_trial(begun(kind, problem(tmp_path), tuple(records))) is not None


def test_a_trial_that_had_less_than_full_training_is_told_without_values(
    kind: type[SearchStrategy], tmp_path: Path
) -> None:
    given = problem(tmp_path)
    strategy = begun(kind, given)
    trial = next_trial(strategy)
    assert trial is not None
    strategy.tell(result(replace(trial, fidelity=0.5)))
    storage = JournalStorage(JournalFileBackend(str(given.journal)))
    shown = optuna.load_study(study_name=STUDY, storage=storage).trials[1]
    assert (shown.state, shown.values) == (TrialState.PRUNED, None)
    if isinstance(strategy, OptunaStrategy):
        told = strategy._study.trials[-1]
        assert (told.state, told.values) == (TrialState.PRUNED, None)


def test_a_trial_that_was_cancelled_is_counted_on_no_more(kind: type[SearchStrategy], tmp_path: Path) -> None:
    """What comes after it is new, and the study shows nothing as running."""
    strategy = begun(kind, problem(tmp_path))
    go(strategy, 3)
    dropped = [next_trial(strategy) for _ in range(2)]
    for trial in dropped:
        assert trial is not None
        strategy.drop(trial.number)
    later = go(strategy, 6)
    digests = {trial.plan.digest for trial in dropped if trial}
    assert len(later) == 6
    assert not digests & {record.plan.digest for record in later}
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    study = optuna.load_study(study_name=None, storage=storage)
    states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
    assert states[TrialState.RUNNING] == 0
    assert states[TrialState.FAIL] >= 2


def shown(database: Database, run: Path) -> list[tuple[object, ...]]:
    """The trials of a run as a database shows them, once its study is written there."""
    write_study(RunDirectory(run), database, "mine")
    trials = optuna.load_study(study_name="mine", storage=str(database)).trials
    proposed = [trial for trial in trials if "trial" in trial.user_attrs]  # without what was known already
    return sorted((trial.user_attrs["trial"], trial.state, trial.values, trial.params) for trial in proposed)


def test_a_database_shows_the_same_after_a_kill_and_a_resume(kind: type[SearchStrategy], tmp_path: Path) -> None:
    whole = go(begun(kind, problem(tmp_path / "a")), 14)
    killed = begun(kind, problem(tmp_path / "b"))
    go(killed, 8)
    assert next_trial(killed) is not None, "a trial is at work when the process dies"
    first, second = (Database.of(f"sqlite:///{tmp_path}/{name}.db") for name in "ab")
    assert shown(second, tmp_path / "b")[-1][1] == TrialState.RUNNING
    go(begun(kind, problem(tmp_path / "b"), tuple(whole[:8])), 6)
    assert shown(second, tmp_path / "b") == shown(first, tmp_path / "a")


def count_of_int8(record: Record) -> int:
    """Layers that are quantized, of those that can be."""
    steps = [step for step in record.plan.steps if step.method == "quantization"]
    return sum(len(step.settings) for step in steps)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"random"}))
@pytest.mark.parametrize("widths", [(), (0.75, 0.5)], ids=["one architecture", "three architectures"])
@pytest.mark.parametrize("screened", [False, True], ids=["all trained", "most screened"])
def test_strategies_learn_from_results(name: str, screened: bool, widths: tuple[float, ...], tmp_path: Path) -> None:
    """Where quantizing a layer is all gain, later plans quantize more layers than chance does.

    Also where three plans of four are measured alone, those with fewer quantized layers than the best quarter has, and
    where trials of other architectures have other knobs.
    """

    def later(kind: type[SearchStrategy]) -> float:
        strategy = begun(kind, problem(tmp_path / kind.name, layers=12, policies=0, widths=widths))
        records = []
        for _ in range(80):
            trial = next_trial(strategy)
            assert trial is not None
            cost = 1 - count_of_int8(Record(trial, "failed")) / 13
            measured = {"latency_ms": cost, "size_bytes": 2e5 * cost}
            fewer = sum(count_of_int8(record) < count_of_int8(Record(trial, "failed")) for record in records)
            if screened and fewer < 0.75 * len(records):
                records.append(Record(trial, "screened", values=measured))
            else:
                records.append(Record(trial, "complete", values=measured | {"accuracy": 1 - cost / 2}))
            strategy.tell(records[-1])
        return sum(map(count_of_int8, records[40:])) / 40

    assert later(STRATEGIES[name]) > later(STRATEGIES["random"]) + 1
