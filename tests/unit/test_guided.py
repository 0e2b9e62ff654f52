"""The guided strategy and its parts, on a made-up network whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from autocompress.data import Array
from autocompress.front import hypervolume, pareto_front
from autocompress.landscape import Effect, Landscape, Site
from autocompress.objective import MEASURED, Constraint, Objective, make_objectives
from autocompress.plan import Plan, Recovery, Scalar, Step
from autocompress.probe import Probe, Sensitivity
from autocompress.record import Proposal, Record, Trial
from autocompress.space import Choice, Suggest
from autocompress.strategies import Problem, SearchStrategy
from autocompress.strategies._guided import training
from autocompress.strategies._guided.accuracy import AccuracyModel, compressed, restored
from autocompress.strategies._guided.costs import CostModel
from autocompress.strategies._guided.damage import damages, key_of
from autocompress.strategies._guided.gain import Gain, exclusive_volumes
from autocompress.strategies._guided.models import Models
from autocompress.strategies._guided.plans import plan_of
from autocompress.strategies._guided.policies import PolicySpace
from autocompress.strategies._guided.relatives import Relative, nearest
from autocompress.strategies._guided.results import Result, Results
from autocompress.strategies._guided.solver import sweep
from autocompress.strategies._guided.table import HARMFUL
from autocompress.strategies._guided.training import ETA, BestOf, Training, best_by_volume
from autocompress.strategies._guided.worth import gained
from autocompress.strategies.guided import FINAL_SHARE, Guided, Parts
from autocompress.strategies.random import Random

COSTS = tuple(objective.name for objective in MEASURED)
LAYERS = 6
RATIOS, PRECISIONS = (0, 0.25, 0.5), ("fp32", "int8")


def land(architecture: str = "original", macs: int = 1000, *, held: bool = False) -> Landscape:
    """Six layers of which each may lose channels and be computed on integers, which training has to follow if held."""
    sites, effects = [], []
    for turn, (method, parameter, options) in enumerate(
        (("channel_pruning", "pruning_ratio", RATIOS), ("quantization", "precision", PRECISIONS))
    ):
        for layer in range(LAYERS):
            name = f"{architecture}/{method}/conv{layer}/{parameter}"
            answers = [{name: value} for value in options[1:]]
            settings = [{parameter: value} for value in options[1:]]
            sites.append(Site(method, f"conv{layer}", turn, turn == 0, ({}, *answers), ({}, *settings)))
            effects.append((Effect(), *(_effect(layer, value, held=held) for value in options[1:])))
    return Landscape(
        architecture,
        tuple(sites),
        tuple(effects),
        tuple(f"conv{layer}" for layer in range(LAYERS)),
        ("conv",) * LAYERS,
        tuple(macs * (layer + 1) for layer in range(LAYERS)),
        tuple(100 * (layer + 1) for layer in range(LAYERS)),
    )


def _effect(layer: int, value: Scalar, *, held: bool) -> Effect:
    if value == "int8":
        return Effect((layer,), (1.0,), (1.0,), (1,), (1.0,), (8.0,), ("int8",), recovers=held)
    left = 1 - float(value)
    return Effect((layer,), (left,), (left,), (1,), (1.0,), (32.0,), ("",), recovers=True)


def plan(suggest: Suggest, epochs: int = 9) -> Plan:
    """The plan of answers to the knobs of `land`."""
    pruned = {
        f"conv{i}": {"pruning_ratio": ratio}
        for i in range(LAYERS)
        if (ratio := suggest(f"original/channel_pruning/conv{i}/pruning_ratio", Choice(RATIOS)))
    }
    numbers = {
        f"conv{i}": {"precision": precision}
        for i in range(LAYERS)
        if (precision := suggest(f"original/quantization/conv{i}/precision", Choice(PRECISIONS))) != "fp32"
    }
    steps = [Step("channel_pruning", pruned)] * bool(pruned) + [Step("quantization", numbers)] * bool(numbers)
    return Plan(steps=tuple(steps), recovery=Recovery(epochs=epochs if pruned else 0))


def problem(folder: Path, **changes: object) -> Problem:
    folder.mkdir(parents=True, exist_ok=True)
    int8: dict[str, Scalar] = {f"original/quantization/conv{i}/precision": "int8" for i in range(LAYERS)}
    given = Problem(
        plan=plan,
        policies=((int8, plan(lambda name, knob: int8.get(name, 0))),),
        objectives=make_objectives((), "accuracy", "maximize"),
        constraints=(),
        seed=0,
        journal=folder / "study.journal",
        landscapes={"original": land()},
    )
    return replace(given, **changes)  # type: ignore[arg-type]


HURT = np.array([0.3, 0.02, 0.1, 0.01, 0.05, 0.002])
"""What half of the channels of each layer cost, as divergence."""


def truth(point: Array, epochs: float) -> dict[str, float]:
    """What a trial of a point gives: losses add up and interact, training brings them back."""
    work = land().work(point[None])
    ratios = np.array([RATIOS[option] for option in point[:LAYERS]])
    hurt = float((HURT * (ratios / 0.5) ** 2).sum() * (1 + 0.3 * (ratios[1:] * ratios[:-1] > 0).sum()))
    loss = 0.2 * hurt / (1 + epochs) ** 0.5 + 0.0005 * (point[LAYERS:] > 0).sum()
    speed = np.where(work.precision[0] > 0, 0.5, 1.0)
    latency = 0.1 + 0.9 * float((work.macs[0] * speed).sum()) / sum(land().macs)
    size = 0.05 + 0.95 * float(work.stored_bytes.sum()) / (4 * sum(land().weights))
    return {"accuracy": 0.9 - loss, "latency_ms": latency, "latency_ratio": latency, "size_bytes": 1e5 * size}


BASELINE = Record(
    Trial(0, Plan(), proposal=Proposal("baseline")),
    "complete",
    values={"accuracy": 0.9, "latency_ms": 1.0, "latency_ratio": 1.0, "size_bytes": 1e5},
)


def outcome(trial: Trial, **changes: object) -> Record:
    point = land().point(trial.proposal.params)
    values = truth(point, trial.plan.total_epochs)
    seconds = {"build": 1.0, "train": float(trial.plan.recovery.epochs)}
    return replace(Record(trial, "complete", values=values, seconds=seconds), **changes)  # type: ignore[arg-type]


def entry(probe: Probe, seconds: float = 1.0) -> Sensitivity:
    answers = {
        f"original/{step.method}/{layer}/{name}": value
        for step in probe.plan.steps
        for layer, setting in step.settings.items()
        for name, value in setting.items()
    }
    values = truth(land().point(answers), 0)
    return Sensitivity(probe, divergence=5 * (0.9 - values["accuracy"]), values=values, seconds=seconds)


def begun(problem: Problem, parts: Parts = Parts()) -> Guided:  # noqa: B008
    strategy = Guided(problem, parts)
    strategy.tell(BASELINE)
    return strategy


def go(strategy: SearchStrategy, count: int) -> list[Record]:
    records: list[Record] = []
    while len(records) < count and (asked := strategy.ask()) is not None:
        if isinstance(asked, Probe):
            strategy.note(entry(asked))
            continue
        records.append(outcome(asked, ended_s=float(len(records))))
        strategy.tell(records[-1])
    return records


def by_volume(results: Results) -> BestOf:
    """Who goes on, where all are worth the same."""
    return lambda some, count: best_by_volume(some, count, results, lambda result: np.array([0.5, 0.5, 0.5]))


def volume(records: list[Record]) -> float:
    """Hypervolume within two points of the baseline."""
    points = [(1.0, 1.0, 1.0)]
    for record in records:
        values = record.values
        points.append((max(0.0, (0.9 - values["accuracy"]) / 0.02), values["latency_ms"], values["size_bytes"] / 1e5))
    return hypervolume(points, (1.0, 1.0, 1.0))


# -- the whole ---------------------------------------------------------------------------------------------------


def test_it_begins_with_what_needs_no_training_and_then_looks_at_every_change(tmp_path: Path) -> None:
    strategy = begun(problem(tmp_path))
    first = strategy.ask()
    assert isinstance(first, Trial)
    assert first.proposal.source == "policy"
    strategy.tell(outcome(first))
    probes = []
    while isinstance(asked := strategy.ask(), Probe):
        probes.append(asked)
        strategy.note(entry(asked))
    assert len(probes) == len(land().changes) == LAYERS * 3
    methods = [probe.plan.steps[0].method for probe in probes[:4]]
    assert sorted(methods) == ["channel_pruning", "channel_pruning", "quantization", "quantization"]
    assert list(probes[0].plan.steps[0].settings) == ["conv5"], "the largest layer first"
    assert all(not probe.plan.recovery.epochs for probe in probes)


def test_where_nothing_is_trained_policies_that_promise_little_are_not_tried_for_their_own_sake(tmp_path: Path) -> None:
    untrained = partial(plan, epochs=0)
    answers: list[dict[str, Scalar]] = [
        {f"original/quantization/conv{i}/precision": "int8" for i in range(LAYERS)},
        *({f"original/channel_pruning/conv{i}/pruning_ratio": ratio for i in range(LAYERS)} for ratio in (0.25, 0.5)),
    ]
    fp32 = {f"original/quantization/conv{i}/precision": "fp32" for i in range(LAYERS)}
    policies = tuple((of, untrained(lambda name, knob, of=of: {**fp32, **of}.get(name, 0))) for of in answers)
    records = go(begun(problem(tmp_path, plan=untrained, policies=policies)), 12)
    assert [record.trial.proposal.source for record in records[:2]] == ["policy", "policy"]
    assert policies[2][1].digest not in {record.plan.digest for record in records}, "it loses eleven points"


def test_the_table_takes_its_share_of_the_budget_and_no_more(tmp_path: Path) -> None:
    strategy = begun(problem(tmp_path, budget_s=100.0, workers=2))
    strategy.tell(outcome(strategy.ask()))  # type: ignore[arg-type]
    count = 0
    while isinstance(asked := strategy.ask(), Probe):
        count += 1
        strategy.note(entry(asked, seconds=10.0))
    assert count == 3, "thirty seconds of two workers"


def test_few_trials_have_a_small_table(tmp_path: Path) -> None:
    strategy = begun(problem(tmp_path, trials=2))
    strategy.tell(outcome(strategy.ask()))  # type: ignore[arg-type]
    count = 0
    while isinstance(asked := strategy.ask(), Probe):
        count += 1
        strategy.note(entry(asked))
    assert count == 6


def test_it_beats_chance_by_far(tmp_path: Path) -> None:
    found = volume(go(begun(problem(tmp_path)), 25))
    rng = np.random.default_rng(0)
    drawn = (rng.random((300, 2 * LAYERS)) * land().sizes).astype(int)
    by_chance = [
        Record(Trial(n, Plan()), "complete", values=truth(point, 9)) for n, point in enumerate(land().canonical(drawn))
    ]
    assert found > 1.05 * volume(by_chance)


def test_what_it_believes_of_trials_is_near_what_they_scored_and_less_noisy(tmp_path: Path) -> None:
    strategy, rng = begun(problem(tmp_path)), np.random.default_rng(0)
    scored, true = {}, {}
    while len(scored) < 30 and (asked := strategy.ask()) is not None:
        if isinstance(asked, Probe):
            strategy.note(entry(asked))
            continue
        record = outcome(asked)
        true[asked.number] = record.values["accuracy"]
        noisy = {**record.values, "accuracy": true[asked.number] + rng.normal(0, 0.004)}
        scored[asked.number] = noisy["accuracy"]
        strategy.tell(replace(record, values=noisy))
    believed = strategy.believed()
    assert believed.keys() == {0, *scored}
    errors = {number: abs(believed[number] - true[number]) for number in scored}
    assert np.mean(list(errors.values())) < 0.9 * np.mean([abs(scored[number] - true[number]) for number in scored])


def test_each_of_its_parts_can_be_left_out(tmp_path: Path) -> None:
    """What a part does is not seen without it, and is seen with it."""

    def looks(strategy: Guided) -> bool:
        policy = strategy.ask()
        assert isinstance(policy, Trial)
        strategy.tell(outcome(policy))
        return isinstance(strategy.ask(), Probe)

    def error(records: list[Record]) -> float:
        """Points by which later losses are not what was expected."""
        later = [record for record in records[8:] if record.plan.recovery.epochs]
        losses = [100 * (0.9 - record.values["accuracy"]) for record in later]
        expected = [float(record.trial.proposal.attributes["expected_loss"]) for record in later]
        return float(np.abs(np.array(expected) - losses).mean())

    def without(part: str) -> Guided:
        return begun(problem(tmp_path / part, epoch_s=10.0), replace(Parts(), **({part: False} if part else {})))

    assert looks(without(""))
    assert not looks(without("table"))
    found = {part: go(without(part), 24) for part in ("", "refit", "uniform", "inheritance")}
    assert all(len({record.plan.digest for record in records}) == 24 for records in found.values())
    assert "policy" in {record.trial.proposal.source for record in found[""]}
    assert "policy" not in {record.trial.proposal.source for record in found["uniform"]}
    assert any(record.plan.start for record in found[""])
    assert not any(record.plan.start for record in found["inheritance"])
    assert error(found[""]) < 0.8 * error(found["refit"])


def test_training_begins_short_and_the_best_go_on_from_their_own_weights(tmp_path: Path) -> None:
    records = go(begun(problem(tmp_path, epoch_s=10.0)), 40)
    trained = [record for record in records if record.plan.recovery.epochs]
    assert trained[0].plan.recovery.epochs == 1
    assert trained[0].trial.fidelity == pytest.approx(1 / 9)
    promoted = [record for record in records if record.trial.proposal.source == "promotion"]
    by_number = {record.number: record for record in records}
    assert promoted
    for record in promoted:
        parent = by_number[int(record.trial.proposal.attributes["start"])]
        assert record.plan.start == parent.plan
        pruned = [step for step in parent.plan.steps if step.method == "channel_pruning"]
        assert [step for step in record.plan.steps if step.method == "channel_pruning"] == pruned
        before = by_number[int(record.trial.proposal.attributes["promotes"])].plan.total_epochs
        assert record.plan.total_epochs >= min(9, before + ETA - 1)


def held_plan(suggest: Suggest) -> Plan:
    """Training has to follow whatever is done."""
    made = plan(suggest)
    return replace(made, recovery=Recovery(epochs=9 if made.steps else 0))


def test_models_with_held_values_alone_go_on_from_their_own_weights(tmp_path: Path) -> None:
    given = problem(tmp_path, epoch_s=10.0, plan=held_plan, policies=(), landscapes={"original": land(held=True)})
    records = go(begun(given), 60)
    by_number = {record.number: record for record in records}
    kept = [r for r in records if [step.method for step in r.plan.steps] == ["quantization"]]
    promoted = [record for record in kept if "promotes" in record.trial.proposal.attributes]
    assert promoted
    for record in kept:
        attributes = record.trial.proposal.attributes
        assert record.trial.fidelity == pytest.approx(record.plan.total_epochs / 9)
        if record not in promoted:
            assert record.plan.start is None
            continue
        assert attributes["start"] == attributes["promotes"]
        assert record.plan.start == by_number[int(attributes["promotes"])].plan
        assert attributes["before"] == record.plan.start.total_epochs


def test_held_values_go_on_a_second_time_from_where_they_ended(tmp_path: Path) -> None:
    given = problem(tmp_path, epoch_s=10.0, plan=held_plan, landscapes={"original": land(held=True)})
    training, results = Training(given.landscapes, plan_of(given), given.epoch_s), Results(given.objectives, ())
    results.add(Result(0, "original", land().neutral(), 0, 0, 0, 0.0, {}, BASELINE))
    for number, layer in ((1, 0), (2, 3)):
        point = land().neutral()
        point[LAYERS + layer] = 1
        free = training.free_epochs("original", point, before=2, own=6)
        assert free == 0, "nobody else can start from held values"
        values = {"accuracy": 0.89, "latency_ms": 0.9 - 0.01 * number, "size_bytes": 9e4}
        record = Record(Trial(number, Plan(recovery=Recovery(epochs=6))), "complete", values=values)
        results.add(Result(number, "original", point, 8, free, 0, 1.0, {}, record))
    found = list(training.promotions(results, by_volume(results), everyone=True))
    assert {(int(one.promotes[0]), int(one.starts[0]), float(one.before[0]), int(one.own[0])) for one in found} == {
        (1, 1, 8.0, 1),
        (2, 2, 8.0, 1),
    }


def test_with_weights_those_go_on_that_are_best_by_them(tmp_path: Path) -> None:
    objectives = make_objectives(("accuracy:100", "latency_ms:1"), "accuracy", "maximize")
    records = go(begun(problem(tmp_path, epoch_s=10.0, objectives=objectives, trials=40)), 40)

    def worse(record: Record) -> float:
        return 100 * (0.9 - record.values["accuracy"]) * 100 + 100 * record.values["latency_ms"]

    promoted = {int(r.trial.proposal.attributes.get("promotes", 0)) for r in records} - {0}
    first = [record for record in records if record.plan.total_epochs == 1]
    best = sorted(first, key=worse)[: len(first) // 2]
    assert promoted
    assert sum(record.number in promoted for record in best) > sum(r.number in promoted for r in first if r not in best)


def test_new_models_start_from_their_nearest_relative(tmp_path: Path) -> None:
    records = go(begun(problem(tmp_path, epoch_s=10.0)), 40)
    heirs = [r for r in records if r.plan.start is not None and r.trial.proposal.source != "promotion"]
    assert heirs
    for record in heirs:
        assert record.plan.start is not None
        own = next(step.settings for step in record.plan.steps if step.method == "channel_pruning")
        begun_with = next(step.settings for step in record.plan.start.steps if step.method == "channel_pruning")
        assert begun_with.items() <= own.items()


def test_weights_are_kept_of_what_later_trials_may_start_from(tmp_path: Path) -> None:
    strategy = begun(problem(tmp_path, epoch_s=10.0))
    records = go(strategy, 40)
    kept = strategy.parents()
    later = go(strategy, 10)
    assert all(r.plan.start.digest in kept | {one.plan.digest for one in later} for r in later if r.plan.start)
    assert kept <= {record.plan.digest for record in records if record.plan.recovery.epochs}


def test_nothing_untrained_that_needs_training_begins_in_the_last_quarter(tmp_path: Path) -> None:
    strategy = begun(problem(tmp_path, budget_s=100.0, epoch_s=10.0))
    go(strategy, 15)
    late = strategy.ask()
    assert isinstance(late, Trial)
    strategy.tell(outcome(late, ended_s=FINAL_SHARE * 100 + 1))
    for record in go(strategy, 10):
        assert record.plan.start is not None or not record.plan.recovery.epochs


def is_untrained(trial: Trial) -> bool:
    return not trial.plan.recovery.epochs


def test_what_ends_in_time_is_proposed_before_what_does_not(tmp_path: Path) -> None:
    strategy = begun(problem(tmp_path, epoch_s=10.0))
    number = go(strategy, 12)[-1].number
    short = strategy.ask(is_untrained)
    assert isinstance(short, Trial)
    assert is_untrained(short)
    assert short.number == number + 1
    strategy.tell(outcome(short))
    assert any(not is_untrained(record.trial) for record in go(strategy, 6)), "the others are not forgotten"


def test_constraints_are_obeyed_where_it_matters(tmp_path: Path) -> None:
    limit = Constraint.parse("latency_ms<=0.45x")
    records = go(begun(problem(tmp_path, constraints=(limit,))), 30)
    met = [record.values["latency_ms"] <= 0.45 for record in records[8:]]
    assert sum(met) > 0.7 * len(met)


def test_what_is_at_work_and_will_break_a_constraint_takes_no_gain_from_others(tmp_path: Path) -> None:
    objectives = make_objectives(("accuracy:1", "size_bytes:100"), "accuracy", "maximize")
    limit = Constraint.parse("latency_ms<=0.2x")
    strategy = begun(problem(tmp_path, objectives=objectives, constraints=(limit,)))
    point = land().neutral()
    point[LAYERS:] = 1
    yardstick, models, front = strategy._the_yardstick, strategy._fitted(), strategy._results.front
    larger = np.zeros(1), {"latency_ms": np.array([0.15]), "size_bytes": np.array([0.7])}
    alone, beside = (gained(yardstick, models, front, work)(*larger) for work in ((), [("original", point, 0.0)]))
    assert beside == alone > 0


def test_tpe_learns_from_what_is_allowed(tmp_path: Path) -> None:
    limit = Constraint.parse("latency_ms<=0.45x")
    strategy = begun(problem(tmp_path, constraints=(limit,)))
    final = [record for record in go(strategy, 20) if record.trial.fidelity >= 1]
    allowed = [record for record in final if record.values["latency_ms"] <= 0.45]
    assert 0 < len(allowed) < len(final)
    assert len(strategy._proposer.told(strategy._results)) == len(allowed)


def test_what_was_expected_of_a_trial_is_in_its_record(tmp_path: Path) -> None:
    records = go(begun(problem(tmp_path)), 30)[10:]
    found = [record.values["latency_ms"] for record in records]
    expected = [float(record.trial.proposal.attributes["expected_latency_ms_ratio"]) for record in records]
    assert expected == pytest.approx(found, rel=0.1)


def test_architectures_without_anything_to_change_are_tried_as_they_are(tmp_path: Path) -> None:
    bare = {name: replace(land(name), sites=(), effects=()) for name in ("original", "width_0.5", "width_0.25")}

    def narrow(suggest: Suggest) -> Plan:
        chosen = str(suggest("architecture", Choice(tuple(bare))))
        return Plan(chosen, recovery=Recovery(epochs=0 if chosen == "original" else 9))

    strategy = begun(problem(tmp_path, landscapes=bare, plan=narrow, policies=(), epoch_s=10.0))
    found = []
    while isinstance(trial := strategy.ask(), Trial):
        found.append((trial.plan.architecture, trial.plan.total_epochs))
        values = {"accuracy": 0.89, "latency_ms": 0.5, "latency_ratio": 0.5, "size_bytes": 5e4}
        strategy.tell(Record(trial, "complete", values=values, seconds={"build": 1.0}))
    assert trial is None
    assert {name for name, _ in found} == {"width_0.5", "width_0.25"}
    assert max(epochs for _, epochs in found) == 9, "the best of them in full"


def test_a_search_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = begun(problem(tmp_path / "whole", epoch_s=10.0))
    records, entries = [], []
    while len(records) < 30 and (asked := whole.ask()) is not None:
        if isinstance(asked, Probe):
            entries.append(entry(asked))
            whole.note(entries[-1])
        else:
            records.append(outcome(asked, ended_s=float(len(records))))
            whole.tell(records[-1])
    for done in (1, 7, 15, 22, 29):
        resumed = begun(problem(tmp_path / str(done), epoch_s=10.0))
        for record in records[:done]:
            resumed.tell(record)
        for seen in entries:
            resumed.note(seen)
        asked = resumed.ask()
        assert isinstance(asked, Trial)
        assert asked.plan == records[done].plan, f"after {done} trials"
        assert asked.proposal == records[done].trial.proposal


def test_a_block_that_was_cut_off_is_solved_from_what_was_known_when_it_began(tmp_path: Path) -> None:
    whole = begun(problem(tmp_path / "whole", epoch_s=10.0, workers=2))
    at_work: list[Trial] = []
    told: list[Record] = []
    entries = []
    while len(told) < 25:
        asked = whole.ask()
        if isinstance(asked, Probe):
            entries.append(entry(asked))
            whole.note(entries[-1])
            continue
        assert asked is not None
        at_work.append(asked)
        if len(at_work) == 2:  # the second of each pair ends first
            told.append(outcome(at_work.pop(), ended_s=float(len(told))))
            whole.tell(told[-1])
    told.append(outcome(at_work.pop(), ended_s=float(len(told))))
    whole.tell(told[-1])
    resumed = begun(problem(tmp_path / "again", epoch_s=10.0, workers=2))
    for record in sorted(told, key=lambda record: record.number):
        resumed.tell(record)
    for seen in entries:
        resumed.note(seen)
    after, expected = resumed.ask(), whole.ask()
    assert isinstance(after, Trial)
    assert isinstance(expected, Trial)
    assert after.plan == expected.plan


def test_a_plan_that_leaves_out_what_means_nothing_is_no_other_trial(tmp_path: Path) -> None:
    def deaf(suggest: Suggest) -> Plan:  # what the last layer is told means nothing
        return plan(lambda name, knob: "fp32" if "quantization/conv5" in name else suggest(name, knob))

    records = go(begun(problem(tmp_path, plan=deaf, policies=(), epoch_s=10.0)), 40)
    points = [
        land().realized(record.plan).tobytes() for record in records if record.trial.proposal.source != "promotion"
    ]
    assert len(set(points)) == len(points)


def test_heirs_of_the_front_are_trained_more_through_what_they_began_with(tmp_path: Path) -> None:
    """A pruned model with little training, and the same in int8, which has nothing but its weights and beats it."""
    given, axes = problem(tmp_path, epoch_s=10.0), [("accuracy", 0.9), ("latency_ms", 1.0), ("size_bytes", 1e5)]
    pruned, int8 = np.zeros((2, 2 * LAYERS), int)
    pruned[0], int8[0], int8[LAYERS:] = 1, 1, 1
    results = Results(given.objectives, ())
    for number, point, epochs, start in ((0, 0 * pruned, 0, 0), (1, pruned, 1, 0), (2, int8, 0, 1)):
        made = plan(lambda name, knob, point=point: land().answers(point).get(name, 0), epochs)  # type: ignore[misc]
        values = {name: level * (1 - 0.01 * number) for name, level in axes}
        record = Record(Trial(number, made), "complete", values=values)
        trained = min(1.0, float(number))
        results.add(Result(number, "original", point, trained, trained, start, 0.9 * number, {}, record))
    training = Training(given.landscapes, plan_of(given), given.epoch_s)
    found = training.promotions(results, by_volume(results), everyone=True)
    heir = next(one for one in found if one.promotes[0] == 2)
    assert (heir.starts[0], heir.before[0]) == (1, 1)
    assert heir.own[0] == ETA - 1
    assert np.array_equal(heir.points[0], int8)


def test_heirs_take_no_place_of_those_that_can_be_trained_more(tmp_path: Path) -> None:
    training, landscape = Training({"original": land()}, plan_of(problem(tmp_path)), 10.0), land()
    objectives = make_objectives((), "accuracy", "maximize")
    results = Results(objectives, ())
    whole, first = landscape.neutral(), landscape.neutral()
    whole[0], first[1] = 2, 2

    def add(number: int, point: Array, own: int, start: int, *, epochs: float, accuracy: float) -> None:
        values = {"accuracy": accuracy, "latency_ms": 0.9 - 0.01 * number, "size_bytes": 9e4 - 100 * number}
        record = Record(Trial(number, Plan(recovery=Recovery(epochs=own))), "complete", values=values)
        results.add(Result(number, "original", point, epochs, epochs, start, 0.0, {}, record))

    results.add(Result(0, "original", landscape.neutral(), 0, 0, 0, 0.0, {}, BASELINE))
    add(1, whole, 9, 0, epochs=9, accuracy=0.89)
    for number in range(2, 10):
        heir = whole.copy()
        heir[LAYERS : LAYERS + number % LAYERS + 1] = 1
        add(number, heir, 0, 1, epochs=9, accuracy=0.89 + 0.0001 * number)
    add(10, first, 1, 0, epochs=1, accuracy=0.88)
    promoted = list(training.promotions(results, by_volume(results)))
    assert [int(one.promotes[0]) for one in promoted] == [10], "all others had all there is"
    assert promoted[0].own.tolist() == [3]
    again = list(training.promotions(results, by_volume(results), longest=True))
    assert {int(one.promotes[0]) for one in again} > {10}


def test_chains_of_starts_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New models do not begin with weights that have begun with others too often."""

    def longest(folder: Path) -> int:
        found = 0
        for record in go(begun(problem(folder, epoch_s=10.0)), 40):
            starts, one = 0, record.plan
            while one.start is not None:
                starts, one = starts + 1, one.start
            found = max(found, starts if record.trial.proposal.source != "promotion" else 0)
        return found

    assert 1 < longest(tmp_path / "usual") <= training.MOST_STARTS
    monkeypatch.setattr(training, "MOST_STARTS", 1)
    assert longest(tmp_path / "short") == 1


