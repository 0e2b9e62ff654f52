"""The Optuna study of a search, which optuna-dashboard shows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autocompress.objective import Objective
from autocompress.study_trials import update_trial

STUDY = "autocompress"
"""What the study of a search is called in its file."""

STATES = {"complete": TrialState.COMPLETE, "screened": TrialState.PRUNED, "failed": TrialState.FAIL}
"""What Optuna calls the states of a record."""


class _Journal(JournalFileBackend):
    """A journal that one process writes and nobody needs after a crash: it neither locks nor waits for the disk.

    Optuna's own does both for each answer to a knob, which takes longer than all else that a proposal does.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries, all or none as far as readers see."""
        lines = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs)
        with self._path.open("ab") as file:
            file.write(lines.encode())


class StudyView:
    """The search as optuna-dashboard shows it: an Optuna study in a file, one trial for each of the search's.

    It is written anew by each process, and nothing is read back from it.

    Args:
        journal: The file.
        objectives: Of the search.
    """

    def __init__(self, journal: Path, objectives: Sequence[Objective]) -> None:
        lock = journal.with_name(f"{journal.name}.lock")  # of older releases, and of other writers that were killed
        for left_over in (journal, lock):
            left_over.unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._storage = JournalStorage(_Journal(journal))
            new_study(objectives, self._storage)
        self._study = self._storage.get_study_id_from_name(STUDY)
        self._shown: dict[int, int] = {}
        """By the search's numbers: the ids in the storage."""

        self._running: dict[int, FrozenTrial] = {}
        """What is written there of those that have not ended."""

    def show(self, number: int, trial: FrozenTrial) -> None:
        """Show a trial as it is now.

        Args:
            number: Of the search; the baseline has 0.
            trial: With the parameters that it had when it was shown first. Once it is shown as ended, that is all.
        """
        if number not in self._shown:
            self._shown[number] = self._storage.create_new_trial(self._study, trial)
            if trial.state == TrialState.RUNNING:
                self._running[number] = trial
            return
        identity, before = self._shown[number], self._running.pop(number)
        update_trial(self._storage, identity, before, trial)

    def drop(self, number: int) -> None:
        """Show that a trial came to nothing."""
        del self._running[number]
        self._storage.set_trial_state_values(self._shown[number], TrialState.FAIL, None)


def new_study(objectives: Sequence[Objective], storage: BaseStorage | None = None) -> Study:
    """An empty study, by default in memory alone."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=STUDY,
        storage=storage,
        directions=[StudyDirection[objective.direction.upper()] for objective in objectives],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([objective.name for objective in objectives])
    return study
