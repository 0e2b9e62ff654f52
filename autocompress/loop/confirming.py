"""Confirming a front: its models are measured again, together, and scored on test data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from autocompress.doubt import likely_front
from autocompress.errors import DeviceUnavailable
from autocompress.loop.course import Course
from autocompress.point import confirmed
from autocompress.record import Confirmation, Record, Remeasured, SplitScore

MOST_CPU_S, LONGEST_CPU_S = 1.5, 6.0
"""CPU seconds spent at most on measuring one model of the final front, where other trials may follow and where not."""

JOINING = 0.25
"""Models, as a share of those on the front, that the strategy's beliefs may add to it at the end."""

PATIENCE_S = 120.0
"""Seconds that confirming a front may take where the search has no budget."""

MEASURE_S = 0.4
"""Seconds of measuring one model together with others, by which time for it is kept."""

WARM_S, COLD_S = 1.0, 2.0
"""Seconds that confirming takes besides on a machine, with workers that have scored on test data before or not."""

LATEST = 8
"""Models by which the time of the next to be scored is judged."""

LEAST_CPU_S, ENDING_S = 0.1, 2.0
"""CPU seconds spent at least on measuring a model, and the seconds of a budget that are left when all are measured."""

ATTEMPTS = 3
"""A front may change by being confirmed; its new models are then confirmed too, no more often than this."""