def fastest(records: list[Record]) -> float:
    return min(record.values["latency_ms"] for record in records)


def smallest_product(records: list[Record]) -> float:
    return min(record.values["latency_ms"] * record.values["size_bytes"] / 1e5 for record in records)


def best_sum(records: list[Record]) -> float:
    """Percent of latency that is gained, less a hundred for each point that is lost."""
    costs = [100 * (0.9 - one.values["accuracy"]) * 100 + 100 * one.values["latency_ms"] for one in records]
    return min(costs) - 100


def least_loss(records: list[Record]) -> float:
    return min(100 * (0.9 - record.values["accuracy"]) for record in records)


@pytest.mark.parametrize(
    ("names", "best", "wanted"),
    [
        (("accuracy:100", "latency_ms:1"), best_sum, -18),
        (("latency_ms",), fastest, 0.42),
        (("latency_ms", "size_bytes"), smallest_product, 0.08),
        (("accuracy",), least_loss, 0.06),
    ],
)
def test_other_objectives(
    names: tuple[str, ...], best: Callable[[list[Record]], float], wanted: float, tmp_path: Path
) -> None:
    """What is wanted is found, which uniform policies and as many plans by chance miss by far."""
    given = problem(
        tmp_path,
        objectives=make_objectives(names, "accuracy", "maximize"),
        metric=Objective("accuracy", "maximize"),
        constraints=(Constraint.parse("accuracy>=baseline-2%"),),
    )
    records = go(begun(given), 25)

    def allowed(some: list[Record]) -> list[Record]:
        return [record for record in some if record.values["accuracy"] >= 0.88]

    chance = Random(replace(given, journal=tmp_path / "chance.journal"))
    chance.tell(BASELINE)
    assert best(allowed(records)) <= wanted < best(allowed(go(chance, 25)))


