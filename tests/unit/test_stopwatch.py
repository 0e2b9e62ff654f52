"""The stages of a trial add up to its time."""

from __future__ import annotations

import pytest

from autocompress.pipeline import stopwatch
from autocompress.pipeline.stopwatch import Stopwatch


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the clock shows, one reading after the other."""
    readings: list[float] = []
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: readings.pop(0))
    return readings


def test_a_stage_that_comes_again_is_added(clock: list[float]) -> None:
    clock += [0.0, 1.0, 5.0, 8.0]
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("train"):
            pass
    assert watch.seconds == {"train": 4.0}


def test_a_stage_within_another_is_counted_once(clock: list[float]) -> None:
    clock += [0.0, 2.0, 7.0, 10.0]
    watch = Stopwatch()
    with watch.stage("recover"), watch.stage("train"):
        pass
    assert watch.seconds == {"train": 5.0, "recover": 5.0}


def test_what_another_clock_counted_meanwhile_is_taken_from_the_stage(clock: list[float]) -> None:
    clock += [0.0, 10.0]
    watch = Stopwatch()
    with watch.stage("wait"):
        watch.take_over({"train": 7.0, "build": 1.0})
    assert watch.seconds == {"train": 7.0, "build": 1.0, "wait": 2.0}


def test_a_stage_that_fails_took_its_time(clock: list[float]) -> None:
    clock += [0.0, 3.0]
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError), watch.stage("build"):
        raise ZeroDivisionError
    assert watch.seconds == {"build": 3.0}
