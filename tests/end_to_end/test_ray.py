"""Searches on a Ray cluster of several nodes."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor, nn

import autocompress
from autocompress.cluster import Cluster
from autocompress.devices import resolve_profile
from autocompress.errors import DeviceUnavailable, InvalidInput
from autocompress.executors._ray.connecting import connect, hold, release
from autocompress.executors._ray.folders import OF_NODE
from autocompress.executors._ray.losses import loss
from autocompress.executors._ray.meter import at_once
from autocompress.executors._ray.site import RaySite
from autocompress.executors._ray.tasks import WITHOUT_GPUS, Outcome
from autocompress.executors._ray.trainers import Crew, train_together
from autocompress.executors.ray import RayExecutor
from autocompress.record import TAKEN_UP, Record
from autocompress.run_directory import RunDirectory
from autocompress.snapshot import Snapshot
from tests.calls import say, share_device, train_with_patience
from tests.tasks.stripes import task

TASK = str(Path(__file__).parents[1] / "tasks" / "stripes.py")

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and two nodes, with one CPU each."""
    from ray.cluster_utils import Cluster as Nodes

    # the dashboard may take any port: where its own is taken, by a cluster beside this one, Ray leaves a socket open
    made = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": None})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


@contextmanager
def node(cluster: Any, **resources: Any) -> Iterator[Any]:
    """One more node for a while, if the test does not take it away itself."""
    added = cluster.add_node(**resources)
    try:
        yield added
    finally:
        if added in cluster.worker_nodes:
            cluster.remove_node(added)


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


def written(run: Path) -> list[Record]:
    """All records of a run, also where there are two of one trial."""
    return [line for line in RunDirectory.open(run).lines() if isinstance(line, Record)]


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
    records = written(run.path)
    assert sorted(record.number for record in records) == list(range(7))
    complete = [record for record in records if record.status == "complete"]
    assert len(complete) > 1
    for record in complete:
        assert record.artifact is not None
        assert (run.path / record.artifact.path).stat().st_size == record.artifact.size_bytes
    assert len(run.points) > 1
    assert all("test_accuracy" in point.values() for point in run.points)


def search_and_lose(
    cluster: Any, mortal: Any, is_time: Callable[[Snapshot], bool], output: Path, **options: Any
) -> None:
    """Search on a cluster that loses a node on the way."""
    lost = list[Any]()

    def lose_it(snapshot: Snapshot) -> None:
        if is_time(snapshot) and not lost:
            lost.append(mortal)
            cluster.remove_node(mortal, allow_graceful=False)

    where = {"executor": "ray", "address": cluster.address, "output": output}
    try:
        autocompress.search(TASK, **where, observer=lose_it, strategy="random", **options)
    finally:
        assert lost


def test_a_node_that_is_lost_takes_no_trial_with_it(cluster: Any, tmp_path: Path) -> None:
    with node(cluster, num_cpus=1) as mortal:
        search_and_lose(
            cluster,
            mortal,
            lambda snapshot: snapshot.complete + snapshot.screened >= 1,
            tmp_path / "run",
            trials=6,
            workers=4,
        )
    records = written(tmp_path / "run")
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
    profile = replace(resolve_profile("fake"), wait_s=3.0)
    with (
        node(cluster, num_cpus=0, resources={"device:fake": 1}) as board,
        pytest.raises(DeviceUnavailable, match="no node of the cluster has had the resource 'device:fake' for"),
    ):
        search_and_lose(
            cluster,
            board,
            lambda snapshot: snapshot.complete >= 1,
            tmp_path / "run",
            trials=9,
            workers=2,
            hardware=profile,
        )
    records = RunDirectory.open(tmp_path / "run").records()
    assert 2 <= len(records) < 10
    assert not [record.reason for record in records if record.status == "failed"]


def test_training_has_gpus_of_the_cluster(cluster: Any, tmp_path: Path) -> None:
    """As Ray counts them: what they are is left to the machine."""
    with node(cluster, num_cpus=1, num_gpus=1):
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
    assert all(record.training_s and record.seconds["wait"] for record in trained), "its process had to begin"


