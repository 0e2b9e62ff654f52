"""A search that ends at once in each of its phases goes on as one that was never stopped, from the same results."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import autocompress
from autocompress.executors.inline import InlineExecutor
from autocompress.probe import Probe, Sensitivity
from autocompress.record import Record, Remeasured, SplitScore, Trial
from autocompress.run_directory import RunDirectory
from autocompress.strategies._guided import training
from autocompress.worker import Assignment

TRIALS = 28
"""Enough for the table, blocks of the solver, rungs and the last quarter."""

MOMENTS = (("look", 5), ("run", 6), ("run", 13), ("run", 23), ("test_score", 2), ("measure_together", 1))
"""Calls at which the search ends: in the table, at first trainings, within a block, in the last quarter, at the end."""

submit = InlineExecutor.submit


class Killed(BaseException):
    """What nothing in the search handles."""


class Killing:
    """Carries the calls of a search out, but for a few that end it."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._left = list(MOMENTS)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """In the place of `InlineExecutor.submit`."""
        name = function.__name__
        self._counts[name] = self._counts.get(name, 0) + 1
        if (name, self._counts[name]) in self._left:
            self._left.remove((name, self._counts[name]))
            raise Killed
        return submit(InlineExecutor(1, 1), function, *args)

    @property
    def is_done(self) -> bool:
        """True once the search was ended at every moment."""
        return not self._left


class Recorded:
    """Answers the calls of a search with what another one found, in place of doing anything anew.

    Args:
        run: The directory of the other one.
    """

    def __init__(self, run: Path) -> None:
        directory = RunDirectory.open(run)
        self._run, self._epoch_s = run, directory.config.epoch_s
        self._records = {record.plan.digest: record for record in directory.records()}
        self._looks = {entry.plan.digest: entry for entry in directory.sensitivities()}
        self._confirmations = {one.number: one for one in directory.confirmations()}

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """In the place of `InlineExecutor.submit`."""
        return submit(InlineExecutor(1, 1), getattr(self, function.__name__, function), *args)

    def run_baseline(self, assignment: Assignment, trial: Trial) -> Record:
        """Its record; its model files are put where the search wants them."""
        shutil.copytree(self._run / "artifacts", Path(assignment.directory) / "artifacts", dirs_exist_ok=True)
        return self._records[trial.plan.digest]

    def survey(self, assignment: Assignment, space: autocompress.SearchSpace) -> Any:
        """The layers, with the time of an epoch that the other search measured."""
        from autocompress import worker

        return worker.survey(assignment, space, self._epoch_s)

    def run(self, assignment: Assignment, trial: Trial, *args: Any) -> Record:
        """The record of a plan that the other one tried."""
        return replace(self._records[trial.plan.digest], trial=trial)

    def look(self, assignment: Assignment, probe: Probe) -> Sensitivity:
        """What the other one saw of a change."""
        return self._looks[probe.plan.digest]

    def test_score(self, assignment: Assignment, record: Record) -> SplitScore:
        """The score of a model of the front."""
        confirmation = self._confirmations[record.number]
        return SplitScore(confirmation.test, confirmation.test_fold_scores)

    def measure_together(self, assignment: Assignment, records: tuple[Record, ...], *args: Any) -> Any:
        """The last measurements of the front."""
        found = [self._confirmations[record.number] for record in records]
        return tuple(Remeasured(one.number, one.measurements, one.values) for one in found)


def test_a_search_stopped_in_every_phase_goes_on_as_if_it_had_not_been(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(training, "WORTHWHILE_S", 0.0)  # epochs of this task are so short that there were no rungs
    words: dict[str, Any] = {"hardware": "fake", "executor": "inline", "seed": 3, "trials": TRIALS}
    killing = Killing()
    monkeypatch.setattr(InlineExecutor, "submit", lambda _, *args: killing.submit(*args))
    with pytest.raises(Killed):
        autocompress.search("task.py", output="stopped", **words)
    while not killing.is_done:
        with pytest.raises(Killed):
            autocompress.resume("stopped", executor="inline")
    assert autocompress.resume("stopped", executor="inline").status == "complete"

    recorded = Recorded(Path("stopped"))
    monkeypatch.setattr(InlineExecutor, "submit", lambda _, *args: recorded.submit(*args))
    autocompress.search("task.py", output="whole", **words)
    stopped, whole = (RunDirectory.open(Path(name)) for name in ("stopped", "whole"))
    assert [record.trial for record in whole.records()] == [record.trial for record in stopped.records()]
    assert [entry.probe for entry in whole.sensitivities()] == [entry.probe for entry in stopped.sensitivities()]
    assert [point.name for point in whole.points()[1]] == [point.name for point in stopped.points()[1]]
    assert len(stopped.records()) == TRIALS + 1
    sources = {record.trial.proposal.source for record in stopped.records()}
    assert {"policy", "solver", "local", "promotion"} <= sources, sources
    confirmed = [one.number for one in stopped.confirmations()]
    assert len(confirmed) == len(set(confirmed)) == len({0, *(point.number for point in stopped.points()[1])})
