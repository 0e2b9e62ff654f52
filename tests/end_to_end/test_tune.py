"""A search under Ray Tune, on a cluster of this machine: the same records as without it, also after a break."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

import autocompress
from autocompress.duration import parse_duration
from autocompress.errors import InvalidInput, TaskFailed
from autocompress.record import Record
from autocompress.run_directory import RunDirectory
from autocompress.tune import AutocompressSearcher, trainable
from autocompress.tune.workers import RayWorkers

TRIALS = 3
WORDS: dict[str, Any] = {"strategy": "random", "hardware": "fake", "trials": TRIALS, "seed": 3}


pytestmark = pytest.mark.timeout(600)  # Ray starts some ten processes, each of which loads torch


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on two processors of this machine; of Tune's own files none stay open where it breaks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def plain(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Record, ...]:
    """The records of the search without Tune."""
    monkeypatch.chdir(folder)
    autocompress.search("task.py", output="plain", executor="inline", **WORDS)
    return RunDirectory.open(Path("plain")).records()


def tuner(search: AutocompressSearcher, folder: Path, *callbacks: tune.Callback) -> tune.Tuner:
    """A Tuner for a search, with its own files in a folder."""
    return tune.Tuner(
        trainable,
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

    results = tune.Tuner.restore(str(folder / "ray" / "tuned"), trainable=trainable).fit()
    run = search.finish()
    assert run.status == "complete"
    records = [line for line in RunDirectory.open(run.path).lines() if isinstance(line, Record)]
    assert [facts(one) for one in sorted(records, key=lambda one: one.number)] == [facts(one) for one in plain]
    assert {point.name for point in run.points} == {point.name for point in autocompress.Run("plain").points}
    told = {result.metrics["number"]: result.metrics["accuracy"] for result in results if result.metrics}
    assert told == {one.number: one.values["accuracy"] for one in plain if one.number}


def test_processes_of_ray_tell_errors_as_they_are_and_are_replaced_when_they_die(cluster: None) -> None:
    workers = RayWorkers(1, threads=1)
    with pytest.raises(InvalidInput, match=r"^duration 'soon'"):
        workers.submit(parse_duration, "soon").result(timeout=120)
    first = workers.submit(os.getpid).result(timeout=120)
    assert isinstance(workers.submit(os._exit, 1).exception(timeout=120), BrokenExecutor)
    second = workers.submit(os.getpid).result(timeout=120)
    assert second != first
    hanging = workers.submit(time.sleep, 600)
    workers.kill()
    assert isinstance(hanging.exception(timeout=120), BrokenExecutor)
    workers.shutdown()


def test_an_error_of_the_user_ends_tune_with_its_message(cluster: None, folder: Path) -> None:
    (folder / "task.py").write_text("raise ValueError('no such data')")
    search = AutocompressSearcher(str(folder / "task.py"), output=folder / "run", **WORDS)
    with pytest.raises(TaskFailed, match="no such data"):
        tuner(search, folder).fit()
    assert not (folder / "run").exists()
