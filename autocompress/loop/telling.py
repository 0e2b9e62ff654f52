"""How a search is told: its log, its sign of life, and whoever watches."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor

from autocompress.errors import AutocompressError, one_line
from autocompress.loop.findings import Findings
from autocompress.loop.times import Clock
from autocompress.machine_events import MachineEvents
from autocompress.run_directory import RunStatus, is_disk_full
from autocompress.snapshot import Observer, Phase, Snapshot

BEAT_S = 0.4
"""Seconds between two signs of life at least: each is a file that is written, and many trials may end at once."""

UNFORESEEN = "a bug or an unforeseen error, see log.txt: "


class Telling:
    """Tells how a search stands.

    Args:
        findings: What there is to tell.
        clock: Time spent.
        observer: Told what happens.
        busy: Counts the workers that have something to do.
    """

    def __init__(self, findings: Findings, clock: Clock, observer: Observer | None, *, busy: Callable[[], int]) -> None:
        self.phase: Phase = "searching"
        self._findings, self._clock, self._observer, self._busy = findings, clock, observer, busy
        self._machines = MachineEvents(findings.directory)
        self._beaten_s = -math.inf

    def tell(self, event: str, *, status: RunStatus = "running") -> None:
        """Log what happened, give a sign of life, and tell the observer; an empty event is a sign of life alone.

        The observer is told too what the workers say of machines.
        """
        directory = self._findings.directory
        if event:
            directory.log(event)
        if status == "running" and self._clock.elapsed_s - self._beaten_s >= BEAT_S:
            self._beaten_s = self._clock.elapsed_s
            directory.beat("running", self._beaten_s)
        if self._observer is not None:
            for happened in (*self._machines.new(), event):
                self._observer(self._snapshot(happened))

    def end(self, status: RunStatus, reason: str) -> None:
        """Tell how the search ended, and why."""
        self.phase = "stopped" if status == "stopped" else "failed" if status == "failed" else "complete"
        self._findings.directory.beat(status, self._clock.elapsed_s, reason)
        self.tell(reason, status=status)

    def explained(self, error: Exception) -> str:
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
        self._findings.directory.log("".join(traceback.format_exception(error)))
        return f"{UNFORESEEN}{type(error).__name__}: {one_line(error)}"

    def _snapshot(self, event: str) -> Snapshot:
        config, found = self._findings.config, self._findings
        return Snapshot(
            phase=self.phase,
            event=event,
            elapsed_s=self._clock.elapsed_s,
            budget_s=config.budget_s,
            trial_limit=config.trials,
            complete=found.statuses["complete"],
            screened=found.statuses["screened"],
            failed=found.statuses["failed"],
            running=self._busy(),
            looked=len(found.sensitivities),
            baseline=found.baseline_point,
            front=found.front,
            metric=config.metric,
            is_percentage=config.is_percentage,
            direction=config.direction,
        )
