from __future__ import annotations

import math
import pickle
import subprocess
import sys
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.errors import DeviceUnavailable, InvalidInput, UnknownName
from autocompress.executors._ray.site import RaySite
from autocompress.plan import Plan, Recovery, Step
from autocompress.record import Record, Trial
from autocompress.run_directory import RunDirectory
from autocompress.screen import Screen
from autocompress.serialization import from_json
from autocompress.task_source import TaskSource
from autocompress.tune import AutocompressSearcher
from autocompress.tune import handover as handing
from autocompress.tune.handover import Handed, Handover, Known, await_site, forget_site, write_site
from autocompress.tune.trials import told

VALUES = {"accuracy": 0.9, "latency_ms": 1.0}
SCREEN = Screen((), (), "accuracy", True, VALUES, ())


def trial(number: int, *, fidelity: float = 1.0) -> Trial:
    plan = Plan(steps=(Step("quantization", {f"layer{number}": {"precision": "int8"}}),), recovery=Recovery(epochs=2))
    return Trial(number, plan, fidelity=fidelity)


def handed(number: int) -> Handed:
    return Handed(trial(number), SCREEN, TaskSource("task.py"))


def record(number: int) -> Record:
    return Record(trial(number), "complete", values=VALUES)


@pytest.fixture
def handover(tmp_path: Path) -> Handover:
    return Handover(tmp_path)


def test_a_trial_goes_to_tune_and_its_record_comes_back(handover: Handover, tmp_path: Path) -> None:
    future = handover.put(handed(1))
    assert handover.take("a") == handed(1) == Handed.read(tmp_path, 1)
    assert handover.take("b") is None, "there is nothing more"
    assert handover.known() == Known({"a": 1}, ("a",))
    assert handover.end("a", record(1))
    assert future.result() == record(1)
    assert handover.known() == Known({"a": 1}, ())


def test_a_trial_has_one_outcome(handover: Handover) -> None:
    future = handover.put(handed(1))
    handover.take("a")
    handover.end("a", record(1))
    assert not handover.end("a", replace(record(1), reason="again"))
    handover.lose("a")
    handover.drop("a")
    handover.end("unheard of", record(2))
    assert future.result().reason == ""


def test_a_process_that_died_is_told_as_one_and_a_stopped_trial_is_dropped(handover: Handover) -> None:
    died, stopped = handover.put(handed(1)), handover.put(handed(2))
    handover.take("a")
    handover.take("b")
    handover.lose("a")
    handover.drop("b")
    assert isinstance(died.exception(), BrokenExecutor)
    assert stopped.cancelled()


def test_what_has_not_ended_is_cancelled_in_the_end_and_nothing_more_is_taken(handover: Handover) -> None:
    begun, waiting = handover.put(handed(1)), handover.put(handed(2))
    handover.take("a")
    handover.close()
    late = handover.put(handed(3))
    assert wait([begun, waiting, late], timeout=1).not_done == set()
    assert all(future.cancelled() for future in (begun, waiting, late))
    assert handover.take("b") is None


def test_a_restored_tune_gets_again_what_it_knows_nothing_of(tmp_path: Path) -> None:
    for number in (1, 2, 3, 4):
        handed(number).write(tmp_path)
    restored = Handover(tmp_path)
    known = Known({"a": 1, "b": 2}, ("b",))  # it has ended the first and begins the second again; the fourth is done
    begun = restored.go_on(known, {0, 1, 4})
    assert sorted(one.number for one in begun.values()) == [2, 3]
    again = [restored.take("c"), restored.take("d"), restored.take("e")]
    assert again == [handed(3), handed(4), None]
    for tune_id, number in (("b", 2), ("c", 3), ("d", 4)):
        restored.end(tune_id, record(number))
    assert sorted(future.result().number for future in begun) == [2, 3]


def test_a_trial_that_tune_ended_without_a_record_is_begun_again(tmp_path: Path) -> None:
    handed(1).write(tmp_path)
    restored = Handover(tmp_path)
    (future,) = restored.go_on(Known({"a": 1}, ()), {0})
    assert restored.take("b") == handed(1)
    assert restored.known() == Known({"a": 1, "b": 1}, ("b",)), "the old id is over"
    restored.end("b", record(1))
    assert future.result() == record(1)


def test_a_trial_waits_for_the_search_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that gave it out is gone, and with it the way to what measures."""
    monkeypatch.setattr(handing, "LOOK_S", 0.01)
    sites = [RaySite(name, str(tmp_path), declared=frozenset({"device:board"})) for name in ("before", "after")]
    forget_site(tmp_path)
    write_site(tmp_path, sites[0])
    with RunDirectory(tmp_path).locked():
        forget_site(tmp_path)
    assert await_site(tmp_path) == sites[0], "another process searches there"
    forget_site(tmp_path)
    with ThreadPoolExecutor(1) as trial:
        found = trial.submit(await_site, tmp_path)
        assert not wait([found], timeout=0.1).done
        write_site(tmp_path, sites[1])
        assert found.result(10) == sites[1]
    forget_site(tmp_path)
    monkeypatch.setattr(handing, "SITE_WAIT_S", 0.0)
    with pytest.raises(DeviceUnavailable, match=r"no search .* tune\.Tuner\.restore"):
        await_site(tmp_path)


def test_values_are_told_of_complete_trials_at_full_fidelity_alone() -> None:
    rung = Record(trial(2, fidelity=0.25), "complete", values=VALUES)
    screened = Record(trial(3), "screened", "dominated", values={"latency_ms": 0.5})
    results = [told(one, VALUES) for one in (record(1), rung, screened, Record(trial(4), "failed", "it broke"))]
    assert [result["status"] for result in results] == ["complete", "rung", "screened", "failed"]
    assert {name: results[0][name] for name in VALUES} == VALUES
    assert all(math.isnan(result[name]) for result in results[1:] for name in VALUES)
    assert [result["reason"] for result in results] == ["", "has had 25 % of full training", "dominated", "it broke"]
    assert from_json(Record, results[1]["record"]) == rung, "the search loses nothing"


def test_the_tables_of_tune_stay_readable(tmp_path: Path) -> None:
    config = handed(7).as_config(tmp_path)
    assert config == {"number": 7, "name": "int8", "source": "user", "fidelity": 1.0, "run": str(tmp_path)}


@pytest.fixture
def searcher(tmp_path: Path) -> AutocompressSearcher:
    return AutocompressSearcher("task.py", output=tmp_path / "run", strategy="random", trials=3)


def test_a_searcher_travels_by_pickle_and_writes_down_what_tune_knows(
    searcher: AutocompressSearcher, tmp_path: Path
) -> None:
    copy = pickle.loads(pickle.dumps(searcher))
    copy.save(str(tmp_path / "state"))
    assert from_json(Known, (tmp_path / "state").read_text()) == Known()


def test_a_param_space_is_refused(searcher: AutocompressSearcher) -> None:
    with pytest.raises(InvalidInput, match=r"param_space with lr: .* space="):
        searcher.set_search_properties(None, None, {"lr": 0.1}, num_samples=3)


def test_what_can_be_told_before_the_task_is_loaded_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'random'"):
        AutocompressSearcher("task.py", output=tmp_path, strategy="randm")


def test_without_ray_the_import_says_how_to_install_it() -> None:
    code = "import sys; sys.modules['ray'] = None; import autocompress.tune"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "ImportError: autocompress.tune needs Ray Tune" in done.stderr
    assert "pip install 'autocompress[ray]'" in done.stderr
