"""The measuring process: ONNX Runtime and numpy alone, one JSON request in, one JSON answer out.

`python -m autocompress.devices._measuring < request.json > answer.json`, started by the local device. It is a process
of its own so that neither torch's threads nor the search's memory are in the way of what is measured.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import ConfigDict

from autocompress.devices._energy import POWERCAP, Counter, find_counters, read, spent_uj
from autocompress.devices._footprint import Footprint, footprint
from autocompress.devices._lease import held, limit_work
from autocompress.devices._session import (
    HOST,
    Feed,
    Request,
    counted_clock,
    end_with_parent,
    make_feed,
    open_session,
    read_examples,
    runtime_errors,
)
from autocompress.errors import AutocompressError
from autocompress.measurement import Blocks, Samples, disturbance, ratio_interval, undisturbed
from autocompress.profile import Protocol
from autocompress.serialization import from_json, to_json

if TYPE_CHECKING:
    import onnxruntime

FEWEST_ROUNDS = 3
"""Blocks that even the slowest model gets."""

TRUSTED_ROUNDS = 8
"""Blocks from which on a bootstrap interval is believed: fewer agree by chance."""

CLEARED = 15
"""Percentile of the reference's times that has to be undisturbed before a disturbed reading ends early: a little more
than the percentile that counts, as of another model a few times less may be undisturbed."""

BLOCKS_KEPT, SAMPLES_KEPT = 100, 400
"""What of one model's times goes into a record, so that records stay small."""

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What the measuring process says.

    Args:
        times: One for each model of the request, in order; empty after an error.
        session_ms: Wall time that each of these took to be loaded; empty after an error.
        energy_mj: Energy of one inference of each of these models in the mean, None where the machine does not tell;
            empty after an error.
        disturbance: Of the reference, see `Measurement`.
        footprints: One for each model that was to be weighed, in order; empty after an error.
        runtime: Name and version of the runtime.
        error: Name of the error's class in `autocompress.errors`, or empty.
        message: What went wrong.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    times: tuple[Samples, ...] = ()
    session_ms: tuple[float, ...] = ()
    energy_mj: tuple[float | None, ...] = ()
    footprints: tuple[Footprint, ...] = ()
    disturbance: float = 0.0
    runtime: str = ""
    error: str = ""
    message: str = ""


@dataclass
class Subject:
    """A model being timed.

    Args:
        clock: The clock whose times count.
        session_ms: What loading it took.
        counters: Of energy, none where the machine does not tell.
        cpu, wall: Nanoseconds of its inferences, one list a block.
        spent_s: Seconds of all its inferences, by that clock.
        energy_uj: What all its blocks took by the counters.
    """

    path: str
    session: onnxruntime.InferenceSession
    feed: Feed
    clock: Literal["cpu_ms", "wall_ms"]
    session_ms: float
    counters: tuple[Counter, ...] = ()
    cpu: list[list[int]] = field(default_factory=list)
    wall: list[list[int]] = field(default_factory=list)
    spent_s: float = 0.0
    energy_uj: int = 0

    @property
    def counted(self) -> list[list[int]]:
        """Its times by the clock that counts."""
        return self.cpu if self.clock == "cpu_ms" else self.wall

    @property
    def energy_mj(self) -> float | None:
        """Energy of one inference in the mean, of whole blocks: the counters move too seldom for a single one."""
        inferences = sum(map(len, self.cpu))
        return float(f"{self.energy_uj / 1000 / inferences:.5g}") if self.counters else None

    def run_block(self, length: int) -> None:
        """Time `length` inferences."""
        cpu, wall = [], []
        before = read(self.counters)
        with runtime_errors(f"{self.path}: can't be run"):
            for _ in range(length):
                wall_start, cpu_start = time.perf_counter_ns(), time.thread_time_ns()
                self.session.run(None, self.feed)
                cpu_end, wall_end = time.thread_time_ns(), time.perf_counter_ns()
                cpu.append(cpu_end - cpu_start)
                wall.append(wall_end - wall_start)
        self.energy_uj += spent_uj(self.counters, before, read(self.counters))
        self.cpu.append(cpu)
        self.wall.append(wall)
        self.spent_s += sum(self.counted[-1]) / 1e9

    def warm_up(self, protocol: Protocol) -> float:
        """Run the model until it is warm or has used up `max_cpu_s`; the shortest time of one inference, in ms."""
        for _ in range(protocol.warmup_runs):
            self.run_block(1)
            if self.spent_s >= protocol.max_cpu_s:
                break
        shortest_ms = min(map(min, self.counted)) / 1e6
        self.cpu, self.wall, self.spent_s, self.energy_uj = [], [], 0.0, 0
        return shortest_ms


def time_models(subjects: Sequence[Subject], protocol: Protocol, *, undisturbed_ms: float = 0.0) -> None:
    """Time models in shuffled blocks until each one's ratio to the first is known well enough.

    All blocks take about the same time, that of the slowest single inference at least: what slows the machine for a
    moment then falls on all models alike.

    Args:
        subjects: The reference first.
        protocol: How long to go on, and how much longer while the reference is disturbed.
        undisturbed_ms: What the reference is known to take undisturbed; 0 if nothing is known.
    """
    typical_ms = [subject.warm_up(protocol) for subject in subjects]
    block_ms = max(protocol.block_ms, *typical_ms)
    schedule = [(subject, max(1, round(block_ms / ms))) for subject, ms in zip(subjects, typical_ms, strict=True)]
    order = random.Random(0)
    gc.collect()
    gc.disable()
    while not _is_enough(subjects, protocol, undisturbed_ms):
        order.shuffle(schedule)
        for subject, length in schedule:
            subject.run_block(length)
    gc.enable()


