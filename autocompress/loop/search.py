"""The search loop: what to start, what came back, when to end."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NoReturn

from autocompress.duration import format_duration
from autocompress.errors import DeviceUnavailable, MeasurementError, SearchFailed, one_line
from autocompress.front import feasible, pareto_front
from autocompress.interrupts import Interrupts
from autocompress.loop.calls import Calls
from autocompress.loop.confirming import Confirming
from autocompress.loop.course import Course
from autocompress.loop.device_scoring import DeviceScoring
from autocompress.loop.findings import Findings
from autocompress.loop.telling import UNFORESEEN, Telling
from autocompress.loop.times import REPORT_S, Budget, Clock, TrialTimes
from autocompress.loop.waiting import TICK_S, Waiting
from autocompress.objective import LATENCY_RATIO, on_each_machine
from autocompress.plan import Plan
from autocompress.point import confirmed, point_name
from autocompress.probe import Probe, Sensitivity
from autocompress.record import Record, Trial
from autocompress.run_directory import CANCELLED, RunConfig, RunDirectory, RunStatus
from autocompress.screen import Screen
from autocompress.snapshot import Observer
from autocompress.strategies import SearchStrategy

LEEWAY, ROUND_S = 1.25, 10.0
"""How much more than what is known to be needed a budget has that would do, and the seconds to which it is rounded."""

SAME_ERRORS = 5
"""First trials that may fail with one error before the search is given up: it is the task's or the machine's."""

LOOKS_BETWEEN_EVENTS = 25
"""Changes that are looked at until it is told how many, for those who see no live view."""

PROBE_S = 5.0
"""Seconds that looking at a change may take, before one has been looked at."""


@dataclass(frozen=True)
class Ending:
    """Why no more trials begin.

    Args:
        reason: In words.
        is_spent: True if it is for the budget, so that time which is left in the end may be used.
    """

    reason: str
    is_spent: bool = False


class _Refused:
    """What a strategy would propose if there were more time.

    Args:
        fitting: A trial as it ends in time, or None.
        takes_s: The least that a trial takes.
    """

    def __init__(self, fitting: Callable[[Trial], Trial | None], takes_s: Callable[[Trial], float]) -> None:
        self._fitting, self._takes_s = fitting, takes_s
        self.least_s: float | None = None
        """Seconds of the quickest; None if nothing was refused."""

    def fits(self, trial: Trial) -> bool:
        """Whether a trial that began now would end in time, if need be after less training."""
        fits = self._fitting(trial) is not None
        if not fits:
            takes_s = self._takes_s(trial)
            self.least_s = takes_s if self.least_s is None else min(self.least_s, takes_s)
        return fits


SPENT = Ending("what is left of the budget is for measuring the front", is_spent=True)
ASKED = Ending("asked to stop")


class SearchLoop:
    """Runs trials until the budget, the trials or the space are spent, or somebody asks to stop.

    Args:
        directory: Locked by the caller; holds the baseline's record and those of earlier processes.
        strategy: Told all of those records already.
        calls: The workers.
        clock: Time spent.
        times: Predicts trials.
        interrupts: Requests to stop.
        observer: Told what happens.
        begun: Trials that an earlier process began and that go on elsewhere, of which the strategy knows nothing yet.
        unfinished: Those of which none goes on: they are begun again.
    """

    def __init__(
        self,
        *,
        directory: RunDirectory,
        strategy: SearchStrategy,
        calls: Calls,
        clock: Clock,
        times: TrialTimes,
        interrupts: Interrupts,
        observer: Observer | None,
        begun: Mapping[Future[Record], Trial] = MappingProxyType({}),
        unfinished: Sequence[Trial] = (),
    ) -> None:
        self._findings = Findings(directory)
        self._config: RunConfig = self._findings.config
        self._strategy = strategy
        self._calls = calls
        self._times = times
        self._interrupts = interrupts
        self._budget = Budget(clock, self._config.budget_s)
        self._telling = Telling(self._findings, clock, observer, busy=lambda: self._busy + len(self._begun))
        self._patience = Waiting(calls, self._budget, self._telling, interrupts)
        course = Course(self._findings, calls, self._patience, self._budget, self._telling)
        self._confirming, self._device_scoring = Confirming(course), DeviceScoring(course)
        self._begun, self._unfinished = dict(begun), unfinished
        self._running: dict[Future[Record], Trial] = {}
        self._looking: dict[Future[Sensitivity], tuple[Probe, float]] = {}
        """What is looked at, and since when."""

        self._screened: tuple[tuple[int, int], Screen] | None = None
        """What was to beat last, after how many records and confirmations."""

        self._has_nothing = False
        """True if the strategy had nothing to propose before what is at work has ended."""

        self._is_extra_time = False
        """True once the front is confirmed and the search goes on for what that left of the budget."""

        for record in self._findings.records:
            times.learn(record)

    def run(self) -> RunStatus:
        """Search, confirm the front, and say how it ended.

        Where confirming left more time than it was given, the search goes on for that, to the end: nothing is lost then
        by a trial that does not end in time.

        Returns:
            "complete" if a limit or the end of the space was reached, "stopped" if somebody asked to stop.

        Raises:
            SearchFailed: If the first trials all fail with one error.
            DeviceUnavailable: If there is nothing to measure on. The trials that ran have no record: a later process
                begins them again.
        """
        self._device_scoring.score_baseline()
        if self._findings.confirmations:  # of an earlier process, which had no time for all scores
            self._device_scoring.score_front()
        self._land()
        ending, known = self._search(), 0
        while not self._interrupts.cancel:
            self._confirm(self._times.quickest_s if ending.is_spent else None)
            if not self._interrupts.cancel:
                self._device_scoring.score_front()
            count = len(self._findings.records)
            if not ending.is_spent or count == known or self._time_for_trials() <= 0:
                break
            known, self._telling.phase, self._is_extra_time = count, "searching", True
            ending = self._search()
        status: RunStatus = "stopped" if self._interrupts.drain else "complete"
        ended = "the budget is spent" if ending.is_spent else ending.reason
        self._telling.end(status, CANCELLED if self._interrupts.cancel else ended)
        return status

    def _confirm(self, another_s: float | None) -> None:
        """Confirm the front; see `Confirming.run`."""
        self._telling.phase = "confirming"
        try:
            self._confirming.run(self._strategy.believed(), self._device_scoring.needed_s, another_s)
        except DeviceUnavailable as error:
            self._end_without_device(error)

    # -- searching -----------------------------------------------------------------------------------------------

    def _land(self) -> None:
        """Take in what an earlier process began, before anything is proposed: strategies go by the records alone."""
        self._begin_again()
        while self._begun:
            try:
                done = self._patience.for_some(self._begun)
            except MeasurementError:  # it is too late, or somebody cancels
                self._begun.clear()
                return
            for future in sorted(done, key=lambda one: _device_lost(one) is not None):  # what has ended first
                trial = self._begun.pop(future)
                lost = _device_lost(future)
                if lost is not None:
                    self._end_without_device(lost)
                if not future.cancelled():
                    self._take_in([self._finished(future, trial)])

    def _begin_again(self) -> None:
        """Begin what an earlier process left unfinished, as far as trials and time reach."""
        for trial in self._unfinished[: self._trials_left(len(self._begun))]:
            fitting = self._fitting(trial)
            if fitting is not None:
                self._begun[self._calls.run(fitting, self._screen())] = fitting
        if self._unfinished and self._begun:
            numbers = ", ".join(str(trial.number) for trial in self._begun.values())
            self._telling.tell(f"begun again, as they had not ended: {numbers}")

    def _trials_left(self, at_work: int) -> int | None:
        """How many trials may begin beside some that are at work; None for any number."""
        limit = self._config.trials
        return None if limit is None else max(0, limit - (len(self._findings.records) - 1) - at_work)

    def _search(self) -> Ending:
        """Start and collect trials; returns why it ended."""
        ending: Ending | None = None
        while True:
            while ending is None and not self._has_nothing and self._busy < self._config.workers:
                ending = self._start()
            if ending is not None and self._busy and self._telling.phase == "searching":
                self._telling.phase = "draining"
                self._telling.tell(f"{ending.reason}; waiting for running trials: {self._busy}")
            if ending is not None and not self._busy:
                return ending
            self._collect()
            if self._interrupts.drain and ending is None:
                ending = ASKED
            if self._interrupts.cancel or self._time_for_trials() < 0:
                self._drop(CANCELLED if self._interrupts.cancel else "out of time")
                return ending or SPENT

    @property
    def _busy(self) -> int:
        """Workers that have something to do."""
        return len(self._running) + len(self._looking)

    def _start(self) -> Ending | None:
        """Start the next trial or look at a change; returns why not, if there is no more."""
        if self._interrupts.drain:
            return ASKED
        if self._trials_left(len(self._running)) == 0:
            return Ending(f"the limit of trials, {self._config.trials}, is reached")
        refused = _Refused(self._fitting, self._times.least_s)
        asked = self._strategy.ask(refused.fits)
        if isinstance(asked, Probe):
            return self._start_looking(asked)
        if asked is not None:
            return self._begin(asked)
        if refused.least_s is not None:
            return self._spent(refused.least_s)
        self._has_nothing = self._busy > 0
        return None if self._has_nothing else Ending("the space holds nothing new")

    def _begin(self, asked: Trial) -> Ending | None:
        """Start a trial; returns why not, if it would have ended in time a moment ago."""
        trial = self._fitting(asked)
        if trial is None:
            self._strategy.drop(asked.number)
            return self._spent(self._times.least_s(asked))
        self._findings.begin(trial)
        self._running[self._calls.run(trial, self._screen())] = trial
        return None

    def _spent(self, needed_s: float) -> Ending:
        """Why nothing more is begun that takes so many seconds; before the first trial also which budget would do."""
        if len(self._findings.records) > 1 or self._running:
            return SPENT
        spent_s, total_s = self._budget.clock.elapsed_s, self._budget.total_s or 0.0
        needed_s += self._budget.left_s - self._time_for_trials()
        # a resume, whose budget holds what was spent before, begins by loading all again
        enough_s = ROUND_S * math.ceil(LEEWAY * (2 * spent_s + needed_s + REPORT_S) / ROUND_S)
        return Ending(
            f"the budget of {format_duration(total_s)} leaves no time for a trial: the baseline took "
            f"{format_duration(self._findings.baseline.elapsed_s)}, all before the first trial "
            f"{format_duration(spent_s)}, and a trial with the final measurements takes {format_duration(needed_s)}; "
            f"give it {format_duration(enough_s)} or more"
        )

    def _start_looking(self, probe: Probe) -> Ending | None:
        """Look at a change, if there is time; returns why not, if not."""
        longest_s = max((entry.seconds for entry in self._findings.sensitivities[-8:]), default=PROBE_S)
        if self._time_for_trials() < longest_s:
            return self._spent(longest_s)
        self._looking[self._calls.look(probe)] = probe, time.monotonic()
        if len(self._looking) + len(self._findings.sensitivities) == 1:
            self._telling.tell("looking at single changes, for the sensitivity table")
        return None

    def _time_for_trials(self) -> float:
        """Seconds until the front has to be confirmed; infinite without a budget."""
        confirming_s = self._confirming.needed_s(again=self._is_extra_time)
        return self._budget.left_s - confirming_s - self._device_scoring.needed_s()

    def _fitting(self, trial: Trial) -> Trial | None:
        """The trial, shortened if need be to end in time for the front to be confirmed."""
        if self._config.budget_s is None:
            return trial
        available_s = self._time_for_trials()
        safely = self._times.shortened(trial, available_s)
        if safely is None and self._is_extra_time and not self._busy and not self._confirming.count_new():
            return self._times.shortened(trial, available_s, hopefully=True)
        return safely

    def _screen(self) -> Screen:
        """What a trial that begins now has to beat."""
        state = len(self._findings.records), len(self._findings.confirmations)
        if self._screened is None or self._screened[0] != state:
            self._screened = state, self._new_screen()
        return self._screened[1]

    def _new_screen(self) -> Screen:
        final = confirmed(self._findings.records, self._findings.confirmations)
        baseline = next(record for record in final if record.number == 0)
        allowed = feasible(final, self._config.constraints, baseline.values)
        return Screen(
            objectives=self._config.objectives,
            constraints=self._config.constraints,
            metric=self._config.metric,
            maximize=self._config.direction == "maximize",
            baseline=self._findings.baseline.values,
            front=tuple(record.values for record in pareto_front(allowed, self._config.objectives)),
        )

    def _collect(self) -> None:
        """Wait a moment for trials to end and take in those that did."""
        pending: set[Future[Any]] = {*self._running, *self._looking}
        done, _ = wait(pending, timeout=TICK_S, return_when=FIRST_COMPLETED)
        self._has_nothing = self._has_nothing and not done
        lost = [error for future in done if (error := _device_lost(future)) is not None]
        for future in done & self._looking.keys():
            if _device_lost(future) is None:
                self._note(future, *self._looking.pop(future))
        ended = [future for future in done & self._running.keys() if _device_lost(future) is None]
        for future in [future for future in ended if future.cancelled()]:
            ended.remove(future)
            self._strategy.drop(self._running.pop(future).number)
        self._take_in([self._finished(future, self._running.pop(future)) for future in ended])
        if lost:
            self._end_without_device(lost[0])
        if not done:
            self._telling.tell("")

    def _end_without_device(self, error: DeviceUnavailable) -> NoReturn:
        """End a search that has nothing to measure on.

        Raises:
            DeviceUnavailable: Always; says how to go on.
        """
        self._drop("no device")
        self._telling.end("failed", f"{type(error).__name__}: {one_line(error)}")
        raise DeviceUnavailable(
            f"{error}. Nothing that was measured is lost; go on once there is one: autocompress search --resume "
            f"{shlex.quote(str(self._findings.directory.path))}"
        ) from error

    def _note(self, future: Future[Sensitivity], probe: Probe, started: float) -> None:
        """Write an entry of the table down, then learn from it."""
        seconds = time.monotonic() - started
        try:
            entry = future.result()
        except BrokenExecutor as error:
            entry = Sensitivity(probe, reason=self._telling.explained(error), seconds=seconds)
        except Exception as error:  # nothing is known of the change, so that a resume looks again
            self._telling.tell(f"a change was not looked at: {self._telling.explained(error)}")
            return
        entry = replace(entry, ended_s=self._budget.clock.elapsed_s)
        self._findings.add(entry)
        self._strategy.note(entry)
        count = len(self._findings.sensitivities)
        self._telling.tell(f"{count} single changes looked at" if count % LOOKS_BETWEEN_EVENTS == 0 else "")

    def _finished(self, future: Future[Record], trial: Trial) -> Record:
        """The record of a trial that ended, however it ended."""
        try:
            return future.result()
        except Exception as error:
            return Record(trial, "failed", reason=self._telling.explained(error))

    def _take_in(self, ended: Sequence[Record]) -> None:
        """Write records down first, then learn from them; many may end at once where there are many workers."""
        if not ended:
            return
        records = [replace(record, ended_s=self._budget.clock.elapsed_s) for record in ended]
        self._findings.add(*records)
        for record in records:
            self._strategy.tell(record)
            self._times.learn(record)
        self._findings.directory.forget_weights(self._needed_weights())
        if any(record.status == "complete" for record in records):
            self._findings.renew_front()
        for record in records:
            self._telling.tell(_event(record, self._config))
        self._stop_if_hopeless()

    def _needed_weights(self) -> frozenset[str]:
        """Digests of the plans whose trained weights running or later trials may start from."""
        needed = set(self._strategy.parents())
        for trial in (*self._begun.values(), *self._running.values()):
            plan: Plan | None = trial.plan
            while plan is not None:
                needed.add(plan.digest)
                plan = plan.start
        return frozenset(needed)

    def _stop_if_hopeless(self) -> None:
        statuses = self._findings.statuses
        if statuses.total() < SAME_ERRORS or statuses["failed"] < statuses.total():
            return
        trials = [record for record in self._findings.records if record.number > 0]
        last = [_kind_of_error(record) for record in trials[-SAME_ERRORS:]]
        if len(set(last)) == 1:
            self._drop("hopeless")
            self._telling.end("failed", trials[-1].reason)
            raise SearchFailed(
                f"the first {len(trials)} trials all failed; the last because: {trials[-1].reason} "
                f"(all reasons are in {self._findings.directory.path / 'records.jsonl'})"
            )

    def _drop(self, why: str) -> None:
        """Kill what runs; it has no record, and a later process begins it again."""
        if self._busy:
            names = ", ".join(str(trial.number) for trial in self._running.values()) or "none"
            self._findings.directory.log(f"dropped running trials {names}: {why}")
            self._calls.kill()
            for trial in self._running.values():
                self._strategy.drop(trial.number)
            self._running.clear()
            self._looking.clear()


def _event(record: Record, config: RunConfig) -> str:
    """A finished trial in one line."""
    name = point_name(record)
    if record.status != "complete":
        return f"{name}: {record.status}: {record.reason}"
    value = record.values[config.metric]
    score = f"{100 * value:.2f} %" if config.is_percentage else f"{value:.4g}"
    latency = ", ".join(f"{ratio:.2f}x" for ratio in on_each_machine(record.values, LATENCY_RATIO).values())
    return (
        f"{name}: {config.metric} {score}, latency {latency}, "
        f"size {record.values['size_bytes'] / 1024:.1f} KiB, {record.elapsed_s:.1f} s"
    )


def _device_lost(future: Future[Any]) -> DeviceUnavailable | None:
    """The error of a call that has ended, if there was nothing to measure on."""
    error = None if future.cancelled() else future.exception()
    return error if isinstance(error, DeviceUnavailable) else None


def _kind_of_error(record: Record) -> str:
    return record.reason.removeprefix(UNFORESEEN).partition(":")[0]