class Confirming:
    """Confirms the front.

    Args:
        course: Of the search.
    """

    def __init__(self, course: Course) -> None:
        self._course, self._findings, self._config = course, course.findings, course.findings.config

    def needed_s(self, *, again: bool) -> float:
        """Seconds to keep for it.

        Args:
            again: Whether the front has been confirmed before: the workers are warm then, and the models that join by
                belief have joined.
        """
        joining = 0.0 if again else JOINING * len(self._findings.front)
        return self._takes_s(1 + self.count_new() + joining, again=again)

    def _takes_s(self, models: float, *, again: bool) -> float:
        """Seconds that it takes for some models, the baseline among them."""
        besides_s = (WARM_S if again else COLD_S) + WARM_S * (len(self._config.profiles) - 1)
        return besides_s + models * self._each_s()

    def count_new(self) -> int:
        """Models of the front that are not confirmed yet."""
        known = {confirmation.number for confirmation in self._findings.confirmations}
        return sum(point.number not in known for point in self._findings.front)

    def run(self, believed: Mapping[int, float], keep_s: Callable[[], float], another_s: float | None) -> None:
        """Measure the front again together and score it on test data, until every point on it has been.

        Args:
            believed: The metric of trials as the strategy believes in it, by number.
            keep_s: Seconds of the budget to leave.
            another_s: Seconds of the quickest trial that may follow: where not even that has time, what is left goes
                to measuring for longer. None if nothing is to follow in any case.

        Raises:
            DeviceUnavailable: If there is nothing to measure on.
        """
        self._renew(believed)
        for _ in range(ATTEMPTS):
            missing = self._missing(believed, self._left_s(keep_s()))
            if not missing:
                return
            self._course.telling.tell(
                f"measuring the front together and scoring it on test data (models: {len(missing)})"
            )
            try:
                self._confirm(missing, believed, keep_s(), another_s)
            except DeviceUnavailable:
                raise
            except Exception as error:
                self._course.telling.tell(
                    f"the front stays as the trials measured it: {self._course.telling.explained(error)}"
                )
                return

    def _left_s(self, keep_s: float) -> float:
        """Seconds that it may take."""
        return PATIENCE_S if self._course.budget.total_s is None else self._course.budget.left_s - keep_s

    def _each_s(self) -> float:
        """Seconds of scoring a model, as the latest trials took on validation data, and of measuring it."""
        complete = (record for record in reversed(self._findings.records) if record.status == "complete")
        score_s = max(record.seconds.get("score", 0.0) for record in islice(complete, LATEST))
        return MEASURE_S + score_s / self._config.workers

    def _renew(self, believed: Mapping[int, float]) -> None:
        """Bring what earlier processes believed of confirmed models up to date, so that all goes by one belief."""
        latest = {confirmation.number: confirmation for confirmation in self._findings.confirmations}
        renewed = [
            replace(confirmation, believed=now, seconds=0.0)
            for number, confirmation in latest.items()
            if confirmation.believed is not None and (now := believed.get(number)) not in (None, confirmation.believed)
        ]
        for confirmation in renewed:
            self._findings.add(confirmation)
        if renewed:
            self._findings.renew_front()

    def _missing(self, believed: Mapping[int, float], left_s: float) -> tuple[Record, ...]:
        """The models of the front with no confirmation yet, and the baseline.

        Of those that are on it by belief alone no more than there is time for.
        """
        found, config = self._findings, self._config
        known = {confirmation.number for confirmation in found.confirmations}
        final = confirmed(found.records, found.confirmations)
        front = likely_front(final, config.objectives, config.constraints, config.the_metric, believed=believed)
        by_scores = {0, *(point.number for point in found.front)} - known
        by_belief = [one.record.number for one in front if one.record.number not in by_scores | known]
        room = math.floor(left_s / self._each_s()) - len(by_scores)
        wanted = {*by_scores, *by_belief[: max(0, room)]}
        return tuple(found.record(number) for number in sorted(wanted))

    def _confirm(
        self, records: tuple[Record, ...], believed: Mapping[int, float], keep_s: float, another_s: float | None
    ) -> None:
        """Score and measure some models and write it down; those that can't be scored are left out.

        Raises:
            MeasurementError: If it takes longer than there is time.
            DeviceUnavailable: If there is nothing to measure on.
            AutocompressError: If the models can't be measured.
            BrokenExecutor: If a worker dies.
        """
        started_s = self._course.budget.clock.elapsed_s
        scores = self._test_scores(records)
        records = tuple(record for record in records if record.number in scores)
        if not records:
            return
        scored_s = self._course.budget.clock.elapsed_s
        each_s = self._measure_s(len(records), self._left_s(keep_s) - ENDING_S, another_s)
        measured = self._course.calls.remeasure(records, self._findings.baseline.values, each_s)
        self._course.waiting.for_all([measured])
        workers = min(self._config.workers, len(records))
        seconds = (workers * (scored_s - started_s) + self._course.budget.clock.elapsed_s - scored_s) / len(records)
        self._tell_kept(measured.result())
        for again in measured.result():
            score = scores[again.number]
            self._findings.add(
                Confirmation(
                    again.number,
                    score.values,
                    again.measurements,
                    again.values,
                    test_fold_scores=score.fold_scores,
                    seconds=seconds,
                    believed=believed.get(again.number),
                )
            )
        self._findings.renew_front()

    def _tell_kept(self, measured: Sequence[Remeasured]) -> None:
        """Say so where machines were disturbed, so that not all models have been measured again together."""
        count = sum(1 for again in measured if again.kept)
        if count:
            machines = ", ".join(sorted({name for again in measured for name in again.kept}))
            self._course.telling.tell(
                f"disturbed while the front was measured: {machines}; what the trials measured there stays (models: "
                f"{count})"
            )

    def _measure_s(self, models: int, left_s: float, another_s: float | None) -> float:
        """CPU seconds for measuring each of some models, in the time that is left."""
        usual_s, longest_s = (min(most_s, left_s / (models + 1)) for most_s in (MOST_CPU_S, LONGEST_CPU_S))
        after_s = left_s - (models + 1) * usual_s
        is_last = another_s is not None and after_s < another_s + self._takes_s(1, again=True)
        return max(LEAST_CPU_S, longest_s if is_last else usual_s)

    def _test_scores(self, records: tuple[Record, ...]) -> dict[int, SplitScore]:
        """Scores on test data by number; what can't be scored is told.

        Raises:
            MeasurementError: If it takes longer than there is time.
        """
        futures = {record.number: self._course.calls.test_score(record) for record in records}
        self._course.waiting.for_all(list(futures.values()))
        scores: dict[int, SplitScore] = {}
        for number, future in futures.items():
            try:
                scores[number] = future.result()
            except Exception as error:
                told = self._course.telling.explained(error)
                self._course.telling.tell(f"model {number} is not scored on test data: {told}")
        return scores
