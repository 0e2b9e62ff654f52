"""Searches on a Ray cluster of several nodes."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import autocompress
from autocompress.cluster import Cluster
from autocompress.devices import resolve_profile
from autocompress.errors import DeviceUnavailable, InvalidInput
from autocompress.executors._ray.folders import OF_NODE
from autocompress.executors._ray.meter import at_once
from autocompress.executors.ray import RayExecutor
from autocompress.record import TAKEN_UP
from autocompress.run_directory import RunDirectory
from autocompress.snapshot import Snapshot
from tests.calls import share_device, train_with_patience

TASK = str(Path(__file__).parents[1] / "tasks" / "stripes.py")

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors for trials, and two nodes with one each."""
    from ray.cluster_utils import Cluster as Nodes

    made = Nodes(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_search_on_nodes_that_do_not_see_its_folder(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = RayExecutor.begin

    def begin_apart(executor: RayExecutor, run: Path) -> None:
        began(executor, run)
        executor.site.marker.unlink()

    monkeypatch.setattr(RayExecutor, "begin", begin_apart)
    copies = set[Path]()
    run = autocompress.search(
        TASK,
        trials=6,
        executor="ray",
        address=cluster.address,
        workers=3,
        output=tmp_path / "run",
        strategy="guided",
        observer=lambda snapshot: copies.update(Path(tempfile.gettempdir()).glob(f"{OF_NODE}*")),
    )
    assert copies
    assert not [folder for folder in copies if folder.exists()]
    records = RunDirectory.open(run.path).records()
    assert sorted(record.number for record in records) == list(range(7))
    complete = [record for record in records if record.status == "complete"]
    assert len(complete) > 1
    for record in complete:
        assert record.artifact is not None
        assert (run.path / record.artifact.path).stat().st_size == record.artifact.size_bytes
    assert len(run.points) > 1
    assert all("test_accuracy" in point.values() for point in run.points)


def test_a_node_that_is_lost_takes_no_trial_with_it(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    lost = False

    def lose_it(snapshot: Snapshot) -> None:
        nonlocal lost
        if snapshot.complete + snapshot.screened >= 1 and not lost:
            lost = True
            cluster.remove_node(node, allow_graceful=False)

    run = autocompress.search(
        TASK,
        trials=6,
        executor="ray",
        address=cluster.address,
        workers=4,
        output=tmp_path / "run",
        observer=lose_it,
        strategy="random",
    )
    assert lost
    records = RunDirectory.open(run.path).records()
    assert sorted(record.number for record in records) == list(range(7))
    assert not [record.reason for record in records if record.status == "failed"]


def test_few_measure_at_a_time_on_the_node_of_the_search_however_many_ask(cluster: Any) -> None:
    executor = RayExecutor(6, 1, Cluster(cluster.address))
    try:
        asked = [executor.submit(share_device, executor.site, resolve_profile("local"), 2.0) for _ in range(6)]
        found = [future.result(240) for future in asked]
        executor.submit(share_device, executor.site, resolve_profile("local"), 1000.0)
        time.sleep(5.0)
        executor.kill()
        process, count = executor.submit(share_device, executor.site, resolve_profile("local"), 0.0).result(240)
        assert (process in {other for other, _ in found}, count) == (False, 1), "it waits for nothing that was dropped"
    finally:
        executor.shutdown(cancel_futures=True)
    assert len({process for process, _ in found}) == 1
    assert 2 <= max(count for _, count in found) <= at_once()


def test_a_machine_that_a_node_declares_is_measured_on_there_alone(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=0, resources={"device:fake": 1})
    profile, lost = replace(resolve_profile("fake"), wait_s=3.0), False

    def lose_it(snapshot: Snapshot) -> None:
        nonlocal lost
        if snapshot.complete >= 1 and not lost:
            lost = True
            cluster.remove_node(node, allow_graceful=False)

    with pytest.raises(DeviceUnavailable, match="no node of the cluster has had the resource 'device:fake' for"):
        autocompress.search(
            TASK,
            trials=9,
            executor="ray",
            address=cluster.address,
            workers=2,
            output=tmp_path / "run",
            observer=lose_it,
            strategy="random",
            hardware=profile,
        )
    records = RunDirectory.open(tmp_path / "run").records()
    assert lost
    assert 2 <= len(records) < 10
    assert not [record.reason for record in records if record.status == "failed"]


def test_training_has_gpus_of_the_cluster(cluster: Any, tmp_path: Path) -> None:
    """As Ray counts them: what they are is left to the machine."""
    cluster.add_node(num_cpus=1, num_gpus=1)
    run = autocompress.search(
        TASK,
        trials=5,
        executor="ray",
        address=cluster.address,
        workers=2,
        gpus_per_trial=0.5,
        output=tmp_path / "run",
        strategy="random",
        hardware="fake",
    )
    records = RunDirectory.open(run.path).records()
    trained = [record for record in records if record.status == "complete" and record.plan.recovery.epochs]
    assert trained
    assert all("recovered_score" in record.details and TAKEN_UP not in record.details for record in trained)


def test_training_gives_up_where_its_gpus_are_gone_for_good(cluster: Any, tmp_path: Path) -> None:
    node, lines = cluster.add_node(num_cpus=1, num_gpus=4), list[str]()
    executor = RayExecutor(1, 1, Cluster(cluster.address, gpus_per_trial=4))
    try:
        run = RunDirectory.create(tmp_path / "run").path
        executor.begin(run)
        assert executor.submit(train_with_patience, executor.site, 3.0).result(120) > 0
        cluster.remove_node(node)
        with pytest.raises(DeviceUnavailable, match="no node of the cluster has had 4 GPUs and a CPU for"):
            executor.submit(train_with_patience, executor.site, 3.0).result(120)
        lines += (run / "log.txt").read_text().splitlines()
    finally:
        executor.shutdown(cancel_futures=True)
    assert sum("machines with 4 GPUs and a CPU are waited for, up to 3s" in line for line in lines) == 1


def test_a_search_says_that_no_node_is_left_for_its_trials(cluster: Any) -> None:
    node, lines = cluster.add_node(num_cpus=5), list[str]()
    executor = RayExecutor(1, 5, Cluster(cluster.address))
    executor.tell = lines.append
    try:
        assert executor.submit(pow, 2, 3).result(120) == 8
        cluster.remove_node(node)
        waiting = executor.submit(pow, 2, 4)
        wait_until(lambda: len(lines) == 1)
        cluster.add_node(num_cpus=5)
        assert waiting.result(120) == 16
        wait_until(lambda: len(lines) == 2)
    finally:
        executor.shutdown(cancel_futures=True)
    assert re.match(r"machines with 5 CPUs and 1\.5 GB of memory are waited for; trials run on no others", lines[0])
    assert lines[1] == "machines with 5 CPUs and 1.5 GB of memory are back"


def test_gpus_that_no_node_has_are_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"gpus per trial 8: no node of the cluster has more than 1"):
        autocompress.search(
            TASK, executor="ray", address=cluster.address, gpus_per_trial=8, output=tmp_path / "run", hardware="fake"
        )
    assert not (tmp_path / "run").exists()
