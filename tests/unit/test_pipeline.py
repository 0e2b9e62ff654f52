from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from autocompress.artifact import Artifact
from autocompress.devices import resolve_profile
from autocompress.errors import DeviceUnavailable, TaskFailed, UnknownName
from autocompress.formats.onnx_runtime import predictor
from autocompress.objective import Constraint, make_objectives
from autocompress.pipeline import Workbench, apply_plan, build_architecture, run_baseline, run_trial, score_test
from autocompress.plan import Plan, Recovery, Step
from autocompress.record import Record, Trial
from autocompress.screen import Screen
from autocompress.task import Metric, Task
from tests.tasks.stripes import task

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
    return Workbench(task, resolve_profile("fake"), tmp_path)


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
    assert {"build", "screen", "recover", "export", "parity", "score", "measure"} == set(record.seconds)
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
    assert not list((bench.directory / "artifacts").glob("*.screen.onnx"))


def test_a_trial_cut_short_after_training_is_not_trained_again(
    bench: Workbench, baseline: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(1, PRUNED, seed=4)
    whole = run_trial(trial, bench)
    assert kept_weights(bench) == [], "what was kept for a second try is gone with the record"
    with monkeypatch.context() as broken:
        broken.setattr(bench.device, "measure", _lost_device)
        assert run_trial(trial, bench).status == "failed"
    assert len(kept_weights(bench)) == 1
    again = run_trial(trial, bench)
    assert "epochs" in whole.details
    assert "epochs" not in again.details
    assert again.artifact == whole.artifact


def kept_weights(bench: Workbench) -> list[Path]:
    return list((bench.directory / "artifacts").glob("*.safetensors"))


def _lost_device(*_: object, **__: object) -> None:
    raise DeviceUnavailable("the board is gone")


def test_the_same_seed_gives_the_same_file(bench: Workbench, baseline: Record) -> None:
    first, second = (run_trial(Trial(1, PRUNED, seed=2), bench) for _ in range(2))
    assert first.artifact == second.artifact


def test_a_metric_that_raises_ends_the_baseline_with_its_traceback(tmp_path: Path) -> None:
    def broken(outputs: object, targets: object) -> float:
        raise ZeroDivisionError("my metric")

    bench = Workbench(replace(task, metric=Metric("mine", broken)), resolve_profile("fake"), tmp_path)
    with pytest.raises(TaskFailed, match="my metric") as caught:
        run_baseline(Trial(0, Plan()), bench)
    assert "in broken" in caught.value.traceback


def test_test_data_is_scored_on_request(bench: Workbench, baseline: Record) -> None:
    assert 0.8 < score_test(baseline, bench)["accuracy"] < 1
    without = Workbench(replace(task, test=None), bench.profile, bench.directory)
    assert score_test(baseline, without) == {}


def test_architectures_are_built_by_name(bench: Workbench) -> None:
    def size(name: str) -> int:
        return sum(tensor.numel() for tensor in build_architecture(bench, name).parameters())

    assert size("small") < size("original")
    assert size("width_0.5") < size("original")
    with pytest.raises(UnknownName, match="did you mean 'small'"):
        build_architecture(bench, "smal")


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
