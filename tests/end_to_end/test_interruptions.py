"""A search that is killed, interrupted or disturbed loses nothing that was finished, and leaves no process behind."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import Driver, autocompress, contents, lines, project, search, show, trials

SPACE = """
methods: {quantization: {}, channel_pruning: {}}
widths: [0.5]
recovery: {epochs: 20, student_epochs: 40}
policies:
  - {quantization/precision: int8}
  - {architecture: width_0.5, quantization/precision: int8}
  - {channel_pruning/pruning_ratio: 0.5, quantization/precision: int8}
"""
"""Trials that take a second or two, so that there is something to interrupt."""

LONG = (
    *("task.py", "--space", "space.yaml", "--hardware", "fake", "--workers", "2", "--trials", "40", "--output", "run"),
    *("--strategy", "tpe"),  # every trial takes long, while the guided strategy begins with quick ones
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the user with the stripes task in it."""
    return project(tmp_path / "project", {"space.yaml": SPACE})


@pytest.fixture
def drivers() -> Iterator[list[Driver]]:
    """Searches that are ended with the test, however it ends."""
    started: list[Driver] = []
    yield started
    for driver in started:
        driver.kill()


def keys(found: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """Number and plan of each trial."""
    return [(trial["trial"]["number"], json.dumps(trial["trial"]["plan"], sort_keys=True)) for trial in found]


def dominated_area(found: Sequence[dict[str, Any]]) -> float:
    """Hypervolume of accuracy and size against a model without any accuracy that is as large as the baseline."""
    complete = [trial["values"] for trial in found if trial["status"] == "complete"]
    if not complete:
        return 0.0
    size = complete[0]["size_bytes"]
    area, reached = 0.0, 0.0
    for values in sorted(complete, key=lambda values: -values["accuracy"]):
        gain = max(0.0, 1 - values["size_bytes"] / size)
        area += max(0.0, gain - reached) * values["accuracy"]
        reached = max(reached, gain)
    return area


# -- kill -9 ---------------------------------------------------------------------------------------------------------


def test_a_search_killed_again_and_again_repeats_and_loses_nothing(folder: Path, drivers: list[Driver]) -> None:
    run, known, spent, area = folder / "run", list[Any](), 0.0, 0.0
    words: tuple[str, ...] = LONG
    for more in (0, 3, 1):  # while it prepares, then after two trials beside the baseline, then after another one
        driver = Driver(folder, *words)
        drivers.append(driver)
        driver.wait_for_lines(len(known) + more) if more else driver.wait_for("measuring the baseline")
        driver.kill()
        driver.leaves_no_process()
        found = trials(run)
        assert keys(found)[: len(known)] == keys(known)
        assert len(found) >= len(known) + more
        shown = show(run)
        assert shown["status"] == "interrupted"
        assert shown["elapsed_s"] > spent
        assert dominated_area(found) >= area
        known, spent, area = found, shown["elapsed_s"], dominated_area(found)
        words = ("--resume", "run")
    done = search(folder, "--resume", "run", "--trials", str(len(known)))
    found = trials(run)
    assert keys(found)[: len(known)] == keys(known)
    assert {number for number, _ in keys(found)} == set(range(len(known) + 1)), "none that began is left out"
    assert len({plan for _, plan in keys(found)}) == len(found) == len(known) + 1
    assert done["status"] == "complete"
    assert done["elapsed_s"] > spent


def test_no_measuring_process_outlives_a_killed_search(folder: Path, drivers: list[Driver]) -> None:
    profile = "device: local\nprotocol: {min_cpu_s: 20, max_cpu_s: 30}\nkernels: {conv: [int8]}\n"
    (folder / "slow.yaml").write_text(profile)
    driver = Driver(folder, "task.py", "--hardware", "slow.yaml", "--workers", "1", "--trials", "2", "--output", "run")
    drivers.append(driver)
    driver.wait_for_process("_measuring")
    driver.kill()
    driver.leaves_no_process()


# -- Ctrl-C ----------------------------------------------------------------------------------------------------------


def test_one_interrupt_lets_the_running_trials_end(folder: Path, drivers: list[Driver]) -> None:
    driver = Driver(folder, *LONG)
    drivers.append(driver)
    driver.wait_for_lines(2)
    driver.interrupt()
    assert driver.end() == 0, driver.said
    driver.leaves_no_process()
    shown = show(folder / "run")
    assert shown["status"] == "stopped"
    assert "dropped" not in driver.said
    assert all(point["test"]["accuracy"] is not None for point in shown["front"])
    assert {line["number"] for line in lines(folder / "run") if line["kind"] == "confirmation"}
    assert "Traceback" not in driver.said


@pytest.mark.parametrize("kind", ["two interrupts", "a termination"])
def test_a_cancelled_search_drops_what_runs_and_keeps_its_front(folder: Path, drivers: list[Driver], kind: str) -> None:
    driver = Driver(folder, *LONG)
    drivers.append(driver)
    driver.wait_for_lines(2)
    if kind == "a termination":
        driver.process.send_signal(signal.SIGTERM)
    else:
        driver.interrupt()
        driver.wait_for("asked to stop; waiting for")
        driver.interrupt()
    assert driver.end() == 130, driver.said
    driver.leaves_no_process()
    shown = show(folder / "run")
    assert shown["status"] == "stopped"
    assert "dropped running trials" in (folder / "run" / "log.txt").read_text()
    assert all((folder / point["file"]).is_file() for point in shown["front"])
    assert (folder / "run" / "report.html").is_file()
    assert "Traceback" not in driver.said


@pytest.mark.parametrize("moment", ["loading the task", "exporting, scoring and measuring the baseline"])
def test_an_interrupt_while_it_prepares_leaves_nothing(folder: Path, drivers: list[Driver], moment: str) -> None:
    before = contents(folder)
    driver = Driver(folder, *LONG)
    drivers.append(driver)
    driver.wait_for(moment)
    driver.interrupt()
    assert driver.end() == 130, driver.said
    driver.leaves_no_process()
    assert contents(folder) == before
    assert not (folder / "run").exists()
    assert driver.said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in driver.said


# -- two on one folder, and going on ---------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused(folder: Path, drivers: list[Driver]) -> None:
    driver = Driver(folder, *LONG)
    drivers.append(driver)
    driver.wait_for_lines(1)
    second = autocompress(folder, "search", *LONG)
    assert (second.returncode, "holds a search already" in second.stderr) == (2, True), second.stderr
    third = autocompress(folder, "search", "--resume", "run")
    assert third.returncode == 2
    assert f"process {driver.process.pid} on " in third.stderr
    assert "is searching there" in third.stderr
    assert show(folder / "run")["status"] == "running"
    driver.process.send_signal(signal.SIGTERM)
    assert driver.end() == 130, driver.said


def test_a_finished_search_goes_on_with_more_trials(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "project"))
    before = trials(folder / "run")
    shown = search(folder, "--resume", "run", "--trials", "6", "--executor", "inline")
    after = trials(folder / "run")
    assert after[: len(before)] == before
    assert len(after) == 7
    assert shown["status"] == "complete"
    assert dominated_area(after) >= dominated_area(before)


def test_a_budget_that_the_baseline_takes_is_told_with_one_that_would_do(folder: Path) -> None:
    done = autocompress(folder, "search", "task.py", "--hardware", "fake", "--budget", "1s", "--output", "run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"of the budget of 1s are spent before the first trial, \d+s of them on the baseline", done.stderr)
    told = re.search(
        r"the budget of 1s leaves no time for a trial: .*; give it (.+) or more: autocompress search --resume run "
        r"--budget TIME",
        done.stdout,
    )
    assert told is not None, done.stdout
    done = autocompress(folder, "search", "--resume", "run", "--budget", told[1])
    assert show(folder / "run")["trials"]["complete"] >= 1, done.stderr
