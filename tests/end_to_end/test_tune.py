"""A search under Ray Tune, on a cluster: the same records as without it, also after a break."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import autocompress
from autocompress.devices import resolve_profile
from autocompress.devices.fake import FakeDevice
from autocompress.errors import TaskFailed
from autocompress.executors._ray.site import RaySite
from autocompress.record import Record
from autocompress.run_directory import RunDirectory
from autocompress.tune import AutocompressSearcher, trainable
from autocompress.tune.workers import Workers

TRIALS = 3
WORDS: dict[str, Any] = {"strategy": "random", "hardware": "fake", "trials": TRIALS, "seed": 3}


pytestmark = pytest.mark.timeout(600)  # Ray starts some ten processes, each of which loads torch


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A head that searches and a node with two CPUs; of Tune's own files none stay open where it breaks."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": None})
    made.add_node(num_cpus=2, resources={"device:board": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        ray.init(address=made.address, log_to_driver=False)
        yield
        ray.shutdown()
    made.shutdown()


@pytest.fixture
def plain(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Record, ...]:
    """The records of the search without Tune."""
    monkeypatch.chdir(folder)
    autocompress.search("task.py", output="plain", executor="inline", **WORDS)
    return RunDirectory.open(Path("plain")).records()


def watch() -> Callable[[Mapping[str, Any]], None]:
    """A trainable that travels by itself and leaves a file where it measures in its own process, or sees GPUs."""

    def watched(config: Mapping[str, Any]) -> None:
        real, left = FakeDevice.measure, Path(config["run"]) / "left"

        def measure(*args: Any, **options: Any) -> Any:
            left.touch()
            return real(*args, **options)

        FakeDevice.measure = measure  # type: ignore[method-assign]
        trainable(config)
        if os.environ.get("CUDA_VISIBLE_DEVICES") != "":
            left.touch()

    return watched


def tuner(search: AutocompressSearcher, folder: Path, *callbacks: tune.Callback) -> tune.Tuner:
    """A Tuner for a search, with its own files in a folder."""
    return tune.Tuner(
        watch(),
        tune_config=tune.TuneConfig(
            metric="accuracy", mode="max", search_alg=search, num_samples=-1, max_concurrent_trials=2, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name="tuned", storage_path=str(folder / "ray"), verbose=0, callbacks=list(callbacks) or None
        ),
    )


def facts(record: Record) -> tuple[Any, ...]:
    """All of a record that time and place don't change."""
    artifact = record.artifact.sha256 if record.artifact is not None else ""
    return record.trial, record.status, record.values, artifact


class Break(tune.Callback):
    """Ends Tune as a bug would, once: after the first trial, while others run."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._mark.exists() and any(trial.status == "TERMINATED" for trial in trials):
            self._mark.touch()
            raise RuntimeError("the driver is gone")


def test_a_broken_and_restored_search_under_tune_has_the_records_of_one_without_it(
    cluster: None, folder: Path, plain: tuple[Record, ...]
) -> None:
    search = AutocompressSearcher("task.py", output="tuned", **WORDS)
    with pytest.raises(RuntimeError, match="the driver is gone"):
        tuner(search, folder, Break(folder / "broken")).fit()
    assert search.finish().status == "stopped"
    assert len(search.run.trials) < 1 + TRIALS

    results = tune.Tuner.restore(str(folder / "ray" / "tuned"), trainable=watch()).fit()
    run = search.finish()
    assert run.status == "complete"
    records = [line for line in RunDirectory.open(run.path).lines() if isinstance(line, Record)]
    assert [facts(one) for one in sorted(records, key=lambda one: one.number)] == [facts(one) for one in plain]
    assert {point.name for point in run.points} == {point.name for point in autocompress.Run("plain").points}
    assert not (run.path / "left").exists(), "measured on the node of the search, and without GPUs"
    told = {result.metrics["number"]: result.metrics["accuracy"] for result in results if result.metrics}
    assert told == {one.number: one.values["accuracy"] for one in plain if one.number}


def test_calls_beside_trials_wait_for_no_cpu(cluster: None, tmp_path: Path) -> None:
    go = tmp_path / "go"

    def hold() -> None:
        while not go.exists():
            time.sleep(0.1)

    held, workers = ray.remote(num_cpus=2)(hold).remote(), Workers(2)
    try:
        while ray.available_resources().get("CPU"):
            time.sleep(0.1)
        assert workers.submit(pow, 2, 3).result(120) == 8
        assert not ray.wait([held], timeout=0)[0]
    finally:
        go.touch()
        workers.shutdown(cancel_futures=True)


def test_a_trial_reaches_machines_that_nodes_declare(cluster: None) -> None:
    """From within a placement group, as Tune makes one for each trial."""
    group = ray.util.placement_group([{"CPU": 1}])
    board = replace(resolve_profile("fake"), name="board")
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)

    def trial() -> int:
        return RaySite("test", declared=frozenset({"device:board"})).at_device(board, pow, 2, 3)

    try:
        assert ray.get(ray.remote(num_cpus=1, scheduling_strategy=inside)(trial).remote(), timeout=120) == 8
    finally:
        ray.util.remove_placement_group(group)


def test_an_error_of_the_user_ends_tune_with_its_message(cluster: None, folder: Path) -> None:
    (folder / "task.py").write_text("raise ValueError('no such data')")
    search = AutocompressSearcher(str(folder / "task.py"), output=folder / "run", **WORDS)
    with pytest.raises(TaskFailed, match="no such data"):
        tuner(search, folder).fit()
    assert not (folder / "run").exists()
