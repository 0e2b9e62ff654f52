"""What the Ray executor makes of what happens to its tasks; the cluster is a stand-in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

import autocompress
from autocompress.cluster import Cluster
from autocompress.errors import DeviceUnavailable, InvalidInput
from autocompress.executors._ray import losses, site, trainers
from autocompress.executors._ray.connecting import connect
from autocompress.executors._ray.losses import ATTEMPTS
from autocompress.executors._ray.needs import Patience
from autocompress.executors._ray.site import RaySite
from autocompress.executors._ray.tasks import Outcome
from autocompress.executors._ray.trainers import Crew
from autocompress.executors.ray import RayExecutor
from autocompress.run_directory import RunDirectory
from tests.fake_ray import Actor, FakeRay, stand_in

exceptions = pytest.importorskip("ray").exceptions
LOST = exceptions.WorkerCrashedError()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """A cluster of one node."""
    return stand_in(monkeypatch, {"CPU": 4.0, "memory": 64e9})


@pytest.fixture
def executor(ray: FakeRay) -> Iterator[RayExecutor]:
    made = RayExecutor(2, 1)
    yield made
    made.shutdown(cancel_futures=True)


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_lost_call_that_is_to_be_begun_again_holds_no_other_back(
    ray: FakeRay, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.executors.ray.PAUSE_S", 30.0)
    lost = [executor.submit(pow, 2, 3) for _ in range(3)]
    other = executor.submit(pow, 2, 3)
    for reference in ray.begun[:3]:
        reference.end(LOST)
    ray.begun[3].end(Outcome(8))
    assert other.result(5) == 8
    assert not any(future.done() for future in lost)


def test_an_executor_that_is_shut_down_waits_for_lost_calls_too(ray: FakeRay) -> None:
    executor = RayExecutor(2, 1)
    future = executor.submit(pow, 2, 3)
    ray.begun[0].end(LOST)
    ending = threading.Thread(target=executor.shutdown)
    ending.start()
    wait_until(lambda: len(ray.begun) == 2)
    ray.begun[1].end(Outcome(8))
    ending.join(10)
    assert (ending.is_alive(), future.result(0)) == (False, 8)


def test_a_lost_call_is_not_begun_again_once_all_is_dropped(
    ray: FakeRay, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = list[str]()
    executor.tell = events.append
    future = executor.submit(pow, 2, 3)
    ray.begun[0].end(LOST)
    wait_until(lambda: len(events) == 1)
    executor.kill()
    with pytest.raises(BrokenExecutor, match="dropped"):
        future.result(5)
    assert len(ray.begun) == 1


@pytest.mark.parametrize("asked", [Cluster(gpus_per_trial=8), Cluster(trainers_per_trial=9)])
def test_who_is_refused_leaves_no_ray_behind(ray: FakeRay, asked: Cluster) -> None:
    with pytest.raises(InvalidInput, match="per trial"):
        RayExecutor(1, 1, asked)
    assert (ray.addresses, ray.connected) == ([None], False)


def test_a_search_that_is_refused_never_begins_ray(ray: FakeRay, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong in ({"output": tmp_path}, {"storage": "nowhere://"}, {"workers": 0}):
        with pytest.raises(InvalidInput):
            autocompress.search("task.py", trials=1, executor="ray", **wrong)  # type: ignore[arg-type]
    assert not ray.addresses


def test_another_cluster_than_asked_for_is_refused(ray: FakeRay) -> None:
    """As another part of the program has reached it."""
    ray.init("10.0.0.1:6379")
    for same in (None, "auto", "10.0.0.1:6379", "127.0.0.1:6379"):
        connect(same)
    for other in ("10.0.0.2:6379", "10.0.0.1:6380", "ray://10.0.0.1:6379", "local"):
        with pytest.raises(InvalidInput, match=rf"{other}: this process is connected to 10\.0\.0\.1:6379 already"):
            connect(other)
    assert len(ray.addresses) == 1


def test_an_address_of_a_client_is_compared_with_that_of_its_server(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.init("ray://10.0.0.1:10001")
    client = SimpleNamespace(is_connected=lambda: True, worker=SimpleNamespace(_conn_str="10.0.0.1:10001"))
    monkeypatch.setattr(ray.util.client, "ray", client)
    connect("ray://10.0.0.1:10001")
    for other in ("ray://10.0.0.2:10001", "10.0.0.1:10001"):
        with pytest.raises(InvalidInput, match=r"connected to ray://10\.0\.0\.1:10001 already"):
            connect(other)


def test_a_connection_that_breaks_is_no_fault_of_the_trials(ray: FakeRay, executor: RayExecutor) -> None:
    """And nothing is asked of Ray afterwards, which would start a cluster of its own."""
    future = executor.submit(pow, 2, 3)
    ray.connected = False
    ray.begun[0].end(ConnectionError("Failed to reconnect"))
    for lost in (future, executor.submit(pow, 2, 3)):
        with pytest.raises(DeviceUnavailable, match="Ray cluster: lost: "):
            lost.result(5)
    executor.kill()


def test_files_that_can_not_be_fetched_are_no_fault_of_the_trial(ray: FakeRay, executor: RayExecutor) -> None:
    def renew() -> None:
        raise exceptions.ActorDiedError()

    executor._mirror = SimpleNamespace(renew=renew)  # type: ignore[assignment]
    future = executor.submit(pow, 2, 3)
    ray.begun[0].end(Outcome(8))
    with pytest.raises(DeviceUnavailable, match="Ray cluster: lost: "):
        future.result(5)


def test_an_argument_that_can_not_travel_is_told_by_its_call(
    ray: FakeRay, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise TypeError("can't pickle")

    monkeypatch.setattr(ray, "_begin", refuse)
    monkeypatch.setattr(executor, "_task", ray.remote(pow))
    with pytest.raises(TypeError, match="can't pickle"):
        executor.submit(pow, 2, 3).result(5)


def test_what_is_lost_each_time_is_begun_five_times_and_not_again_by_who_asked(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[str]()

    def train_together(crew: Crew, name: str, *given: object) -> None:
        begun.append(name)
        raise exceptions.OutOfMemoryError("memory")

    monkeypatch.setattr(site, "train_together", train_together)
    monkeypatch.setattr(site, "PAUSE_S", 0.0)
    monkeypatch.setattr(RaySite, "log", lambda *given: None)
    with pytest.raises(BrokenExecutor, match="as its node ran out of memory, 5 times in a row") as caught:
        RaySite("test", crew=Crew(2)).at_trainer(lambda: None)
    assert len(begun) == ATTEMPTS
    assert not losses.loss(caught.value)


def test_a_process_that_works_with_copies_stays_with_them(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Though the run directory is mounted later."""
    asked = list[str]()
    monkeypatch.setattr(RaySite, "_ask", lambda self, method, *given: asked.append(method))
    run, file = RunDirectory.create(tmp_path / "run").path, tmp_path / "copy.onnx"
    file.write_bytes(b"model")
    place = RaySite("test", run=str(run))
    place.share(file)
    place.marker.touch()
    place.share(file)
    assert asked == ["put", "put"]


def test_trainers_whose_node_dies_before_they_begin_are_waited_for_no_longer_than_others(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew, told = Crew(2, gpus=1.0), list[str]()
    ray.connected = True
    monkeypatch.setattr(ray, "wait", lambda references, **options: ([], references))
    with pytest.raises(DeviceUnavailable, match="no node of the cluster has had 1 GPU and 1 CPU for each of 2"):
        trainers._introduce([Actor(), Actor()], crew, Patience(crew.need, told.append))
    assert len(told) == 1


@pytest.mark.parametrize("error", [exceptions.ActorDiedError(), ValueError("Failed to look up actor")])
def test_a_shelf_that_is_gone_ends_the_search_and_fails_no_trial(
    ray: FakeRay, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_actor(name: str, namespace: str) -> SimpleNamespace:
        if isinstance(error, ValueError):
            raise error
        return SimpleNamespace(log=SimpleNamespace(remote=lambda *given: None))

    def get(reference: object) -> None:
        raise error

    monkeypatch.setattr(ray, "get_actor", get_actor, raising=False)
    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(DeviceUnavailable, match="Ray cluster: lost: "):
        RaySite(f"gone {error}").log(None, "line")  # type: ignore[arg-type]
