from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from torch import nn

from autocompress import pipeline, recovery
from autocompress.artifact import Artifact
from autocompress.data import Batch
from autocompress.devices import resolve_profile
from autocompress.devices.fake import FakeDevice
from autocompress.errors import DeviceUnavailable, InfeasiblePlan, MeasurementError, TaskFailed, UnknownName
from autocompress.formats.compact import compact
from autocompress.formats.encodings import encode_weights
from autocompress.formats.onnx_export import export
from autocompress.formats.onnx_runtime import predictor
from autocompress.methods.channel_pruning import ChannelPruning
from autocompress.objective import Constraint, make_objectives
from autocompress.pipeline import (
    Trained,
    Workbench,
    apply_plan,
    build_architecture,
    recovering,
    run_baseline,
    run_trial,
    score_on_device,
    score_test,
    survey_architectures,
    trials,
)
from autocompress.pipeline.on_device import together
from autocompress.plan import Plan, Recovery, Step
from autocompress.profile import HardwareProfile, Protocol
from autocompress.record import TAKEN_UP, DeviceScore, Record, SplitScore, TooSlow, Trial
from autocompress.recovery import Lessons, Recovered
from autocompress.screen import Screen
from autocompress.space import Int, SearchSpace
from autocompress.student import Student
from autocompress.task import Metric, Task
from tests.conftest import SPECIMENS, ResidualBlock, bench_of
from tests.tasks.stripes import Net, task

PRUNED = Plan(
    steps=(
        Step("channel_pruning", {"inner": {"pruning_ratio": 0.5}}),
        Step("quantization", {"outer": {"precision": "int8"}, "head": {"precision": "dynamic_int8"}}),
    ),
    recovery=Recovery(epochs=2),
)
WRONG = Plan(steps=(Step("channel_pruning", {"nowhere": {"pruning_ratio": 0.5}}),))


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(task, (resolve_profile("fake"),), tmp_path)


@pytest.fixture
def baseline(bench: Workbench) -> Record:
    return run_baseline(Trial(0, Plan()), bench)


def screen(baseline: Record, *constraints: str, front: tuple[dict[str, float], ...] = ()) -> Screen:
    parsed = tuple(Constraint.parse(text) for text in constraints)
    return Screen(make_objectives((), "accuracy", "maximize"), parsed, "accuracy", True, baseline.values, front)


def test_the_baseline_is_measured_against_itself(baseline: Record) -> None:
    assert baseline.status == "complete"
    assert baseline.values["latency_ratio"] == 1
    assert baseline.values["accuracy"] > 0.8


def test_a_trial_gives_a_file_whose_score_is_the_records(bench: Workbench, baseline: Record) -> None:
    record = run_trial(Trial(1, PRUNED), bench, screen(baseline))
    assert record.status == "complete", record.reason
    assert record.artifact is not None
    path = bench.directory / record.artifact.path
    assert Artifact.of(path).sha256 == record.artifact.sha256
    assert task.score(predictor(path)) == record.values["accuracy"]
    assert record.values["latency_ms"] == record.values["latency_ratio"] * baseline.values["latency_ms"]
    assert record.values["size_bytes"] == path.stat().st_size < baseline.values["size_bytes"]
    assert {"build", "screen", "recover", "train", "export", "parity", "score", "measure"} == set(record.seconds)
    assert record.details["score_before_recovery"] <= record.details["recovered_score"]


def test_the_plan_is_found_in_the_file(bench: Workbench, baseline: Record) -> None:
    record = run_trial(Trial(1, PRUNED), bench)
    assert record.artifact is not None
    graph = onnx.load(bench.directory / record.artifact.path).graph
    shapes = {tuple(tensor.dims): tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4}
    assert shapes[(8, 16, 3, 3)] == onnx.TensorProto.FLOAT, "half of the channels of `inner`, not quantized"
    assert shapes[(16, 8, 3, 3)] == onnx.TensorProto.INT8, "`outer` reads 8 channels and is quantized"


def test_an_infeasible_plan_is_a_record_with_the_reason(bench: Workbench, baseline: Record) -> None:
    record = run_trial(Trial(1, WRONG), bench)
    assert (record.status, record.artifact) == ("failed", None)
    assert record.reason.startswith("InfeasiblePlan: channel_pruning")
    assert "nowhere" in record.reason


