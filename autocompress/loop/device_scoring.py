"""Scoring models by what the device computes: the baseline before a search, the front after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import accumulate

from autocompress.duration import format_duration
from autocompress.errors import MeasurementError
from autocompress.loop.course import Course
from autocompress.objective import LATENCY
from autocompress.record import DeviceScore, Record, TooSlow

SHARE = 0.25
"""Share of the budget that is kept at most for scoring on the device; the baseline alone may take as much before."""

SCORE_S = 5.0
"""Seconds that scoring a model on the device may take, before one has been scored."""

Outcome = DeviceScore | TooSlow


class DeviceScoring:
    """Scores models on the device where the search is asked to, one at a time on each of its machines.

    Args:
        course: Of the search.
    """

    def __init__(self, course: Course) -> None:
        self._course, self._findings, self._config = course, course.findings, course.findings.config
        self._seconds = [one.seconds for one in course.findings.device_scores]
        """What models took that were scored."""

        self._slowness = 0.0
        """Seconds for each millisecond of latency that those took, or would have, for which there was no time."""

    def needed_s(self) -> float:
        """Seconds to keep for the front and a model that may join it: for as many as fit into the share for it."""
        if self._course.budget.total_s is None or not self._config.score_on_device:
            return 0.0
        each_s = sorted(self._expected_s(record) for record in (self._findings.baseline, *self._missing()))
        turns = [max(each_s[start : start + self._machines]) for start in range(0, len(each_s), self._machines)]
        return max(total for total in accumulate(turns, initial=0.0) if total <= self._course.budget.share_s(SHARE))

    def score_baseline(self) -> None:
        """Score the baseline; it shows how long a model takes."""
        records = tuple(record for record in self._missing() if record is self._findings.baseline)
        self._score(records, self._course.budget.clock.elapsed_s + self._course.budget.share_s(SHARE))

    def score_front(self) -> None:
        """Score the models of the front that have no score yet, as far as there is time; the rest is told."""
        self._score(self._missing(), math.inf)

    @property
    def _machines(self) -> int:
        """Models that are scored at one time."""
        return max(1, min(self._config.workers, len(self._config.profile.addresses)))

    def _expected_s(self, record: Record) -> float:
        """Seconds of a model: those of the slowest lately, or more by its latency where others were too slow."""
        lately_s = max(self._seconds[-8:], default=0.0 if self._slowness else SCORE_S)
        return max(lately_s, self._slowness * record.values[LATENCY])

    def _note_slow(self, record: Record, seconds: float) -> None:
        self._slowness = max(self._slowness, seconds / record.values[LATENCY])

    def _missing(self) -> tuple[Record, ...]:
        """The baseline and the models of the front, as far as they have no score on the device and are to have one."""
        if not self._config.score_on_device:
            return ()
        known = {one.number for one in self._findings.device_scores}
        numbers = dict.fromkeys((0, *(point.number for point in self._findings.front)))
        return tuple(self._findings.record(number) for number in numbers if number not in known)

    def _score(self, records: Sequence[Record], until_s: float) -> None:
        """Score models, the first first.

        Args:
            records: Complete ones.
            until_s: Time of the search after which none is waited for.
        """
        if not records:
            return
        self._course.telling.tell(f"scoring on the device (models: {len(records)})")
        waiting, running, ended = list(records), dict[Future[Outcome], tuple[Record, float]](), ""
        while True:
            ended = ended or self._start(waiting, running, until_s)
            if not running:
                break
            try:
                done = self._course.waiting.for_some(running, until_s=until_s)
            except MeasurementError as error:  # all that ran is dropped
                ended = self._course.telling.explained(error)
                for record, began_s in running.values():
                    self._note_slow(record, self._course.budget.clock.elapsed_s - began_s)
                break
            for future in done:
                ended = self._take_in(future, *running.pop(future)) or ended
        if ended:
            self._course.telling.tell(
                f"scoring on the device ended: {ended} (models without a score: {len(self._missing())})"
            )

    def _start(
        self, waiting: list[Record], running: dict[Future[Outcome], tuple[Record, float]], until_s: float
    ) -> str:
        """Give every machine the first model that there is time for; returns why not, if there is none."""
        while waiting and len(running) < self._machines:
            now_s = self._course.budget.clock.elapsed_s
            limit_s = min(self._course.budget.left_s, until_s - now_s)
            record = next((record for record in waiting if self._expected_s(record) <= limit_s), None)
            if record is None:
                return "no time is left"
            waiting.remove(record)
            running[self._course.calls.device_score(record, limit_s)] = record, now_s
        return ""

    def _take_in(self, future: Future[Outcome], record: Record, began_s: float) -> str:
        """Write down what came of scoring a model; returns why no more is to be tried, if so."""
        try:
            outcome = future.result()
        except Exception as error:
            self._note_slow(record, self._course.budget.clock.elapsed_s - began_s)
            return self._course.telling.explained(error)
        if isinstance(outcome, TooSlow):
            self._note_slow(record, outcome.seconds)
            self._course.telling.tell(
                f"model {outcome.number} is not scored on the device: that would take about "
                f"{format_duration(outcome.seconds)}, more than there is time for"
            )
            return ""
        self._seconds.append(outcome.seconds)
        self._findings.add(outcome)
        self._findings.renew_front()
        if outcome.reason:
            self._course.telling.tell(f"model {outcome.number} can't be scored on the device: {outcome.reason}")
        return ""
