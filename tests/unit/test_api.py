from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autocompress
from autocompress.errors import InvalidInput, RunDirectoryError, TaskFailed, UnknownName
from autocompress.formats.onnx_runtime import predictor
from autocompress.plan import Plan, Step
from autocompress.run import Run
from autocompress.run_directory import RunDirectory
from autocompress.space import MethodSpace, RecoverySpace, SearchSpace
from tests.fake_ray import stand_in
from tests.tasks.stripes import Net, task

SPACE = SearchSpace(
    "quick",
    methods={
        "channel_pruning": MethodSpace({"pruning_ratio": (0, 0.25, 0.5)}),
        "quantization": MethodSpace({"precision": ("fp32", "int8")}),
    },
    widths=(0.5,),
    recovery=RecoverySpace(epochs=1, student_epochs=1),
    policies=({"quantization/precision": "int8"}, {"channel_pruning/pruning_ratio": 0.5}),
)
TASK_FILE = str(Path(__file__).parents[1] / "tasks" / "stripes.py")


def search(output: Path, **options: Any) -> Run:
    """A search whose proposals do not depend on the time that trials took, as those of the guided strategy do."""
    given: dict[str, Any] = {"trials": 4, "space": SPACE, "hardware": "fake", "executor": "inline", "strategy": "tpe"}
    return autocompress.search(options.pop("task", task), output=output, **{**given, **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return search(tmp_path_factory.mktemp("api") / "run")


def test_a_search_leaves_a_complete_run_directory(run: Run) -> None:
    names = {path.name for path in run.path.iterdir()}
    assert {"run.json", "records.jsonl", "heartbeat.json", "front", "report.html", "log.txt", "study.journal"} <= names
    assert run.status == "complete"
    assert run.as_json()["trials"]["complete"] + run.as_json()["trials"]["screened"] == 4


def test_every_file_of_the_front_scores_as_its_record_says(run: Run) -> None:
    assert run.points
    for point in run.points:
        assert task.score(predictor(Path(point.file))) == point.validation["accuracy"]
        assert task.score(predictor(Path(point.file)), "test") == point.test["accuracy"]


def test_the_same_seed_gives_the_same_plans_and_another_seed_others(run: Run, tmp_path: Path) -> None:
    again, other = search(tmp_path / "again"), search(tmp_path / "other", seed=1)
    assert planned(again) == planned(run)
    assert planned(other) != planned(run)


def planned(run: Run) -> list[Plan]:
    return [record.plan for record in RunDirectory(run.path).records()]


def test_a_plan_of_the_front_can_be_replayed(run: Run, tmp_path: Path) -> None:
    point = run.points[-1]
    seed = next(r.trial.seed for r in RunDirectory(run.path).records() if r.number == point.number)
    autocompress.apply(point.plan, task, output=tmp_path / "again.onnx", hardware="fake", seed=seed)
    assert (tmp_path / "again.onnx").read_bytes() == Path(point.file).read_bytes()


def test_a_finished_search_goes_on_with_more_trials(tmp_path: Path) -> None:
    first = search(tmp_path / "run", trials=2)
    before = planned(first)
    resumed = autocompress.resume(first.path, task=task, trials=4, executor="inline")
    assert planned(resumed)[:3] == before
    assert len(planned(resumed)) == 5
    whole = search(tmp_path / "whole", trials=4)
    assert planned(whole) == planned(resumed), "as if it had not stopped in between"


def test_resuming_what_is_complete_changes_nothing(run: Run) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    resumed = autocompress.resume(run.path, task=task, executor="inline")
    assert (resumed.path, resumed.status) == (run.path, "complete")
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_resuming_refuses_another_task_and_says_what_differs(run: Run) -> None:
    images, classes = task.train
    changed = replace(task, model=Net(), train=(images[:500], classes[:500]))
    with pytest.raises(RunDirectoryError, match="not the same model, train data"):
        autocompress.resume(run.path, task=changed, executor="inline")
    with pytest.raises(InvalidInput, match="give resume"):
        autocompress.resume(run.path, executor="inline")


def test_constraints_and_max_drop_bound_the_front(tmp_path: Path) -> None:
    run = search(tmp_path / "run", constraints=["size_bytes<=0.9x"], max_drop=50)
    baseline = run.baseline
    assert baseline is not None
    assert run.points
    assert all(point.size_ratio <= 0.9 for point in run.points)
    config = RunDirectory(run.path).config
    assert [str(constraint) for constraint in config.constraints] == ["size_bytes<=0.9x", "accuracy>=baseline-0.5"]


def test_objectives_reach_the_search(tmp_path: Path) -> None:
    run = search(tmp_path / "run", trials=2, objectives=["accuracy", "size_bytes"])
    assert [objective.name for objective in RunDirectory(run.path).config.objectives] == ["accuracy", "size_bytes"]


def test_a_search_by_reference_in_processes_gives_the_same_plans(run: Run, tmp_path: Path) -> None:
    other = search(tmp_path / "run", task=TASK_FILE, executor="processes", workers=1)
    assert planned(other) == planned(run)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": "soon"}, InvalidInput, "soon"),
        ({"budget": -5}, InvalidInput, "above zero"),
        ({"trials": 0}, InvalidInput, "trials 0"),
        ({"workers": 0, "executor": "processes"}, InvalidInput, "workers 0"),
        ({"space": "jiont"}, UnknownName, "did you mean 'joint'"),
        ({"hardware": "x86_vni"}, UnknownName, "did you mean 'x86_vnni'"),
        ({"strategy": "tpee"}, UnknownName, "did you mean 'tpe'"),
        ({"executor": "procesess"}, UnknownName, "did you mean 'processes'"),
        ({"objectives": ["acuracy"]}, UnknownName, "did you mean 'accuracy'"),
        ({"objectives": ["accuracy", "accuracy"]}, InvalidInput, "2 times"),
        ({"constraints": ["latency<=5"]}, UnknownName, "latency_ms"),
        ({"constraints": ["latency_ms<5"]}, InvalidInput, "expected NAME<=VALUE"),
        ({"constraints": ["accuracy>=0.9", "accuracy<=0.8"]}, InvalidInput, "contradict"),
        ({"max_drop": -1.0}, InvalidInput, "max_drop"),
        ({"max_drop": math.nan}, InvalidInput, "max_drop nan"),
        ({"max_drop": math.inf, "task": "nowhere.py"}, InvalidInput, "max_drop inf"),
        ({"task": "nowhere.py"}, InvalidInput, "no such file"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_left_behind(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        search(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="holds a search already"):
        search(run.path)
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(RunDirectoryError, match="not empty"):
        search(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_second_search_on_one_folder_is_refused(run: Run, executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = stand_in(monkeypatch)
    with RunDirectory(run.path).locked(), pytest.raises(RunDirectoryError, match="is searching there"):
        autocompress.resume(run.path, task=task, executor=executor)
    assert not ray.addresses


def test_scores_that_are_no_number_end_the_search_before_it_begins(tmp_path: Path) -> None:
    bad = replace(task, metric=autocompress.Metric("mine", lambda outputs, targets: float("nan")))
    with pytest.raises(InvalidInput, match="'mine' on validation data is nan"):
        search(tmp_path / "run", task=bad)
    assert not (tmp_path / "run").exists()


def test_data_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    wrong = (np.zeros((20, 3, 12, 12), np.float32), np.zeros(20, np.int64))
    with pytest.raises((InvalidInput, TaskFailed, autocompress.AutocompressError), match="channels"):
        search(tmp_path / "run", task=replace(task, validation=wrong))


def test_checking_names_every_part_and_stops_at_the_first_that_fails() -> None:
    seen: list[str] = []
    report = autocompress.check(task, space=SPACE, hardware="fake", observe=lambda item: seen.append(item.name))
    assert report.ok
    assert seen == ["task", "data", "model", "baseline", "layers", "recovery", "one trial"]
    broken = autocompress.check("nowhere.py", hardware="fake")
    assert not broken.ok
    assert [item.name for item in broken.items] == ["task"]


def test_applying_refuses_to_overwrite_and_unknown_methods(tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_text("keep me")
    with pytest.raises(InvalidInput, match="exists already"):
        autocompress.apply(Plan(), task, output=tmp_path / "there.onnx", hardware="fake")
    plan = Plan(steps=(Step("low_rnk", {"head": {"rank_ratio": 0.5}}),))
    with pytest.raises(UnknownName, match="unknown compression method 'low_rnk'"):
        autocompress.apply(plan, task, output=tmp_path / "new.onnx", hardware="fake")
    (tmp_path / "plan.json").write_text(json.dumps({"architecture": "original", "step": []}))
    with pytest.raises(InvalidInput, match=r"plan\.json: unknown key 'step'; did you mean 'steps'"):
        autocompress.apply(tmp_path / "plan.json", task, output=tmp_path / "new.onnx", hardware="fake")


def test_measuring_a_file_of_the_front(run: Run) -> None:
    measurement = autocompress.measure(run.points[-1].file, reference=run.points[0].file, hardware="fake")
    assert measurement.latency_ratio > 0
    with pytest.raises(InvalidInput, match="no such file"):
        autocompress.measure("nowhere.onnx")
