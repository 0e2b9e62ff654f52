from __future__ import annotations

import os
import socket
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autocompress.cluster import Cluster
from autocompress.errors import InvalidInput, TaskFailed
from autocompress.executors import EXECUTORS
from autocompress.executors._ray import connecting, folders, mirror
from autocompress.executors._ray.needs import Need
from autocompress.executors._ray.shelf import Shelf, whole_files
from autocompress.executors._ray.site import RaySite
from autocompress.executors._ray.tasks import title, work
from autocompress.formats import onnx_runtime
from autocompress.formats.onnx_export import export
from autocompress.pipeline import Workbench
from autocompress.plan import Plan, Step
from autocompress.probe import Probe
from autocompress.profile import HardwareProfile
from autocompress.record import Trial
from autocompress.run_directory import RunDirectory
from autocompress.site import Site
from tests.calls import fail
from tests.conftest import PROFILE
from tests.fake_ray import stand_in
from tests.tasks.stripes import task

INT8 = Plan(steps=(Step("quantization", {"conv": {"precision": "int8"}}),))


@pytest.mark.parametrize("gpus", [-1, 1.5])
def test_gpus_of_a_trial_are_a_part_of_one_or_whole(gpus: float) -> None:
    with pytest.raises(InvalidInput, match=r"expected a part of one, such as 0\.25, or a whole number"):
        Cluster(gpus_per_trial=gpus)


@pytest.mark.parametrize("trainers", [0, 1.5])
def test_trainers_of_a_trial_are_counted(trainers: float) -> None:
    with pytest.raises(InvalidInput, match="expected a whole number, 1 or more"):
        Cluster(trainers_per_trial=trainers)  # type: ignore[arg-type]


def test_trainers_take_no_more_threads_than_leave_room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]
    monkeypatch.setattr(connecting, "nodes", lambda: nodes)

    def threads(trainers: int, gpus: float = 0.0) -> int:
        return connecting.fitting_trainers(Cluster(trainers_per_trial=trainers, gpus_per_trial=gpus), 8)

    assert [threads(1), threads(2), threads(3), threads(12)] == [8, 4, 4, 1]
    assert [threads(3, 1.0), threads(2, 2.0 / 4), threads(12, 0.25)] == [4, 4, 1]
    for trainers, gpus, room in ((13, 0.0, 12), (4, 1.0, 3), (2, 2.0, 1), (4, 0.6, 3)):
        with pytest.raises(InvalidInput, match=rf"room for {room} \(nodes: 2\)"):
            threads(trainers, gpus)
    nodes.clear()
    assert threads(4) == 8, "the cluster grows when it is asked to"


def test_without_ray_the_executor_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidInput, match=r"pip install 'autocompress\[ray\]'"):
        EXECUTORS["ray"](1, 1)


def test_what_trains_without_gpus_and_others_trains_where_the_trial_runs() -> None:
    """Where all CPUs are taken, another process might never begin."""
    assert RaySite("test").at_trainer(os.getpid) == os.getpid()


def test_the_title_of_a_call_tells_trial_and_plan() -> None:
    assert title(fail, (Trial(7, INT8),)) == "fail 7 int8"
    assert title(fail, (Probe(INT8),)) == "fail int8"
    assert title(fail, (ValueError(),)) == "fail"


def test_an_error_of_a_call_comes_back_with_its_traceback() -> None:
    outcome = work(fail, (TaskFailed("the model raised", "Traceback"),), 1)
    with pytest.raises(TaskFailed, match="the model raised") as caught:
        outcome.unwrapped()
    assert "in fail" in str(caught.value.__cause__)


def test_an_error_that_can_not_travel_comes_as_its_text() -> None:
    class Stubborn(Exception):
        def __reduce__(self) -> str:
            raise TypeError("not me")

    with pytest.raises(RuntimeError, match="Stubborn: no"):
        work(fail, (Stubborn("no"),), 1).unwrapped()