def test_a_hopeless_plan_is_dropped_before_training(bench: Workbench, baseline: Record) -> None:
    record = run_trial(Trial(1, PRUNED), bench, screen(baseline, "size_bytes<=0.01x"))
    assert record.status == "screened"
    assert "recover" not in record.seconds
    assert record.reason.startswith("size_bytes is")
    assert not list(bench.directory.rglob("*untrained*"))


def test_a_trial_cut_short_after_training_is_not_trained_again(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(1, PRUNED, seed=4)
    whole = run_trial(trial, bench)
    for path in kept_weights(bench):
        path.unlink()
    with monkeypatch.context() as broken:
        broken.setattr(bench.devices[0], "measure", _lost_device)
        with pytest.raises(DeviceUnavailable, match="the board is gone"):
            run_trial(trial, bench)
    assert len(kept_weights(bench)) == 1
    with monkeypatch.context() as untrainable:
        untrainable.setattr(recovery, "recover", _trained_again)
        again = run_trial(trial, bench)
    assert again.artifact == whole.artifact
    assert again.details == {**whole.details, TAKEN_UP: 1.0}


def elsewhere(bench: Workbench, *, late_s: float = 0.0) -> tuple[Workbench, list[Plan]]:
    """A workbench whose trials are trained by others, which begin late, and the plans that they are given."""
    given = list[Plan]()

    def train_elsewhere(trial: Trial) -> Trained:
        given.append(trial.plan)
        time.sleep(late_s)
        return pipeline.train(trial, away)

    away = replace(bench, train_elsewhere=train_elsewhere)
    return away, given


def test_training_elsewhere_counts_as_what_it_took_there_and_all_else_as_waiting(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, _ = elsewhere(bench, late_s=1.0)
    record = run_trial(Trial(1, SLIM), away, screen(baseline))
    assert record.status == "complete", record.reason
    assert {"build", "screen", "wait", "sparsify", "recover", "train"} < set(record.seconds)
    assert record.seconds["wait"] == pytest.approx(1.0, abs=0.2)
    assert record.training_s > 0
    assert TAKEN_UP not in record.details
    with monkeypatch.context() as untrainable:
        untrainable.setattr(recovery, "recover", _trained_again)
        again = run_trial(Trial(1, SLIM), away)
    assert again.details == {**record.details, TAKEN_UP: 1.0}, "its time tells nothing of training"


def test_what_a_trial_starts_from_is_trained_elsewhere_too(bench: Workbench, baseline: Record) -> None:
    away, given = elsewhere(bench)
    for start in (replace(PRUNED, steps=PRUNED.steps[:1]), replace(HELD, steps=HELD.steps[1:])):
        given.clear()
        more = replace(start, recovery=Recovery(), start=start)
        assert run_trial(Trial(1, more), away).status == "complete"
        assert given == [start]


def test_a_model_is_built_once_to_be_trained(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = list[Plan]()

    def build(bench: Workbench, plan: Plan, seed: int) -> nn.Module:
        built.append(plan)
        return real(bench, plan, seed)

    real = trials.build
    monkeypatch.setattr(trials, "build", build)
    monkeypatch.setattr(recovering, "build", build)
    for plan in (SLIM, PRUNED):
        built.clear()
        pipeline.train(Trial(1, plan), bench)
        assert len(built) == 1


def test_a_trial_that_can_not_succeed_leaves_no_weights_behind(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChannelPruning, "verify", _never)
    record = run_trial(Trial(1, PRUNED), bench)
    assert record.reason == "InfeasiblePlan: never"
    assert kept_weights(bench) == []


def _never(*_: object) -> None:
    raise InfeasiblePlan("never")


def test_the_baseline_is_the_model_as_the_user_wrote_it(tmp_path: Path) -> None:
    specimen = SPECIMENS["attention"]
    bench = bench_of(specimen, tmp_path)
    record = run_baseline(Trial(0, Plan()), bench)
    assert record.status == "complete"
    own = compact(encode_weights(export(specimen.model(), specimen.examples)))
    assert onnx.load(bench.artifact_path(Plan())) == own
    rewritten = run_trial(Trial(1, Plan(recovery=Recovery(epochs=1))), bench)
    assert rewritten.details["macs"] == record.details["macs"], "layers are counted alike"


def kept_weights(bench: Workbench) -> list[Path]:
    return list((bench.directory / "artifacts").glob("*.safetensors"))


def _lost_device(*_: object, **__: object) -> None:
    raise DeviceUnavailable("the board is gone")


def _trained_again(*_: object, **__: object) -> None:
    raise AssertionError("trained a second time")


HELD = replace(
    PRUNED,
    steps=(PRUNED.steps[0], Step("quantization", {"outer": {"precision": "int8", "bits": 4}})),
    recovery=Recovery(epochs=4, learning_rate=0.006),
)
"""A plan that removes channels and restricts values, so its model is trained in two phases."""


class Phase(NamedTuple):
    """A recovery that was asked for: whether batch norms were folded, and where in its schedule it began."""

    asked: Recovery
    folded: bool
    before: int


def phases(monkeypatch: pytest.MonkeyPatch) -> list[Phase]:
    """The recoveries of every phase from now on."""
    seen: list[Phase] = []
    real = recovery.recover

    def watched(model: nn.Module, lessons: Lessons, asked: Recovery, **others: Any) -> Recovered:
        assert others["folded"] == isinstance(model.get_submodule("norm"), nn.Identity)
        seen.append(Phase(asked, others["folded"], others["before"]))
        return real(model, lessons, asked, **others)

    monkeypatch.setattr(recovery, "recover", watched)
    return seen


def test_values_are_held_in_a_last_phase_at_a_lower_rate(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = phases(monkeypatch)
    record = run_trial(Trial(1, HELD), bench)
    assert record.status == "complete", record.reason
    (free, *first), (held, *second) = seen
    assert [(free.epochs, *first), (held.epochs, *second)] == [(3, False, 0), (1, True, 0)]
    assert held.learning_rate == free.learning_rate / 3
    assert record.details["epochs"] == 4
    assert 0 <= record.details["best_epoch"] <= 4
    assert len(kept_weights(bench)) == 2, "of both phases, for plans that start from this one"


def test_values_alone_are_held_in_every_epoch(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = phases(monkeypatch)
    run_trial(Trial(1, replace(HELD, steps=HELD.steps[1:])), bench)
    assert [(phase.asked.epochs, phase.folded) for phase in seen] == [(4, True)]


INT8 = Step("quantization", {"outer": {"precision": "int8"}})


def test_a_plan_starts_from_the_trained_weights_of_another(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(PRUNED, steps=PRUNED.steps[:1], recovery=Recovery(epochs=2))
    assert run_trial(Trial(1, first), bench).status == "complete"
    seen = phases(monkeypatch)
    more = replace(first, steps=(*first.steps, INT8), recovery=Recovery(), start=first)
    record = run_trial(Trial(2, more), bench)
    assert record.status == "complete", record.reason
    assert seen == [], "the weights are there and nothing needs more training"
    for path in kept_weights(bench):
        path.unlink()
    assert run_trial(Trial(3, more), bench).artifact == record.artifact, "trained again, it is the same"
    assert [phase.asked.epochs for phase in seen] == [2]


@pytest.mark.parametrize(
    ("steps", "expected"), [(slice(1, None), [(4, True, 4)]), (slice(None), [(3, False, 3), (1, True, 0)])]
)
def test_restricted_values_go_on_where_they_ended_and_structure_from_where_it_was_free(
    bench: Workbench,
    baseline: Record,
    monkeypatch: pytest.MonkeyPatch,
    steps: slice,
    expected: list[tuple[int, bool, int]],
) -> None:
    start = replace(HELD, steps=HELD.steps[steps])
    assert run_trial(Trial(1, start), bench).status == "complete"
    seen = phases(monkeypatch)
    record = run_trial(Trial(2, replace(start, start=start)), bench)
    assert record.status == "complete", record.reason
    assert [(phase.asked.epochs, phase.folded, phase.before) for phase in seen] == expected


def test_what_is_changed_anew_is_trained_from_the_beginning_of_the_schedule(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = replace(PRUNED, steps=PRUNED.steps[:1])
    assert run_trial(Trial(1, start), bench).status == "complete"
    seen = phases(monkeypatch)
    more = Step("low_rank", {"outer": {"rank_ratio": 0.5}})
    record = run_trial(Trial(2, replace(start, steps=(*start.steps, more), start=start)), bench)
    assert record.status == "complete", record.reason
    assert [(phase.asked.epochs, phase.before) for phase in seen] == [(2, 0)]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (replace(PRUNED, steps=(Step("low_rank", {"inner": {"rank_ratio": 0.5}}),)), "expected only settings that it"),
        (replace(PRUNED, steps=(Step("sparsity", {"inner": {"sparsity": 0.5}}),)), "whose later methods have acted"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(bench: Workbench, baseline: Record, start: Plan, message: str) -> None:
    plan = replace(PRUNED, steps=(*PRUNED.steps[:1], *start.steps) if "later" in message else PRUNED.steps, start=start)
    assert message in run_trial(Trial(1, plan), bench).reason


def test_a_plan_that_only_trains_does_train(bench: Workbench, baseline: Record) -> None:
    record = run_trial(Trial(1, Plan(recovery=Recovery(epochs=1))), bench)
    assert record.details["epochs"] == 1


SLIM = replace(PRUNED, recovery=Recovery(epochs=1, penalty="group_lasso", penalty_weight=0.001, sparsify_epochs=2))


def test_plans_share_the_model_that_was_trained_towards_sparsity(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_trial(Trial(1, SLIM), bench, screen(baseline))
    assert first.status == "complete", first.reason
    assert sum("-sparse-" in path.name for path in kept_weights(bench)) == 1
    monkeypatch.setattr(recovery, "sparsify", _trained_again)
    assert run_trial(Trial(2, SLIM), bench).artifact == first.artifact, "computed and read back, it is the same"
    other = replace(SLIM, steps=SLIM.steps[:1], recovery=replace(SLIM.recovery, epochs=0))
    assert run_trial(Trial(3, other), bench).status == "complete"
    with pytest.raises(AssertionError, match="a second time"):
        run_trial(Trial(4, replace(SLIM, recovery=replace(SLIM.recovery, penalty_weight=0.01))), bench)


def test_a_hopeless_plan_is_dropped_before_it_is_trained_towards_sparsity(bench: Workbench, baseline: Record) -> None:
    record = run_trial(Trial(1, SLIM), bench, screen(baseline, "size_bytes<=0.01x"))
    assert record.status == "screened"
    assert kept_weights(bench) == []


def test_a_penalty_that_no_epoch_would_see_is_refused(bench: Workbench, baseline: Record) -> None:
    idle = Recovery(epochs=1, penalty="l1", penalty_weight=0.01)
    record = run_trial(Trial(1, replace(HELD, steps=HELD.steps[1:], recovery=idle)), bench)
    assert "acts while values are free, and this plan has no such epochs" in record.reason


def test_inner_layers_are_taught_where_the_plan_asks_for_it(bench: Workbench, baseline: Record) -> None:
    record = run_trial(Trial(1, replace(HELD, recovery=Recovery(epochs=2, feature_weight=1.0))), bench)
    assert record.status == "complete", record.reason
    wrong = Workbench(replace(task, features=("iner",)), bench.profiles, bench.directory)
    record = run_trial(Trial(2, replace(PRUNED, recovery=Recovery(epochs=1, feature_weight=1.0))), wrong)
    assert "the model has no layer 'iner'; did you mean 'inner'" in record.reason


def test_the_same_seed_gives_the_same_file(bench: Workbench, baseline: Record) -> None:
    first, second = (run_trial(Trial(1, PRUNED, seed=2), bench) for _ in range(2))
    assert first.artifact == second.artifact


def test_a_metric_that_raises_ends_the_baseline_with_its_traceback(tmp_path: Path) -> None:
    def broken(outputs: object, targets: object) -> float:
        raise ZeroDivisionError("my metric")

    bench = Workbench(replace(task, metric=Metric("mine", broken)), (resolve_profile("fake"),), tmp_path)
    with pytest.raises(TaskFailed, match="my metric") as caught:
        run_baseline(Trial(0, Plan()), bench)
    assert "in broken" in caught.value.traceback


def test_test_data_is_scored_on_request(bench: Workbench, baseline: Record) -> None:
    found = score_test(baseline, bench)
    assert 0.8 < found.values["accuracy"] < 1
    assert np.mean(found.fold_scores) == pytest.approx(found.values["accuracy"], abs=0.02)
    without = Workbench(replace(task, test=None), bench.profiles, bench.directory)
    assert score_test(baseline, without) == SplitScore()


@pytest.mark.parametrize("most", [1, 40, 10**6])
def test_a_score_on_the_device_is_that_on_the_host_however_many_samples_are_sent_at_once(
    most: int, bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.pipeline.on_device.RUN_BYTES", most * bench.task.examples[0].nbytes)
    found = score_on_device(baseline, bench)
    assert found.score == baseline.values["accuracy"]
    assert (found.number, found.reason) == (0, "")
    assert found.seconds > 0


def test_a_slow_model_is_run_on_few_samples_at_a_time(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, run = [], FakeDevice.run

    def counted(self: FakeDevice, artifact: Artifact, inputs: Any, *, batch_size: int | None = None) -> Any:
        counts.append(len(inputs[0]))
        return run(self, artifact, inputs, batch_size=batch_size)

    monkeypatch.setattr(FakeDevice, "run", counted)
    slow = replace(baseline, values={**baseline.values, "latency_ms": 300.0})
    assert score_on_device(slow, bench).score == baseline.values["accuracy"]
    assert set(counts) == {100}, "each run half a minute"


def test_scoring_on_a_device_that_is_too_slow_is_not_begun(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(FakeDevice, "run")
    slow = replace(baseline, values={**baseline.values, "latency_ms": 300.0})
    found = score_on_device(slow, bench, limit_s=10.0)
    assert found == TooSlow(0, pytest.approx(0.3 * bench.validation_inferences))


def test_scoring_on_the_device_is_given_up_once_it_shows_how_long_it_takes(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, run = [], FakeDevice.run

    def slowly(self: FakeDevice, artifact: Artifact, inputs: Any, *, batch_size: int | None = None) -> Any:
        ran.append(len(inputs[0]))
        time.sleep(0.05)
        return run(self, artifact, inputs, batch_size=batch_size)

    monkeypatch.setattr(FakeDevice, "run", slowly)
    monkeypatch.setattr("autocompress.pipeline.on_device.RUN_BYTES", bench.task.examples[0].nbytes)
    limit_s = baseline.values["latency_ms"] / 1000 * bench.validation_inferences + 0.01
    found = score_on_device(baseline, bench, limit_s=limit_s)
    assert isinstance(found, TooSlow)
    assert found.seconds > limit_s
    assert ran == [1]


def test_a_score_on_the_device_that_is_complete_is_kept_though_it_took_too_long(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, limit_s = FakeDevice.run, 2 * baseline.values["latency_ms"] / 1000 * bench.validation_inferences

    def slowly(self: FakeDevice, artifact: Artifact, inputs: Any, *, batch_size: int | None = None) -> Any:
        time.sleep(limit_s + 0.01)
        return run(self, artifact, inputs, batch_size=batch_size)

    monkeypatch.setattr(FakeDevice, "run", slowly)
    monkeypatch.setattr("autocompress.pipeline.on_device.RUNS", 1)
    found = score_on_device(baseline, bench, limit_s=limit_s)
    assert isinstance(found, DeviceScore)
    assert found.score == baseline.values["accuracy"]


@pytest.mark.parametrize("error", [MeasurementError("no kernel for Erf\nat all"), DeviceUnavailable("off")])
def test_what_a_device_can_not_do_with_a_model_is_a_reason_and_a_lost_device_an_error(
    error: Exception, bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FakeDevice, "run", failing)
    if isinstance(error, DeviceUnavailable):
        with pytest.raises(DeviceUnavailable):
            score_on_device(baseline, bench)
        return
    found = score_on_device(baseline, bench)
    assert (found.score, found.reason) == (None, "no kernel for Erf")


def test_a_model_that_gives_no_numbers_on_the_device_has_no_score(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeDevice.run
    monkeypatch.setattr(FakeDevice, "run", lambda *a, **b: tuple(np.nan * one for one in run(*a, **b)))
    task_of_nan = replace(task, metric=Metric("mean", lambda outputs, targets: float(outputs.mean())))
    found = score_on_device(replace(baseline), Workbench(task_of_nan, bench.profiles, bench.directory))
    assert found.score is None
    assert "is nan" in found.reason


@pytest.mark.parametrize("lengths", [[2, 2, 2, 1], [2, 1, 2, 2, 1, 1], [1], [2, 2]])
def test_batches_that_travel_together_are_cut_as_they_were(lengths: list[int]) -> None:
    samples = iter(range(100))
    batches = [Batch((np.array([next(samples) for _ in range(n)]),), np.zeros(n)) for n in lengths]
    sent = list(together(batches, 2, 3))
    cut = [part.inputs[0][at : at + 2].tolist() for part in sent for at in range(0, len(part), 2)]
    assert cut == [batch.inputs[0].tolist() for batch in batches]
    assert all(len(part) <= 6 for part in sent)
    assert len(sent) < max(2, len(batches))


def test_architectures_are_built_by_name(bench: Workbench) -> None:
    def size(name: str) -> int:
        return sum(tensor.numel() for tensor in build_architecture(bench, name).parameters())

    assert size("small") < size("original")
    assert size("width_0.5") < size("original")
    with pytest.raises(UnknownName, match="did you mean 'small'"):
        build_architecture(bench, "smal")


def test_copies_of_the_original_may_be_narrower_shallower_and_both(tmp_path: Path) -> None:
    def blocks() -> nn.Module:
        stages = nn.Sequential(*(ResidualBlock(16, 16, 1) for _ in range(4)))
        return nn.Sequential(nn.Conv2d(1, 16, 3), stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))

    bench = Workbench(replace(task, model=blocks()), (resolve_profile("fake"),), tmp_path)
    models, refused = survey_architectures(bench, SearchSpace("all", widths=(0.5,), depths=(0.5,), students=False))
    assert refused == {}
    macs = {name: view.macs for name, view in models.items()}
    assert macs["depth_0.5"] < 0.6 * macs["original"]
    assert macs["width_0.5_depth_0.5"] < 0.6 * macs["width_0.5"] < 0.3 * macs["original"]


def test_every_architecture_has_its_attention_written_out(tmp_path: Path) -> None:
    specimen = SPECIMENS["attention"]
    data = (specimen.samples(8), np.zeros(8, np.int64))
    own = Task(name="attention", model=specimen.model(), train=data, validation=data, students={"own": specimen.build})
    bench = Workbench(own, (resolve_profile("fake"),), tmp_path)
    models, _ = survey_architectures(bench, SearchSpace("all", widths=(0.5,)))
    assert set(models) == {"original", "width_0.5", "own"}
    for view in models.values():
        assert "encoder.layers.0.self_attn.query" in {layer.name for layer in view.layers}


def test_the_survey_of_a_student_with_many_variants_looks_at_some(tmp_path: Path) -> None:
    own = replace(task, students={"own": Student(Net, width=Int(1, 39))})
    bench = Workbench(own, (resolve_profile("fake"),), tmp_path)
    models, refused = survey_architectures(bench, SearchSpace("few", variants=3))
    assert set(models) == {"original", "own(width=20)", "own(width=1)", "own(width=39)"}
    assert refused == {}


def test_applying_a_plan_writes_its_file(bench: Workbench, tmp_path: Path) -> None:
    record = apply_plan(Trial(0, PRUNED), bench, tmp_path / "model.onnx")
    assert record.artifact is not None
    assert task.score(predictor(tmp_path / "model.onnx")) == record.values["accuracy"]
    assert record.values["latency_ratio"] < 1


def test_a_task_is_not_changed_by_trials(bench: Workbench, baseline: Record) -> None:
    before = task.fingerprint()
    run_trial(Trial(1, PRUNED), bench)
    assert task.fingerprint() == before


def test_a_task_without_calibration_data_takes_it_from_train() -> None:
    bare = Task(name="bare", model=task.model, train=task.train, validation=task.validation)
    assert sum(len(batch) for batch in bare.split("calibration").batches(64)) == 256


def test_an_untrained_model_is_measured_quickly_with_the_patience_of_the_machine(
    baseline: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, take = [], FakeDevice.measure

    def measure(self: FakeDevice, *given: Any, protocol: Protocol, **options: Any) -> Any:
        used.append((protocol.max_cpu_s, protocol.patience))
        return take(self, *given, protocol=protocol, **options)

    monkeypatch.setattr(FakeDevice, "measure", measure)
    hurried = HardwareProfile("hurried", device="fake", protocol=Protocol(max_cpu_s=0.8, patience=1.5))
    bench = Workbench(task, (hurried,), tmp_path)
    assert run_trial(Trial(1, PRUNED), bench, screen(baseline)).status == "complete"
    assert used == [(0.25, 1.5), (0.8, 1.5)]


def test_a_copy_that_is_finished_for_screening_leaves_the_model_trainable(bench: Workbench, baseline: Record) -> None:
    sparse = Plan(steps=(Step("sparsity", {"inner": {"sparsity": 0.8}}),), recovery=Recovery(epochs=1))
    record = run_trial(Trial(1, sparse), bench, screen(baseline))
    assert record.status == "complete", record.reason