def test_a_metric_that_is_to_be_small_and_no_share(tmp_path: Path) -> None:
    given = problem(tmp_path, objectives=make_objectives((), "error", "minimize"), is_percentage=False)

    def turned(record: Record) -> Record:
        values = dict(record.values)
        values["error"] = 2.0 * (1 - values.pop("accuracy"))
        return replace(record, values=values)

    def good(strategy: SearchStrategy) -> list[Record]:
        strategy.tell(turned(BASELINE))
        records: list[Record] = []
        while len(records) < 25 and (asked := strategy.ask()) is not None:
            if isinstance(asked, Probe):
                strategy.note(entry(asked))
                continue
            records.append(turned(outcome(asked, ended_s=float(len(records)))))
            strategy.tell(records[-1])
        return [record for record in records if record.values["error"] <= 0.2 * 1.05]

    chance = good(Random(replace(given, journal=tmp_path / "chance.journal")))
    assert smallest_product(good(Guided(given))) < 0.12 < smallest_product(chance)


def test_the_last_quarter_of_the_trials_goes_to_what_was_trained_before(tmp_path: Path) -> None:
    records = go(begun(problem(tmp_path, trials=24, epoch_s=10.0)), 24)
    for record in records[18:]:
        assert record.plan.start is not None or not record.plan.recovery.epochs


