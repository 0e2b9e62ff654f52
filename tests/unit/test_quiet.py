"""What references take undisturbed, how long that is waited for, and what a measurement says that never saw it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.devices import _measuring
from autocompress.devices._measuring import Answer, Subject, time_models
from autocompress.devices._quiet import MOST_REFERENCES, REMEMBERED, QuietTimes, Reference
from autocompress.devices._session import Request
from autocompress.devices.agent import jobs
from autocompress.devices.agent.files import FileStore
from autocompress.devices.agent.messages import Job, Limits
from autocompress.devices.local import LocalDevice
from autocompress.measurement import Samples, undisturbed
from autocompress.profile import HardwareProfile, Protocol
from tests.agents import artifact, digest_of, examples, relu

PROTOCOL = Protocol(warmup_runs=1, block_ms=8.0, min_cpu_s=0.1, max_cpu_s=1.0, interval=0.01, patience=3.0)
ONE, OTHER = (Reference(letter * 64, "float32 (1, 4)", "CPUExecutionProvider", 1) for letter in "ab")


def steady(ms: float) -> Samples:
    """Times of a single block, on both clocks."""
    return Samples(((ms, ms),), ((2 * ms, 2 * ms),))


# -- the memory ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=30))
def test_the_shortest_of_the_last_ten_times_is_known(times_ms: list[float]) -> None:
    quiet = QuietTimes()
    assert quiet.of(ONE) == 0
    for ms in times_ms:
        quiet.remember(ONE, steady(ms))
    assert quiet.of(ONE) == pytest.approx(min(times_ms[-REMEMBERED:]))
    assert quiet.of(OTHER) == 0


def test_the_clock_that_counts_is_remembered() -> None:
    quiet, threaded = QuietTimes(), replace(ONE, threads=2)
    for reference in (ONE, threaded):
        quiet.remember(reference, steady(1.0))
    assert (quiet.of(ONE), quiet.of(threaded)) == (1.0, 2.0)


def test_the_reference_that_was_not_measured_for_longest_is_forgotten_first() -> None:
    quiet = QuietTimes()
    references = [replace(ONE, model=f"{number:064x}") for number in range(MOST_REFERENCES)]
    for reference in (*references, references[0], OTHER):
        quiet.remember(reference, steady(1.0))
    assert [reference for reference in references if not quiet.of(reference)] == [references[1]]


# -- measuring on ----------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """A clock of both kinds that goes only where somebody works."""

    now_ns: int = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    thread_time_ns = perf_counter_ns


class Working:
    """A session whose inferences take what it is told."""

    def __init__(self, clock: Clock, times_ms: Iterable[float]) -> None:
        self.clock, self.times_ms = clock, iter(times_ms)

    def run(self, *_: Any) -> None:
        self.clock.now_ns += round(1e6 * next(self.times_ms))


def timed(monkeypatch: pytest.MonkeyPatch, times_ms: Iterable[float], known_ms: float) -> Subject:
    """A reference with these times, beside a model of half of a millisecond, after measuring."""
    clock = Clock()
    monkeypatch.setattr(_measuring, "time", clock)
    sessions: list[Any] = [Working(clock, times_ms), Working(clock, repeat(0.5))]
    subjects = [Subject("model.onnx", session, {}, "cpu_ms", 0.0) for session in sessions]
    time_models(subjects, PROTOCOL, undisturbed_ms=known_ms)
    return subjects[0]


@pytest.mark.parametrize("known_ms", [0.0, 1.0, 0.98, 2.0])
def test_a_reference_as_quick_as_ever_ends_measuring_when_enough_is_known(
    known_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert timed(monkeypatch, repeat(1.0), known_ms).spent_s < 2 * PROTOCOL.min_cpu_s


def test_a_disturbed_reference_is_measured_on_as_long_as_patience_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    spent_s = timed(monkeypatch, repeat(1.0), 0.9).spent_s
    longest_s = PROTOCOL.max_cpu_s * PROTOCOL.patience
    assert longest_s <= spent_s < longest_s + 2 * PROTOCOL.block_ms / 1000


def test_a_disturbance_that_passes_is_waited_for_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = timed(monkeypatch, chain(repeat(1.0, 1200), repeat(0.8)), 0.8)
    assert PROTOCOL.max_cpu_s < reference.spent_s < 2 * PROTOCOL.max_cpu_s
    assert undisturbed(_measuring._in_record(reference.cpu)) == 0.8


# -- devices ---------------------------------------------------------------------------------------------------------

QUICK = Protocol(warmup_runs=1, block_ms=1.0, min_cpu_s=0.01, max_cpu_s=0.02, interval=0.5)
INPUTS, DOUBLES = ((np.ones((1, 4), kind),) for kind in (np.float32, np.float64))


class Listening(LocalDevice):
    """A local device that writes down what it asks for, and may claim to know more than it does."""

    def __init__(self, *, claimed_ms: float = 0.0) -> None:
        super().__init__(HardwareProfile(name="test", protocol=QUICK))
        self.claimed_ms, self.asked_ms = claimed_ms, list[float]()

    def _ask(self, module: str, request: Request) -> Answer:
        self.asked_ms.append(request.undisturbed_ms)
        return super()._ask(module, replace(request, undisturbed_ms=self.claimed_ms or request.undisturbed_ms))


def test_a_second_measurement_on_this_machine_knows_the_reference(tmp_path: Path) -> None:
    model, device = artifact(tmp_path / "model.onnx", relu()), Listening()
    measured = [device.measure([model], model, examples=inputs)[0] for inputs in (INPUTS, INPUTS, DOUBLES)]
    assert device.asked_ms == [0, measured[0].latency_ms, 0], "inputs of another kind may take another time"
    assert measured[0].disturbance == measured[2].disturbance == 0


def test_a_measurement_beside_a_disturbed_reference_says_so_and_has_a_wide_interval(tmp_path: Path) -> None:
    model, device = artifact(tmp_path / "model.onnx", relu()), Listening(claimed_ms=1e-6)
    (measured,) = device.measure([model], model, examples=INPUTS)
    assert measured.disturbance == pytest.approx(measured.latency_ms / 1e-6 - 1)
    low, high = measured.latency_ratio_interval
    assert low < 0.62
    assert high > 1.6


def test_an_agent_remembers_the_references_of_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    asked: list[float] = []
    times = iter((0.8, 0.7, 0.9))

    async def run_process(kind: str, request: Request, folder: Path, limits: Limits) -> Answer:
        asked.append(request.undisturbed_ms)
        return Answer(times=(steady(next(times)),)) if kind == "measure" else Answer(error="MeasurementError")

    async def whole(content: bytes) -> Any:
        yield content

    async def work() -> None:
        files = FileStore(tmp_path / "agent", 2**20)
        for content in (relu(), examples()):
            await files.receive(digest_of(content), whole(content))
        agent_jobs = jobs.Jobs(tmp_path / "jobs", files, Limits(), "processor")
        for kind in ("measure", "measure", "run", "measure"):
            job = Job(kind, (digest_of(relu()),), digest_of(examples()))  # type: ignore[arg-type]
            await agent_jobs.status(agent_jobs.submit(job).id, 60.0)

    monkeypatch.setattr(jobs, "run_process", run_process)
    asyncio.run(work())
    assert asked == [0.0, 0.8, 0.7, 0.7]
