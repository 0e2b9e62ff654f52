"""The search loop: what to start, what came back, when to end."""

from __future__ import annotations

import math
import shlex
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from autocompress.doubt import likely_front
from autocompress.errors import AutocompressError, DeviceUnavailable, MeasurementError, SearchFailed, one_line
from autocompress.front import feasible, pareto_front
from autocompress.interrupts import Interrupts
from autocompress.objective import LATENCY_RATIO, on_each_machine
from autocompress.plan import Plan
from autocompress.point import confirmed, point_name
from autocompress.probe import Probe, Sensitivity
from autocompress.record import (
    SPARSIFY,
    TAKEN_UP,
    Confirmation,
    DeviceScore,
    Proposal,
    Record,
    Remeasured,
    SplitScore,
    Trial,
)
from autocompress.run_directory import CANCELLED, RunConfig, RunDirectory, RunStatus, is_disk_full
from autocompress.screen import Screen
from autocompress.snapshot import Observer, Phase, Snapshot
from autocompress.strategies import SearchStrategy

SPENT = "what is left of the budget is for measuring the front"
NO_ROOM = "the budget leaves no time for a trial beside the final measurements; give it more"
UNFORESEEN = "a bug or an unforeseen error, see log.txt: "
TICK_S = 0.5
SAME_ERRORS = 5
MOST_CPU_S = 1.5
"""CPU seconds spent at most on measuring one model of the final front."""

LEAST_EPOCHS = 2
"""Epochs below which no trial is shortened."""

JOINING = 0.25
"""Models, as a share of those on the front, that the strategy's beliefs may add to it at the end."""

GRACE_S = 10.0
"""Seconds by which confirming the front may go beyond the budget, where scoring takes longer than the trials said."""

LOOKS_BETWEEN_EVENTS = 25
"""Changes that are looked at until it is told how many, for those who see no live view."""

PROBE_S = 5.0
"""Seconds that looking at a change may take, before one has been looked at."""

PATIENCE_S = 120.0
"""Seconds that confirming a front may take where the search has no budget."""

DEVICE_SHARE = 0.25
"""Share of the budget that is kept at most for scoring on the device; the baseline alone may take as much before."""

DEVICE_S = 5.0
"""Seconds that scoring a model on the device may take, before one has been scored."""

REPORT_S = 2.0
"""Seconds kept for the report and for ending the processes."""


@dataclass(frozen=True)
class Calls:
    """What the loop can ask of the workers.

    Args:
        run: Carry out a trial.
        look: Look at a single change.
        test_score: Score a finished model on the test split.
        device_score: Score a finished model by what the device computes.
        remeasure: Measure finished models together: records, the baseline's values, CPU seconds for each.
        kill: Drop all running work.
    """

    run: Callable[[Trial, Screen], Future[Record]]
    look: Callable[[Probe], Future[Sensitivity]]
    test_score: Callable[[Record], Future[SplitScore]]
    device_score: Callable[[Record], Future[DeviceScore]]
    remeasure: Callable[[tuple[Record, ...], Mapping[str, float], float], Future[tuple[Remeasured, ...]]]
    kill: Callable[[], None]


class Clock:
    """Wall time of a search over all its resumes.

    Args:
        spent_s: Seconds spent before this process.
        started: `time.monotonic()` when this process began.
    """

    def __init__(self, spent_s: float, started: float) -> None:
        self._spent_s = spent_s
        self._started = started

    @property
    def elapsed_s(self) -> float:
        """Seconds spent until now."""
        return self._spent_s + time.monotonic() - self._started