def test_records_whose_start_is_missing_are_no_obstacle(tmp_path: Path) -> None:
    records = go(begun(problem(tmp_path / "whole", epoch_s=10.0)), 40)
    lost = {int(record.trial.proposal.attributes.get("start", 0)) for record in records} - {0}
    resumed = begun(problem(tmp_path / "again", epoch_s=10.0))
    for record in records:
        if record.number not in lost:
            resumed.tell(record)
    assert len(go(resumed, 10)) == 10


def test_a_change_that_could_not_be_made_is_avoided(tmp_path: Path) -> None:
    strategy = begun(problem(tmp_path))
    while isinstance(asked := strategy.ask(), Probe | Trial):
        if isinstance(asked, Trial):
            if asked.proposal.source != "policy":
                break
            strategy.tell(outcome(asked))
            continue
        failed = "conv3" in asked.plan.steps[0].settings
        seen = entry(asked)
        strategy.note(replace(seen, divergence=0.0, values={}, reason="not finite") if failed else seen)
    damage = strategy._table.damages["original"]
    names = [land().sites[site].layer for site, _ in land().changes]
    found = [value for name, value in zip(names, damage, strict=True) if name == "conv3"]
    assert found == pytest.approx([HARMFUL] * 3)


def test_models_that_were_not_worth_training_teach_what_they_cost(tmp_path: Path) -> None:
    strategy = begun(problem(tmp_path))
    go(strategy, 6)
    asked = strategy.ask()
    assert isinstance(asked, Trial)
    point = land().point(asked.proposal.params)
    before = strategy._fitted().costs.predict("original", point[None])["size_bytes"][0][0]
    strategy.tell(Record(asked, "screened", values={"latency_ms": 0.9, "size_bytes": 9e4}))
    after = strategy._fitted().costs.predict("original", point[None])["size_bytes"][0][0]
    assert after > before + 0.01, "it weighs more than was expected"