def test_training_gives_up_where_its_gpus_are_gone_for_good(cluster: Any, tmp_path: Path) -> None:
    with (
        node(cluster, num_cpus=1, num_gpus=4) as mortal,
        RayExecutor(1, 1, Cluster(cluster.address, gpus_per_trial=4)) as executor,
    ):
        run = RunDirectory.create(tmp_path / "run").path
        executor.begin(run)
        assert executor.submit(train_with_patience, executor.site, 3.0).result(120) > 0
        cluster.remove_node(mortal)
        with pytest.raises(DeviceUnavailable, match="no node of the cluster has had 4 GPUs and 1 CPU for"):
            executor.submit(train_with_patience, executor.site, 3.0).result(120)
        lines = (run / "log.txt").read_text().splitlines()
    assert sum("machines with 4 GPUs and 1 CPU are waited for, up to 3s" in line for line in lines) == 1


def test_a_search_says_that_no_node_is_left_for_its_trials(cluster: Any) -> None:
    lines = list[str]()
    with (
        node(cluster, num_cpus=5) as mortal,
        RayExecutor(1, 5, Cluster(cluster.address)) as executor,
    ):
        executor.tell = lines.append
        assert executor.submit(pow, 2, 3).result(120) == 8
        cluster.remove_node(mortal)
        waiting = executor.submit(pow, 2, 4)
        wait_until(lambda: len(lines) == 1)
        with node(cluster, num_cpus=5):
            assert waiting.result(120) == 16
            wait_until(lambda: len(lines) == 2)
    assert re.match(r"machines with 5 CPUs and 1\.5 GB of memory are waited for; trials run on no others", lines[0])
    assert lines[1] == "machines with 5 CPUs and 1.5 GB of memory are back"


def test_a_shelf_that_dies_is_no_fault_of_the_trials(cluster: Any, tmp_path: Path) -> None:
    with RayExecutor(1, 1, Cluster(cluster.address)) as executor:
        executor.begin(RunDirectory.create(tmp_path / "run").path)
        executor.submit(say, executor.site, "it is well").result(120)
        ray.kill(executor._shelf)
        with pytest.raises(DeviceUnavailable, match="Ray cluster: lost: "):
            executor.submit(say, executor.site, "it is gone").result(120)


