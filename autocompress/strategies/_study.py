"""The Optuna study of a search, which optuna-dashboard shows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from autocompress.objective import Objective

STATES = {"complete": TrialState.COMPLETE, "screened": TrialState.PRUNED, "failed": TrialState.FAIL}
"""What Optuna calls the states of a record."""


def new_study(journal: Path, objectives: Sequence[Objective]) -> Study:
    """An empty study in a file, written anew by each process; nothing is read back from it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    lock = journal.with_name(f"{journal.name}.lock")
    for left_over in (journal, lock):  # Optuna waits for ever for the lock of a process that was killed
        left_over.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = optuna.create_study(
            study_name="autocompress",
            storage=JournalStorage(JournalFileBackend(str(journal))),
            directions=[StudyDirection[objective.direction.upper()] for objective in objectives],
        )
        study.set_metric_names([objective.name for objective in objectives])
    return study