def test_results_have_the_front_of_all_in_whatever_order_they_came(tmp_path: Path) -> None:
    records = go(begun(problem(tmp_path)), 20)
    objectives = make_objectives((), "accuracy", "maximize")
    expected = [record.number for record in pareto_front([BASELINE, *records], objectives)]
    for order in (records, records[::-1]):
        found = Results(objectives, ())
        for record in (BASELINE, *order):
            point = land().point(record.trial.proposal.params)
            found.add(Result(record.number, "original", point, 0, 0, 0, 0.0, {}, record))
        assert [result.number for result in found.front] == expected


# -- its parts ---------------------------------------------------------------------------------------------------


def test_settings_that_are_chosen_by_name_are_not_ordered() -> None:
    words = replace(
        land().sites[0],
        options=({}, {"original/channel_pruning/conv0/by": "l1"}, {"original/channel_pruning/conv0/by": "taylor"}),
        settings=({}, {"by": "l1"}, {"by": "taylor"}),
    )
    landscape = replace(land(), sites=(words, *land().sites[1:]))
    known = {key_of(landscape, 0): 0.5, key_of(landscape, 1): 0.1}
    assert damages(landscape, known)[:2] == pytest.approx([0.5, 0.1])


def test_what_training_brings_back_is_foreseen_and_what_is_too_small_is_not(tmp_path: Path) -> None:
    landscape = land()
    model = AccuracyModel({"original": landscape}, {"original": damages(landscape, {})})
    few, many = landscape.neutral(), landscape.neutral()
    few[0], many[:LAYERS] = 1, 2
    losses = {
        (name, epochs): float(restored(model.predict("original", point[None], np.array([epochs]))[0])[0])
        for name, point in (("few", few), ("many", many))
        for epochs in (0.0, 1.0, 10.0)
    }
    for name in ("few", "many"):
        assert losses[name, 0.0] > losses[name, 1.0] > losses[name, 10.0] > 0
    assert losses["few", 10.0] / losses["few", 0.0] < losses["many", 10.0] / losses["many", 0.0]
    whole = model.predict("original", landscape.neutral()[None], np.zeros(1))
    assert whole[0][0] == 0
    assert whole[1][0] < 0.05, "nothing is lost where nothing is changed"


