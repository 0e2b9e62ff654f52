from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from autocompress.cluster import Cluster
from autocompress.errors import InvalidInput, TaskFailed
from autocompress.executors import EXECUTORS
from autocompress.executors._ray import connecting
from autocompress.executors._ray.shelf import Shelf
from autocompress.executors._ray.tasks import opened, title, work
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
    monkeypatch.setattr(connecting, "_nodes", lambda: nodes)

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


def test_the_title_of_a_call_tells_trial_and_plan() -> None:
    assert title(fail, (Trial(7, INT8),)) == "fail 7 int8"
    assert title(fail, (Probe(INT8),)) == "fail int8"
    assert title(fail, (ValueError(),)) == "fail"


def test_an_error_of_a_call_comes_back_with_its_traceback() -> None:
    outcome = work(fail, (TaskFailed("the model raised", "Traceback"),), 1)
    with pytest.raises(TaskFailed, match="the model raised") as caught:
        opened(outcome)
    assert "in fail" in str(caught.value.__cause__)


def test_an_error_that_can_not_travel_comes_as_its_text() -> None:
    class Stubborn(Exception):
        def __reduce__(self) -> str:
            raise TypeError("not me")

    with pytest.raises(RuntimeError, match="Stubborn: no"):
        opened(work(fail, (Stubborn("no"),), 1))


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


@pytest.mark.parametrize("name", ["../run.json", "/etc/passwd", "a/b"])
def test_a_shelf_has_nothing_outside_of_its_folder(name: str, tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run")
    shelf = Shelf()
    shelf.begin(str(tmp_path / "run"))
    for act in (lambda: shelf.get(name), lambda: shelf.put(name, b""), lambda: shelf.drop(name)):
        with pytest.raises(InvalidInput, match="expected a name without a folder"):
            act()


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