def _is_enough(subjects: Sequence[Subject], protocol: Protocol, undisturbed_ms: float) -> bool:
    rounds = len(subjects[0].counted)
    if rounds < FEWEST_ROUNDS:
        return False
    is_disturbed = _is_disturbed(subjects[0], undisturbed_ms)
    if max(subject.spent_s for subject in subjects) >= protocol.max_cpu_s * (protocol.patience if is_disturbed else 1):
        return True
    if (
        is_disturbed
        or not _is_worth_a_look(rounds)
        or min(subject.spent_s for subject in subjects) < protocol.min_cpu_s
    ):
        return False
    reference, *candidates = subjects
    return all(_half_width(subject, reference) <= protocol.interval for subject in candidates or [reference])


def _is_disturbed(reference: Subject, undisturbed_ms: float) -> bool:
    if not undisturbed_ms:
        return False
    low_ns = np.percentile(np.concatenate(_thinned(reference.counted)), CLEARED)
    return disturbance(float(low_ns) / 1e6, undisturbed_ms) > 0


def _is_worth_a_look(rounds: int) -> bool:
    """True when an eighth more rounds have come since the last look at the interval, from `TRUSTED_ROUNDS` on.

    A look resamples some hundred times of each model, which takes about as long as a short block.

    >>> [rounds for rounds in range(40) if _is_worth_a_look(rounds)]
    [8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 27, 30, 32, 36]
    """
    return rounds >= TRUSTED_ROUNDS and rounds % (rounds // TRUSTED_ROUNDS) == 0


def _half_width(candidate: Subject, reference: Subject) -> float:
    """Relative half width of the 95 % interval of the ratio of two models, from what a record would hold of them."""
    ratio, (low, high) = ratio_interval(_thinned(candidate.counted), _thinned(reference.counted))
    return max(high - ratio, ratio - low) / ratio


def _thinned(blocks: Sequence[Sequence[float]]) -> Blocks:
    """Times evenly spaced among many."""
    kept = spaced(blocks, BLOCKS_KEPT)
    return tuple(tuple(spaced(block, SAMPLES_KEPT // len(kept))) for block in kept)


def _in_record(blocks: Sequence[Sequence[int]]) -> Blocks:
    """Times in milliseconds, thinned and rounded to five digits, so that records stay small."""
    return tuple(tuple(float(f"{ns / 1e6:.5g}") for ns in block) for block in _thinned(blocks))


def spaced(items: Sequence[T], most: int) -> Sequence[T]:
    """At most `most` of the items, evenly spaced.

    >>> spaced([0, 1, 2, 3, 4, 5], 3)
    [0, 2, 4]
    """
    return items if len(items) <= most else [items[index * len(items) // most] for index in range(most)]


def measure(request: Request) -> Answer:
    """Weigh, then time the models of a request.

    Raises:
        MeasurementError: If one can't be loaded or run.
        DeviceUnavailable: If the runtime lacks the provider.
    """
    footprints = tuple(footprint(path, request) for path in request.weighed)  # first: it must see no runtime here
    runtime = runtime_name()  # loads it, so that no model is charged for that
    subjects = [_open(path, request) for path in request.models]
    with held(request.lease):  # what goes before may be done beside another measurement
        time_models(subjects, request.protocol, undisturbed_ms=request.undisturbed_ms)
    times = tuple(Samples(_in_record(subject.cpu), _in_record(subject.wall)) for subject in subjects)
    return Answer(
        times=times,
        session_ms=tuple(subject.session_ms for subject in subjects),
        energy_mj=tuple(subject.energy_mj for subject in subjects),
        footprints=footprints,
        disturbance=disturbance(undisturbed(getattr(times[0], subjects[0].clock)), request.undisturbed_ms),
        runtime=runtime,
    )


def _open(path: str, request: Request) -> Subject:
    started = time.perf_counter()
    session = open_session(path, request)
    session_ms = float(f"{1000 * (time.perf_counter() - started):.5g}")
    feed = make_feed(session, read_examples(request.examples), path)
    counters = find_counters(POWERCAP) if request.provider == HOST else ()  # an accelerator's energy is not in them
    return Subject(path, session, feed, counted_clock(request.provider, request.threads), session_ms, counters)


def runtime_name() -> str:
    """Name and version of the installed runtime."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def answer_request(work: Callable[[Request], Answer]) -> None:
    """Answer the request on standard input; an error that was expected is an answer too."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints must not end up in the answer
    request = from_json(Request, sys.stdin.read())
    end_with_parent(request.parent)
    limit_work(request.lease)
    try:
        answer = work(request)
    except AutocompressError as error:
        answer = Answer(error=type(error).__name__, message=str(error))
    answers.write(to_json(answer))
    answers.close()


if __name__ == "__main__":
    answer_request(measure)