def test_damage_does_not_fall_where_more_is_taken() -> None:
    landscape = land()
    known = {key_of(landscape, change): value for change, value in ((0, 0.5), (1, 0.1))}
    found = damages(landscape, known)
    assert found[0] == found[1] == pytest.approx(np.sqrt(0.05))


def test_guesses_give_way_to_what_was_measured() -> None:
    landscape = land()
    first, second = 0, 1  # a quarter and half of the channels of the first layer
    elsewhere = {key_of(landscape, change): value for change, value in ((2, 0.3), (5, 0.05))}
    found = damages(landscape, {key_of(landscape, second): 0.1, **elsewhere})
    assert found[:2] == pytest.approx([0.1, 0.1]), "a quarter hurts 0.3 elsewhere, but no more than half does here"
    found = damages(landscape, {key_of(landscape, first): 0.1, **elsewhere})
    assert found[:2] == pytest.approx([0.1, 0.1]), "half hurts 0.05 elsewhere, but no less than a quarter does here"


def test_unknown_changes_hurt_as_their_like() -> None:
    landscape = land()
    known = {key_of(landscape, 1): 0.2, key_of(landscape, 3): 0.4}
    assert damages(landscape, known)[5] == pytest.approx(0.3)
    assert damages(landscape, {})[5] == pytest.approx(0.05)