def test_a_shelf_has_the_files_of_a_run(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run")
    shelf = Shelf()
    shelf.begin(str(tmp_path / "run"))
    shelf.put("a.onnx", b"model")
    assert (tmp_path / "run" / "artifacts" / "a.onnx").read_bytes() == b"model"
    assert (shelf.get("a.onnx"), shelf.get("b.onnx"), shelf.names()) == (b"model", None, {"a.onnx"})
    shelf.drop("a.onnx")
    shelf.drop("a.onnx")
    shelf.log("machine board lost")
    assert shelf.names() == frozenset()
    assert (tmp_path / "run" / "log.txt").read_text().endswith("machine board lost\n")


def test_what_all_workers_say_of_a_machine_is_logged_once(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run")
    shelf = Shelf()
    shelf.begin(str(tmp_path / "run"))
    gone, back = "machines with 1 GPU are waited for", "machines with 1 GPU are back"
    for line in (gone, gone, back, back, gone, "run 3: begun again", "run 3: begun again"):
        shelf.log(line)
    logged = [line.split(" ", 2)[-1] for line in (tmp_path / "run" / "log.txt").read_text().splitlines()]
    assert logged == [gone, back, gone, "run 3: begun again", "run 3: begun again"]


@pytest.mark.parametrize("name", ["../run.json", "/etc/passwd", "a/b"])
def test_a_shelf_has_nothing_outside_of_its_folder(name: str, tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run")
    shelf = Shelf()
    shelf.begin(str(tmp_path / "run"))
    for act in (lambda: shelf.get(name), lambda: shelf.put(name, b""), lambda: shelf.drop(name)):
        with pytest.raises(InvalidInput, match="expected a name without a folder"):
            act()


class AtHand:
    """An actor of this process, and the part of Ray that calls it."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self._actor, name))


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shelf:
    """One that a mirror reaches without Ray."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(mirror, "the_ray", lambda: SimpleNamespace(get=lambda result: result))
    return Shelf()


def test_a_mirror_has_what_workers_make_and_make_anew_and_drops_what_the_search_does(
    shelf: Shelf, tmp_path: Path
) -> None:
    directory = RunDirectory.create(tmp_path / "run")
    ours = directory.path / "artifacts"
    (ours / "a.onnx").write_bytes(b"ours")
    mirrored = mirror.Mirror(AtHand(shelf), directory.path)
    assert shelf.get("a.onnx") == b"ours"
    shelf.put("b.onnx", b"first")
    mirrored.renew()
    assert (ours / "b.onnx").read_bytes() == b"first"
    shelf.put("b.onnx", b"again")
    mirrored.renew()
    assert (ours / "b.onnx").read_bytes() == b"again", "as many bytes, but others"
    (ours / "b.onnx").unlink()
    mirrored.renew()
    assert (shelf.names(), whole_files(ours)) == ({"a.onnx"}, {"a.onnx"})


def test_a_mirror_brings_to_the_shelf_what_nodes_that_see_the_folder_make(shelf: Shelf, tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run")
    ours = directory.path / "artifacts"
    mirrored = mirror.Mirror(AtHand(shelf), directory.path)
    (ours / "a.onnx").write_bytes(b"ours")
    mirrored.renew()
    assert shelf.get("a.onnx") == b"ours"
    shelf.drop("a.onnx")
    mirrored.renew()
    assert (shelf.names(), whole_files(ours)) == (frozenset(), frozenset())


def test_a_mirror_fetches_nothing_twice(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, fetched = RunDirectory.create(tmp_path / "run"), list[str]()
    (directory.path / "artifacts" / "a.onnx").write_bytes(b"ours")
    mirrored = mirror.Mirror(AtHand(shelf), directory.path)
    monkeypatch.setattr(shelf, "get", lambda name: fetched.append(name) or Shelf.get(shelf, name))
    shelf.put("b.onnx", b"theirs")
    mirrored.renew()
    mirrored.renew()
    assert fetched == ["b.onnx"]


def test_copies_of_a_search_from_outside_of_the_cluster_go_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shelf = Shelf()
    shelf.begin("")
    shelf.put("a.onnx", b"model")
    assert len(list(tmp_path.glob(f"{folders.OF_SHELF}*/artifacts/a.onnx"))) == 1
    shelf.receive("a node")
    assert shelf.end() == {"a node"}
    assert not list(tmp_path.iterdir())


def test_a_run_directory_stays_when_its_shelf_ends(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run")
    shelf = Shelf()
    shelf.begin(str(tmp_path / "run"))
    shelf.put("a.onnx", b"model")
    assert shelf.new_lines() == ()
    shelf.end()
    assert shelf.get("a.onnx") == b"model"


def test_a_node_removes_copies_of_searches_that_were_killed_long_ago_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = folders.node_folder("mine")
    left, busy, other = folders.node_folder("left"), folders.node_folder("busy"), tmp_path / "other"
    for folder in (left, busy, other):
        (folder / "artifacts").mkdir(parents=True)
        os.utime(folder, (0, 0))
    folders.occupy(busy)
    folders.occupy(mine)
    assert set(tmp_path.iterdir()) == {mine, busy, other}


@pytest.mark.parametrize(
    ("nodes", "asked", "given"),
    [
        ([(8, 64e9)], (4, 1.5e9), (4, 1.5e9)),
        ([(2, 64e9), (1, 64e9)], (4, 1.5e9), (2, 1.5e9)),
        ([(8, 1e9), (2, 64e9)], (4, 1.5e9), (2, 1.5e9)),
        ([(8, 1e9)], (4, 1.5e9), (4, 1e9)),
        ([], (4, 1.5e9), (4, 1.5e9)),
    ],
)
def test_a_task_asks_for_no_more_than_some_node_has(
    nodes: list[tuple[int, float]],
    asked: tuple[int, float],
    given: tuple[int, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_nodes(monkeypatch, nodes)
    assert connecting.fitting(*asked) == given


@pytest.mark.parametrize(
    ("cpus", "workers", "threads"),
    [([8], 8, 1), ([8], 2, 4), ([8], 3, 2), ([16, 4], 2, 8), ([16, 4], 5, 4), ([2, 2], 9, 1), ([], 3, 1)],
)
def test_trials_have_the_threads_that_let_all_run_at_the_same_time(
    cpus: list[int], workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_nodes(monkeypatch, [(count, 64e9) for count in cpus])
    assert connecting.threads_for(workers) == threads


@pytest.mark.parametrize(("cpus", "takes_wall_time", "workers"), [([8], False, 8), ([8], True, 1), ([8, 4], True, 12)])
def test_one_trial_runs_at_a_time_where_another_would_disturb_its_timing(
    cpus: list[int], takes_wall_time: bool, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_nodes(monkeypatch, [(count, 64e9) for count in cpus])
    monkeypatch.setattr("autocompress.executors.ray.connect", lambda address: None)
    assert EXECUTORS["ray"].usual_workers(Cluster(), takes_wall_time=takes_wall_time) == workers


@pytest.mark.parametrize(
    ("nodes", "cluster", "workers"),
    [
        ([{"CPU": 64.0, "memory": 44e9}], Cluster(), 29),
        ([{"CPU": 64.0, "memory": 1e9}], Cluster(), 1),
        ([{"CPU": 64.0, "memory": 44e9, "GPU": 1.0}], Cluster(gpus_per_trial=1), 2),
        ([{"CPU": 64.0, "memory": 44e9, "GPU": 1.0}], Cluster(gpus_per_trial=0.25), 8),
        ([{"CPU": 64.0, "memory": 99e9}, {"CPU": 4.0, "memory": 9e9, "GPU": 4.0}], Cluster(gpus_per_trial=1), 8),
        ([{"CPU": 64.0, "memory": 44e9, "GPU": 8.0}], Cluster(gpus_per_trial=1, trainers_per_trial=4), 4),
        ([{"CPU": 64.0, "memory": 44e9}], Cluster(trainers_per_trial=40), 1),
        ([], Cluster(gpus_per_trial=1), 1),
    ],
)
def test_as_many_trials_run_as_there_are_processors_memory_and_gpus_for(
    nodes: list[dict[str, float]], cluster: Cluster, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, *nodes)
    assert EXECUTORS["ray"].usual_workers(cluster, takes_wall_time=False) == workers


@pytest.mark.parametrize(("gpus", "room"), [(0.6, 2), (0.25, 8), (1.0, 2), (2.0, 1), (0.0, 9)])
def test_a_part_of_a_gpu_is_of_a_single_one(gpus: float, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"CPU": 9.0, "GPU": 2.0}
    stand_in(monkeypatch, node)
    assert connecting.room_in(node, {"CPU": 1.0, "GPU": gpus}) == room
    needs = [Need({"CPU": 1.0, "GPU": gpus}, "", "", "", 0.0, count) for count in (room, room + 1)]
    assert [need.is_met() for need in needs] == [True, False]


def test_gpus_are_not_refused_by_a_cluster_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = stand_in(monkeypatch, {"memory": 64e9})
    connecting.require_gpus(1)
    fake.has.append({"CPU": 4.0, "GPU": 0.0})
    with pytest.raises(InvalidInput, match="gpus per trial 1: no node of the cluster has more than 0"):
        connecting.require_gpus(1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Ray looks at TMPDIR on Linux alone")
@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_cluster_that_was_killed_is_known_by_its_note(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert not connecting._is_left_over()
    noted = Path(pytest.importorskip("ray._common.utils").get_ray_address_file(None))
    assert noted.parent == tmp_path / "ray"
    noted.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        noted.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert not connecting._is_left_over()
    assert connecting._is_left_over()


def has_nodes(monkeypatch: pytest.MonkeyPatch, nodes: list[tuple[int, float]]) -> None:
    """Have Ray tell of nodes with so many CPUs and bytes of memory, of one without CPUs, and of one that is lost."""
    resources = [{"CPU": float(cpus), "memory": memory} for cpus, memory in nodes]
    told = [{"Alive": True, "Resources": has} for has in [*resources, {"memory": 64e9}]]
    told.append({"Alive": False, "Resources": {"CPU": 99.0, "memory": 99e9}})
    monkeypatch.setattr(connecting, "the_ray", lambda: SimpleNamespace(nodes=lambda: told))


@dataclass(frozen=True)
class Elsewhere(Site):
    """A site that has everything measured and trained by calls that it writes down."""

    calls: list[str] = field(default_factory=list, hash=False)

    def measures_here(self, profile: HardwareProfile) -> bool:
        return False

    def at_device(self, profile, function, *args):  # type: ignore[no-untyped-def]
        self.calls.append(f"{function.__name__} {profile.name}")
        return function(*args)


def test_models_are_measured_and_run_where_the_site_says(tmp_path: Path) -> None:
    site = Elsewhere()
    bench = Workbench(task, (PROFILE,), tmp_path, site)
    path = bench.artifact_path(Plan())
    onnx_runtime.save(export(task.build_model(), task.examples), path)
    model = bench.artifact(Plan())
    (measured,) = bench.devices[0].measure([model], model, examples=task.examples)
    assert measured.latency_ratio == 1
    (outputs,) = bench.devices[0].run(model, task.examples)
    assert np.allclose(outputs, onnx_runtime.predictor(path)(task.examples))
    assert site.calls == ["measure_there test", "run_there test"]