class TrialTimes:
    """Predicts how long a trial takes: a fixed part and its epochs, corrected by ended trials.

    Args:
        epoch_s: Seconds of one epoch of the original, measured before the search.
    """

    def __init__(self, epoch_s: float) -> None:
        self._epoch_s = epoch_s
        self._fixed: list[float] = []
        self._scale: dict[str, list[float]] = {}

    def shortened(self, trial: Trial, available_s: float, *, hopefully: bool = False) -> Trial | None:
        """The trial with as many of its epochs as end in time; None if too few do.

        A shortened trial is another plan, which says what was really done; what was expected of the whole one is no
        longer said. It has two epochs at least, since some plans are trained in two phases.

        Args:
            trial: What to start.
            available_s: Seconds until it has to end.
            hopefully: Whether it is enough that the trial ends in time if it is as quick as the quickest lately; else
                it has to if it is as slow as the slowest.
        """
        typical: Callable[[Sequence[float]], float] = min if hopefully else max
        fixed_s = (1.0 if hopefully else 1.1) * typical(self._fixed[-8:] or [5.0])
        recovery = trial.plan.recovery
        known = self._scale.get(_kind(trial)) or [scale for scales in self._scale.values() for scale in scales]
        each_s = self._expected_epoch_s(trial) * typical(known[-16:] or [1.5])
        left_s = available_s - fixed_s - recovery.sparsify_epochs * each_s
        epochs = min(recovery.epochs, math.floor(left_s / each_s))
        if left_s < 0 or epochs < min(LEAST_EPOCHS, recovery.epochs):
            return None
        if epochs == recovery.epochs:
            return trial
        plan = replace(trial.plan, recovery=replace(recovery, epochs=epochs))
        before = float(trial.proposal.attributes.get("before", 0.0))
        full = float(trial.proposal.attributes.get("full", recovery.epochs))
        return replace(
            trial,
            plan=plan,
            fidelity=min(1.0, (before + epochs) / full),
            proposal=_without_expectations(trial.proposal),
        )

    def learn(self, record: Record) -> None:
        """Take in a finished trial."""
        if record.status != "complete" or TAKEN_UP in record.details:
            return
        self._fixed.append(record.elapsed_s - record.training_s - record.seconds.get(SPARSIFY, 0.0))
        epochs = record.plan.recovery.epochs
        if epochs:
            expected_s = self._expected_epoch_s(record.trial) * epochs
            self._scale.setdefault(_kind(record.trial), []).append(record.training_s / expected_s)

    def _expected_epoch_s(self, trial: Trial) -> float:
        """What the strategy expects of an epoch, else that of the original."""
        return float(trial.proposal.attributes.get("expected_epoch_s", self._epoch_s))


def _without_expectations(proposal: Proposal) -> Proposal:
    """A proposal without what was expected of its accuracy, which depends on the epochs."""
    accuracy = ("expected_loss", "expected_deviation")
    return replace(proposal, attributes={key: v for key, v in proposal.attributes.items() if key not in accuracy})