def test_gain_is_the_difference_of_hypervolumes() -> None:
    rng = np.random.default_rng(0)
    front, new = rng.random((6, 3)), rng.random((40, 3))
    base = hypervolume(front.tolist(), (1, 1, 1))
    exact = [hypervolume([*front.tolist(), point.tolist()], (1, 1, 1)) - base for point in new]
    assert Gain(front).of(new) == pytest.approx(exact, abs=1e-9)
    assert Gain(front).of(front) == pytest.approx(0.0, abs=1e-12)
    assert Gain(np.zeros((0, 2))).of(np.array([[0.5, 0.5], [1.2, 0.1]])) == pytest.approx([0.25, 0.0])


def test_exclusive_volumes_are_what_is_lost_without_a_point() -> None:
    points = np.random.default_rng(5).random((5, 3))
    whole = hypervolume(points.tolist(), (1, 1, 1))
    lost = [whole - hypervolume(np.delete(points, row, axis=0).tolist(), (1, 1, 1)) for row in range(5)]
    assert exclusive_volumes(points) == pytest.approx(lost, abs=1e-9)


def test_large_fronts_are_nearly_exact() -> None:
    rng = np.random.default_rng(6)
    directions = np.abs(rng.normal(size=(150, 3)))
    front = 1 - 0.9 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    new = rng.random((20, 3))
    base = hypervolume(front.tolist(), (1, 1, 1))
    exact = [hypervolume([*front.tolist(), point.tolist()], (1, 1, 1)) - base for point in new]
    assert Gain(front).of(new) == pytest.approx(exact, abs=0.01)


def test_costs_are_learned_from_a_few_measurements() -> None:
    landscape, rng = land(), np.random.default_rng(1)
    model = CostModel({"original": landscape}, COSTS)
    points = landscape.canonical((rng.random((60, 12)) * landscape.sizes).astype(int))
    for number, point in enumerate(points[:30]):
        values = truth(point, 0)
        shares = {"latency_ms": values["latency_ms"], "size_bytes": values["size_bytes"] / 1e5}
        model.learn(number, "original", point, shares)
    found = model.predict("original", points[30:])
    latency = [truth(point, 0)["latency_ms"] for point in points[30:]]
    size = [truth(point, 0)["size_bytes"] / 1e5 for point in points[30:]]
    assert found["latency_ms"][0] == pytest.approx(latency, rel=0.08)
    assert found["size_bytes"][0] == pytest.approx(size, rel=0.03)