def test_a_job_may_be_given_what_is_passed_on_anyway(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_DATA", "/data")
    job = {"runtime_env": {"env_vars": {"AUTOCOMPRESS_DATA": "/data"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    with RayExecutor(1, 1, Cluster(cluster.address)) as executor:
        assert executor.submit(os.getenv, "AUTOCOMPRESS_DATA").result(120) == "/data"


def test_gpus_that_no_node_has_are_refused(cluster: Any, tmp_path: Path) -> None:
    with (
        node(cluster, num_cpus=0, num_gpus=1),
        pytest.raises(InvalidInput, match=r"gpus per trial 8: no node of the cluster has more than 1"),
    ):
        autocompress.search(
            TASK, executor="ray", address=cluster.address, gpus_per_trial=8, output=tmp_path / "run", hardware="fake"
        )
    assert not (tmp_path / "run").exists()


def test_a_trial_that_two_train_becomes_what_one_makes_of_it(cluster: Any, tmp_path: Path) -> None:
    """Though one of them is killed in the middle."""
    killed, steps = tmp_path / "killed", list[int]()

    def fatal(outputs: Tensor, targets: Tensor) -> Tensor:
        import torch.distributed as dist

        steps.append(len(targets))
        if len(steps) > 20 and dist.is_initialized() and dist.get_rank() == 1 and not killed.exists():
            killed.touch()
            os._exit(9)
        return nn.functional.cross_entropy(outputs, targets)

    mortal, options = replace(task, loss=fatal), {"trials": 3, "strategy": "random", "hardware": "fake"}
    ways: dict[str, dict[str, Any]] = {
        "alone": {"executor": "inline"},
        "together": {"executor": "ray", "address": cluster.address, "workers": 1, "trainers_per_trial": 2},
    }
    found = {}
    for way, where in ways.items():
        run = autocompress.search(mortal, output=tmp_path / way, **where, **options)  # type: ignore[arg-type]
        records = RunDirectory.open(run.path).records()
        assert not [record.reason for record in records if record.status == "failed"]
        found[way] = {record.plan.digest: record.details for record in records if record.plan.recovery.epochs}
    assert killed.exists()
    assert "begun again" in (tmp_path / "together" / "log.txt").read_text()
    assert RunDirectory.open(tmp_path / "together").config.cluster.trainers_per_trial == 2
    assert found["alone"].keys() == found["together"].keys() != set()
    for digest, details in found["together"].items():
        assert details["recovered_score"] == pytest.approx(found["alone"][digest]["recovered_score"], abs=0.05)
        assert TAKEN_UP not in details


@pytest.fixture
def connected(cluster: Any) -> Iterator[None]:
    """A connection to the cluster."""
    connect(cluster.address)
    hold()
    yield
    release()


def require_all_cpus_free() -> None:
    for _ in range(300):
        if ray.available_resources().get("CPU", 0) == ray.cluster_resources()["CPU"]:
            return
        time.sleep(0.1)
    raise AssertionError(f"{ray.available_resources()} of {ray.cluster_resources()}")


def together(crew: Crew, function: Callable[..., Any]) -> Any:
    outcome: Outcome = ray.get(train_together(crew, "test", function, (), print), timeout=120)
    return outcome.unwrapped()


@pytest.mark.usefixtures("connected")
def test_an_error_of_one_trainer_ends_all(cluster: Any) -> None:
    def fail() -> None:
        import torch.distributed as dist

        if dist.get_rank() == 1:
            raise InvalidInput("here")
        dist.barrier()

    with pytest.raises(InvalidInput, match="here"):
        together(Crew(2), fail)
    require_all_cpus_free()


@pytest.mark.usefixtures("connected")
def test_trainers_that_lose_one_of_them_are_lost(cluster: Any) -> None:
    def die() -> None:
        from autocompress.recovery import team

        if not team.leads():
            os._exit(9)
        team.told(lambda: 0)

    with pytest.raises(ray.exceptions.RayError) as caught:
        together(Crew(2), die)
    assert loss(caught.value)
    require_all_cpus_free()


@pytest.mark.usefixtures("connected")
def test_trainers_end_with_the_trial_that_wants_them(cluster: Any, tmp_path: Path) -> None:
    def wait() -> None:
        (tmp_path / f"trainer{dist.get_rank()}").touch()
        time.sleep(300)

    def trial() -> Any:
        return RaySite("test", crew=Crew(2)).at_trainer(wait)

    reference = ray.remote(num_cpus=1, max_retries=0)(trial).remote()
    while len(list(tmp_path.glob("trainer*"))) < 2:
        assert not ray.wait([reference], timeout=0.1)[0]
    ray.cancel(reference, force=True)
    require_all_cpus_free()


@pytest.mark.usefixtures("connected")
def test_trainers_have_the_gpus_that_ray_gives_them(cluster: Any) -> None:
    """Which the trial that wants them does not see."""

    def seen() -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    def trial(crew: Crew) -> Any:
        return RaySite("test", crew=crew).at_trainer(seen)

    asked = ray.remote(num_cpus=0, max_retries=0, runtime_env=WITHOUT_GPUS)(trial)
    crews = (Crew(1, gpus=0.5), Crew(2, gpus=0.5), Crew(2))
    with node(cluster, num_cpus=2, num_gpus=1):
        assert ray.get([asked.remote(crew) for crew in crews], timeout=120) == ["0", "0", ""]


def test_trainers_without_room_are_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"trainers per trial 99: each takes a CPU, and the cluster has room for \d"):
        autocompress.search(
            TASK,
            executor="ray",
            address=cluster.address,
            trainers_per_trial=99,
            output=tmp_path / "run",
            hardware="fake",
        )
    assert not (tmp_path / "run").exists()