def _kind(trial: Trial) -> str:
    """Trials whose epochs are compared: of one architecture, unless the strategy knows better what to expect."""
    return "" if "expected_epoch_s" in trial.proposal.attributes else trial.plan.architecture


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
    ) -> None:
        self._directory = directory
        self._config: RunConfig = directory.config
        self._strategy = strategy
        self._calls = calls
        self._clock = clock
        self._times = times
        self._interrupts = interrupts
        self._observer = observer
        self._records = list(directory.records())
        self._confirmations = list(directory.confirmations())
        self._device_scores = list(directory.device_scores())
        self._device_seconds = [one.seconds for one in self._device_scores]
        """What it took to score models on the device, those that are scored at one time together."""

        self._running: dict[Future[Record], Trial] = {}
        self._looking: dict[Future[Sensitivity], tuple[Probe, float]] = {}
        """What is looked at, and since when."""

        self._looked = list(directory.sensitivities())
        self._waiting: Trial | Probe | None = None
        self._has_nothing = False
        """True if the strategy had nothing to propose before what is at work has ended."""

        self._phase: Phase = "searching"
        self._is_extra_time = False
        """True once the front is confirmed and the search goes on for what that left of the budget."""

        self._baseline = next(record for record in self._records if record.number == 0)
        self._points = directory.write_front(self._records, self._confirmations, self._device_scores)
        for record in self._records:
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
                may propose them again.
        """
        self._score_on_device(tuple(one for one in self._unscored() if one is self._baseline), DEVICE_SHARE)
        reason, known = self._search(), 0
        while not self._interrupts.cancel:
            self._confirm()
            self._score_on_device(self._unscored())
            if reason != SPENT or len(self._records) == known:
                break
            known, self._phase, self._is_extra_time = len(self._records), "searching", True
            reason = self._search()
        status: RunStatus = "stopped" if self._interrupts.drain else "complete"
        ended = "the budget is spent" if reason == SPENT else reason
        self._end(status, CANCELLED if self._interrupts.cancel else ended)
        return status

    # -- searching -----------------------------------------------------------------------------------------------

    def _search(self) -> str:
        """Start and collect trials; returns why it ended."""
        reason = ""
        while True:
            while not reason and not self._has_nothing and self._busy < self._config.workers:
                reason = self._start()
            if reason and self._busy and self._phase == "searching":
                self._phase = "draining"
                self._tell(f"{reason}; waiting for running trials: {self._busy}")
            if not self._busy:
                return reason
            self._collect()
            if self._interrupts.drain and not reason:
                reason = "asked to stop"
            if self._interrupts.cancel or self._is_late():
                self._drop(CANCELLED if self._interrupts.cancel else "out of time")
                return reason or SPENT

    @property
    def _busy(self) -> int:
        """Workers that have something to do."""
        return len(self._running) + len(self._looking)

    def _start(self) -> str:
        """Start the next trial or look at a change; returns why not, if there is no more."""
        if self._interrupts.drain:
            return "asked to stop"
        limit = self._config.trials
        if limit is not None and len(self._records) - 1 + len(self._running) >= limit:
            return f"the limit of trials, {limit}, is reached"
        if self._waiting is None:
            self._waiting = self._strategy.ask()
        if self._waiting is None:
            self._has_nothing = self._busy > 0
            return "" if self._has_nothing else "the space holds nothing new"
        if isinstance(self._waiting, Probe):
            return self._start_looking(self._waiting)
        trial = self._fitting(self._waiting)
        if trial is None:
            return SPENT if len(self._records) > 1 or self._running else NO_ROOM
        self._waiting = None
        self._running[self._calls.run(trial, self._screen())] = trial
        return ""

    def _start_looking(self, probe: Probe) -> str:
        """Look at a change, if there is time; returns why not, if not."""
        longest_s = max((entry.seconds for entry in self._looked[-8:]), default=PROBE_S)
        if self._config.budget_s is not None and self._time_for_trials() < longest_s:
            return SPENT
        self._waiting = None
        self._looking[self._calls.look(probe)] = probe, time.monotonic()
        if len(self._looking) + len(self._looked) == 1:
            self._tell("looking at single changes, for the sensitivity table")
        return ""

    def _time_for_trials(self) -> float:
        """Seconds until the front has to be confirmed."""
        assert self._config.budget_s is not None, "only asked where there is a budget"
        return self._config.budget_s - self._confirm_s() - REPORT_S - self._clock.elapsed_s

    def _fitting(self, trial: Trial) -> Trial | None:
        """The trial, shortened if need be to end in time for the front to be confirmed."""
        if self._config.budget_s is None:
            return trial
        available_s = self._time_for_trials()
        safely = self._times.shortened(trial, available_s)
        if safely is None and self._is_extra_time and not self._busy and not self._new_on_front():
            return self._times.shortened(trial, available_s, hopefully=True)
        return safely

    def _is_late(self) -> bool:
        """True once what runs would take the time of confirming the front."""
        return self._config.budget_s is not None and self._time_for_trials() < 0

    def _screen(self) -> Screen:
        final = confirmed(self._records, self._confirmations)
        baseline = next(record for record in final if record.number == 0)
        allowed = feasible(final, self._config.constraints, baseline.values)
        return Screen(
            objectives=self._config.objectives,
            constraints=self._config.constraints,
            metric=self._config.metric,
            maximize=self._config.direction == "maximize",
            baseline=self._baseline.values,
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
        for future in done & self._running.keys():
            if _device_lost(future) is None:
                self._take_in(self._finished(future, self._running.pop(future)))
        if lost:
            self._end_without_device(lost[0])
        if not done:
            self._tell("")

    def _end_without_device(self, error: DeviceUnavailable) -> NoReturn:
        """End a search that has nothing to measure on.

        Raises:
            DeviceUnavailable: Always; says how to go on.
        """
        self._drop("no device")
        self._end("failed", f"{type(error).__name__}: {one_line(error)}")
        raise DeviceUnavailable(
            f"{error}. Nothing that was measured is lost; go on once there is a device: autocompress search --resume "
            f"{shlex.quote(str(self._directory.path))}"
        ) from error

    def _note(self, future: Future[Sensitivity], probe: Probe, started: float) -> None:
        """Write an entry of the table down, then learn from it."""
        seconds = time.monotonic() - started
        try:
            entry = future.result()
        except BrokenExecutor as error:
            entry = Sensitivity(probe, reason=self._told(error), seconds=seconds)
        except Exception as error:  # nothing is known of the change, so that a resume looks again
            self._tell(f"a change was not looked at: {self._told(error)}")
            return
        entry = replace(entry, ended_s=self._clock.elapsed_s)
        self._directory.append(entry)
        self._looked.append(entry)
        self._strategy.note(entry)
        count = len(self._looked)
        self._tell(f"{count} single changes looked at" if count % LOOKS_BETWEEN_EVENTS == 0 else "")

    def _finished(self, future: Future[Record], trial: Trial) -> Record:
        """The record of a trial that ended, however it ended."""
        try:
            return future.result()
        except Exception as error:
            return Record(trial, "failed", reason=self._told(error))

    def _take_in(self, record: Record) -> None:
        """Write a record down first, then learn from it."""
        record = replace(record, ended_s=self._clock.elapsed_s)
        self._directory.append(record)
        self._records.append(record)
        self._strategy.tell(record)
        self._directory.forget_weights(self._needed_weights())
        self._times.learn(record)
        if record.status == "complete":
            self._points = self._directory.write_front(self._records, self._confirmations, self._device_scores)
        self._tell(_event(record, self._config))
        self._stop_if_hopeless()

    def _needed_weights(self) -> frozenset[str]:
        """Digests of the plans whose trained weights running, waiting or later trials may start from."""
        needed = set(self._strategy.parents())
        waiting = [self._waiting] if isinstance(self._waiting, Trial) else []
        for trial in (*self._running.values(), *waiting):
            plan: Plan | None = trial.plan
            while plan is not None:
                needed.add(plan.digest)
                plan = plan.start
        return frozenset(needed)

    def _stop_if_hopeless(self) -> None:
        trials = [record for record in self._records if record.number > 0]
        if len(trials) < SAME_ERRORS or any(record.status != "failed" for record in trials):
            return
        last = [_kind_of_error(record) for record in trials[-SAME_ERRORS:]]
        if len(set(last)) == 1:
            self._drop("hopeless")
            self._end("failed", trials[-1].reason)
            raise SearchFailed(
                f"the first {len(trials)} trials all failed; the last because: {trials[-1].reason} "
                f"(all reasons are in {self._directory.path / 'records.jsonl'})"
            )

    def _drop(self, why: str) -> None:
        """Kill what runs; it has no record, and a later process may propose it again."""
        if self._busy:
            names = ", ".join(str(trial.number) for trial in self._running.values()) or "none"
            self._directory.log(f"dropped running trials {names}: {why}")
            self._calls.kill()
            for trial in self._running.values():
                self._strategy.drop(trial.number)
            self._running.clear()
            self._looking.clear()

    # -- confirming ----------------------------------------------------------------------------------------------

    def _confirm_s(self) -> float:
        """Seconds to keep for measuring the front together and scoring it on the test split."""
        new = 1 + self._new_on_front()
        if self._is_extra_time:  # the scoring workers are warm, and who joins by belief has
            return 1.0 + new * self._confirm_one_s() + self._device_s()
        return 2.0 + (new + JOINING * len(self._points[1])) * self._confirm_one_s() + self._device_s()

    def _new_on_front(self) -> int:
        """Models of the front with no confirmation yet."""
        known = {confirmation.number for confirmation in self._confirmations}
        return sum(point.number not in known for point in self._points[1])

    def _confirm_one_s(self) -> float:
        """Seconds of scoring a model, as the trials took on validation data, and of measuring it."""
        score_s = max((record.seconds.get("score", 0.0) for record in self._records[-8:]), default=0.0)
        return 0.4 + score_s / self._config.workers

    def _left_s(self) -> float:
        budget_s = self._config.budget_s
        return PATIENCE_S if budget_s is None else budget_s - REPORT_S - self._clock.elapsed_s

    def _left_to_confirm_s(self) -> float:
        """Seconds that measuring and scoring the front may take, so that scoring on the device has its own."""
        return self._left_s() - self._device_s()

    def _confirm(self) -> None:
        """Measure the front again together and score it on test data, until every point on it has been."""
        self._phase = "confirming"
        believed = self._strategy.believed()
        self._renew(believed)
        for _ in range(3):
            missing = self._unconfirmed(believed)
            if not missing or self._interrupts.cancel:
                return
            self._tell(f"measuring the front together and scoring it on test data (models: {len(missing)})")
            try:
                self._confirm_some(missing, believed)
            except DeviceUnavailable as error:
                self._end_without_device(error)
            except Exception as error:
                self._tell(f"the front stays as the trials measured it: {self._told(error)}")
                return

    def _renew(self, believed: Mapping[int, float]) -> None:
        """Bring what earlier processes believed of confirmed models up to date, so that all goes by one belief."""
        latest = {confirmation.number: confirmation for confirmation in self._confirmations}
        renewed = [
            replace(confirmation, believed=now, seconds=0.0)
            for number, confirmation in latest.items()
            if confirmation.believed is not None and (now := believed.get(number)) not in (None, confirmation.believed)
        ]
        if not renewed:
            return
        for confirmation in renewed:
            self._directory.append(confirmation)
        self._confirmations += renewed
        self._points = self._directory.write_front(self._records, self._confirmations, self._device_scores)

    def _unconfirmed(self, believed: Mapping[int, float]) -> tuple[Record, ...]:
        """The models of the front with no confirmation yet, and the baseline.

        Of those that are on it by belief alone no more than there is time for.
        """
        config, known = self._config, {confirmation.number for confirmation in self._confirmations}
        final = confirmed(self._records, self._confirmations)
        front = likely_front(final, config.objectives, config.constraints, config.the_metric, believed=believed)
        by_scores = {0, *(point.number for point in self._points[1])} - known
        by_belief = [one.record.number for one in front if one.record.number not in by_scores | known]
        room = math.floor(self._left_to_confirm_s() / self._confirm_one_s()) - len(by_scores)
        wanted = {*by_scores, *by_belief[: max(0, room)]}
        return tuple(sorted((record for record in self._records if record.number in wanted), key=_number))

    def _told(self, error: Exception) -> str:
        """An error in a line; where it is none that was foreseen, all of it goes to the log.

        Raises:
            OSError: If the disk is full, as nothing that follows will fare better.
        """
        if is_disk_full(error):
            raise error
        if isinstance(error, AutocompressError):
            return f"{type(error).__name__}: {one_line(error)}"
        if isinstance(error, BrokenExecutor):
            return f"the worker process died (out of memory?): {one_line(error)}"
        self._directory.log("".join(traceback.format_exception(error)))
        return f"{UNFORESEEN}{type(error).__name__}: {one_line(error)}"

    def _confirm_some(self, records: tuple[Record, ...], believed: Mapping[int, float]) -> None:
        """Score and measure some models and write it down; those that can't be scored are left out.

        Raises:
            MeasurementError: If it takes longer than there is time.
            DeviceUnavailable: If there is nothing to measure on.
            AutocompressError: If the models can't be measured.
            BrokenExecutor: If a worker dies.
        """
        started_s = self._clock.elapsed_s
        futures = {record.number: self._calls.test_score(record) for record in records}
        self._await(list(futures.values()))
        scores: dict[int, SplitScore] = {}
        for number, future in futures.items():
            try:
                scores[number] = future.result()
            except Exception as error:
                self._tell(f"model {number} is not scored on test data: {self._told(error)}")
        records = tuple(record for record in records if record.number in scores)
        if not records:
            return
        scored_s = self._clock.elapsed_s
        each_s = max(0.1, min(MOST_CPU_S, (self._left_to_confirm_s() - 3.0) / (len(records) + 1)))
        measured = self._calls.remeasure(records, self._baseline.values, each_s)
        self._await([measured])
        workers = min(self._config.workers, len(records))
        seconds = (workers * (scored_s - started_s) + self._clock.elapsed_s - scored_s) / len(records)
        for again in measured.result():
            score = scores[again.number]
            confirmation = Confirmation(
                again.number,
                score.values,
                again.measurements,
                again.values,
                test_fold_scores=score.fold_scores,
                seconds=seconds,
                believed=believed.get(again.number),
            )
            self._directory.append(confirmation)
            self._confirmations.append(confirmation)
        self._points = self._directory.write_front(self._records, self._confirmations, self._device_scores)

    def _await(self, futures: Sequence[Future[Any]], *, until_s: float = math.inf) -> None:
        """Wait for some calls, past the budget by a grace at most.

        Args:
            futures: What is waited for.
            until_s: Time of the search at which they are given up in any case.

        Raises:
            MeasurementError: If they take longer, or somebody cancels.
        """
        pending = set(futures)
        while pending:
            _, pending = wait(pending, timeout=TICK_S)
            self._tell("")
            late = self._config.budget_s is not None and self._left_s() < -GRACE_S
            late = late or self._clock.elapsed_s > until_s
            if pending and (late or self._interrupts.cancel):
                self._calls.kill()
                raise MeasurementError("cancelled" if self._interrupts.cancel else "its time is spent")

    # -- scoring on the device -----------------------------------------------------------------------------------

    def _unscored(self) -> tuple[Record, ...]:
        """The baseline and the models of the front, as far as they have no score on the device and are to have one."""
        if not self._config.score_on_device:
            return ()
        known = {one.number for one in self._device_scores}
        wanted = [number for number in (0, *(point.number for point in self._points[1])) if number not in known]
        by_number = {record.number: record for record in self._records}
        return tuple(by_number[number] for number in dict.fromkeys(wanted))

    def _device_s(self) -> float:
        """Seconds to keep for scoring the front on the device."""
        if self._config.budget_s is None or not self._config.score_on_device:
            return 0.0
        turns = math.ceil((1 + len(self._unscored())) / self._machines)
        return min(turns * self._device_turn_s(), DEVICE_SHARE * self._config.budget_s)

    @property
    def _machines(self) -> int:
        """Models that are scored on the device at one time."""
        return max(1, min(self._config.workers, len(self._config.profile.addresses)))

    def _device_turn_s(self) -> float:
        return max(self._device_seconds[-8:], default=DEVICE_S)

    def _score_on_device(self, records: tuple[Record, ...], share: float = 1.0) -> None:
        """Score models by what the device computes and write it down, as far as there is time; the rest is told.

        Args:
            records: Complete ones, the most wanted first.
            share: Of the budget, after which no more is waited for.
        """
        budget_s = self._config.budget_s
        until_s = math.inf if budget_s is None else self._clock.elapsed_s + share * budget_s
        if records:
            self._tell(f"scoring on the device (models: {len(records)})")
        for start in range(0, len(records), self._machines):
            if budget_s is not None and self._left_s() < self._device_turn_s():
                self._tell(f"no time left to score on the device (models: {len(records) - start})")
                return
            began_s = self._clock.elapsed_s
            try:
                self._score_some_on_device(records[start : start + self._machines], until_s)
            except Exception as error:
                self._tell(f"scoring on the device ended: {self._told(error)}")
                return
            finally:
                self._device_seconds.append(self._clock.elapsed_s - began_s)

    def _score_some_on_device(self, records: tuple[Record, ...], until_s: float) -> None:
        """Score models at one time.

        Raises:
            DeviceUnavailable: If the device is missing.
            MeasurementError: If it takes longer than there is time.
            BrokenExecutor: If a worker dies.
            TaskFailed: If the user's metric raises.
        """
        futures = [self._calls.device_score(record) for record in records]
        self._await(futures, until_s=until_s)
        scores = [future.result() for future in futures if future.exception() is None]
        for score in scores:
            self._directory.append(score)
            if score.reason:
                self._tell(f"model {score.number} can't be scored on the device: {score.reason}")
        self._device_scores += scores
        self._points = self._directory.write_front(self._records, self._confirmations, self._device_scores)
        for future in futures:
            future.result()

    # -- telling -------------------------------------------------------------------------------------------------

    def _end(self, status: RunStatus, reason: str) -> None:
        self._phase = "stopped" if status == "stopped" else "failed" if status == "failed" else "complete"
        self._directory.beat(status, self._clock.elapsed_s, reason)
        self._tell(reason, status=status)

    def _tell(self, event: str, *, status: RunStatus = "running") -> None:
        """Log what happened, give a sign of life, and tell the observer."""
        if event:
            self._directory.log(event)
        if status == "running":
            self._directory.beat("running", self._clock.elapsed_s)
        if self._observer is not None:
            self._observer(self._snapshot(event))

    def _snapshot(self, event: str) -> Snapshot:
        counts = dict.fromkeys(("complete", "screened", "failed"), 0)
        for record in self._records:
            if record.number > 0:
                counts[record.status] += 1
        return Snapshot(
            phase=self._phase,
            event=event,
            elapsed_s=self._clock.elapsed_s,
            budget_s=self._config.budget_s,
            trial_limit=self._config.trials,
            complete=counts["complete"],
            screened=counts["screened"],
            failed=counts["failed"],
            running=self._busy,
            looked=len(self._looked),
            baseline=self._points[0],
            front=self._points[1],
            metric=self._config.metric,
            is_percentage=self._config.is_percentage,
            direction=self._config.direction,
        )


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


def _number(record: Record) -> int:
    return record.number


def _kind_of_error(record: Record) -> str:
    return record.reason.removeprefix(UNFORESEEN).partition(":")[0]