def test_costs_of_methods_that_do_not_tell_are_learned_too() -> None:
    silent = replace(land(), effects=tuple((Effect(),) * len(options) for options in land().effects))
    model, point = CostModel({"original": silent}, COSTS), silent.neutral()
    model.learn(0, "original", point, {"size_bytes": 1.0})
    point[3] = 2
    model.learn(1, "original", point, {"size_bytes": 0.8})
    assert model.predict("original", point[None])["size_bytes"][0][0] == pytest.approx(0.8, abs=0.02)


def test_losses_are_learned_and_doubt_shrinks() -> None:
    landscape, rng = land(), np.random.default_rng(2)
    damage = damages(landscape, {})
    points = landscape.canonical((rng.random((80, 12)) * landscape.sizes).astype(int))
    losses = np.array([100 * (0.9 - truth(point, 0)["accuracy"]) for point in points])
    model = AccuracyModel({"original": landscape}, {"original": damage})
    before = model.predict("original", points[50:], np.zeros(30))
    for number in range(50):
        model.learn(number, "original", points[number], epochs=0, loss=float(losses[number]))
    after = model.predict("original", points[50:], np.zeros(30))
    assert after[1].mean() < before[1].mean()
    errors = [np.abs(restored(mean) - losses[50:]).mean() for mean, _ in (before, after)]
    assert errors[1] < 0.5 * errors[0]


def test_the_order_of_results_does_not_matter() -> None:
    landscape = land()
    rng = np.random.default_rng(3)
    points = landscape.canonical((rng.random((20, 12)) * landscape.sizes).astype(int))
    found = []
    for order in (range(20), reversed(range(20))):
        model = AccuracyModel({"original": landscape}, {"original": damages(landscape, {})})
        for number in order:
            model.learn(number, "original", points[number], epochs=0, loss=float(number))
        found.append(model.predict("original", points, np.zeros(20))[0])
    assert (found[0] == found[1]).all()


def test_the_scale_of_losses_has_an_inverse() -> None:
    losses = np.array([-1.0, 0.0, 0.3, 5.0, 80.0])
    assert restored(compressed(losses)) == pytest.approx(losses)


def test_policies_are_decoded_to_what_they_say() -> None:
    landscape = land()
    space = PolicySpace({"original": landscape}, {"original": damages(landscape, {})})
    for amount in (0.0, 0.4, 1.0):
        policy = {"architecture": "original", "channel_pruning": amount, "quantization": 1 - amount}
        name, point = space.decode(policy)
        found = space.encode(name, point)
        assert found["channel_pruning"] == pytest.approx(amount, abs=0.3)
        assert found["quantization"] == pytest.approx(1 - amount, abs=0.3)
    _, everything = space.decode({"architecture": "original", "channel_pruning": 1.0, "quantization": 1.0})
    assert (everything == landscape.sizes - 1).all()


def test_suggested_policies_are_in_range_and_repeatable() -> None:
    landscape = land()
    space = PolicySpace({"original": landscape}, {"original": damages(landscape, {})})
    told = [(space.encode("original", landscape.neutral()), [0.1, 0.2])] * 12
    first, again = space.suggest(told, 3, 5), space.suggest(told, 3, 5)
    assert first == again
    assert all(0 <= float(policy["quantization"]) <= 1 for policy in first)


def test_the_solver_finds_what_is_best_for_each_exchange() -> None:
    landscape = land()

    def price(points: Array) -> Array:
        losses = np.array([100 * (0.9 - truth(point, 9)["accuracy"]) for point in points])
        latency = np.log([truth(point, 9)["latency_ms"] for point in points])
        return np.column_stack([losses, latency])

    found = np.array(list(sweep(landscape, price, landscape.neutral()[None])))
    rng = np.random.default_rng(4)
    others = price(landscape.canonical((rng.random((2000, 12)) * landscape.sizes).astype(int)))
    reached = price(found)
    for weight in (0.1, 1.0, 5.0):
        mixed = np.array([weight, 1.0])
        assert (reached @ mixed).min() <= (others @ mixed).min() + 1e-9


def test_a_relative_has_nothing_that_the_new_model_has_not() -> None:
    landscape = land()
    damage = damages(landscape, {})
    parent = landscape.neutral()
    parent[[0, 1]] = 2
    child, stranger = parent.copy(), landscape.neutral()
    child[[2, LAYERS]] = 1
    stranger[0] = 2
    numbers, epochs = nearest(landscape, np.array([child, stranger, parent]), [Relative(7, parent, 6.0)], damage)
    assert numbers.tolist() == [7, 0, 7]
    assert epochs[2] == 6
    assert 0 < epochs[0] < 6
    assert epochs[1] == 0


def test_one_slow_trial_does_not_say_what_epochs_take() -> None:
    original = land().point({})
    harmless = np.zeros(sum(len(options) - 1 for options in land().effects))
    models = Models({"original": land()}, {"original": harmless}, costs=COSTS, epoch_s=10.0, epoch_steps=1)
    shares = {"latency_ms": 1.0, "size_bytes": 1.0}
    expected = [10.0]
    for number in (1, 2):
        trial = Trial(number, Plan(recovery=Recovery(epochs=2)))
        record = Record(trial, "complete", values=BASELINE.values, seconds={"recover": 7.0, "train": 80.0})
        models.learn(Result(number, "original", original, 2.0, 2.0, 0, 0.0, shares, record))
        expected.append(float(models.epoch_s("original", original[None])[0]))
    assert expected == pytest.approx([10.0, 25.0, 40.0])
    assert models.fixed_s == pytest.approx(7.0)
