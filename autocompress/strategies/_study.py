"""The Optuna study of a search, which optuna-dashboard shows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from autocompress.objective import Objective

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
        with self._path.open("ab", buffering=0) as file:
            file.write(lines.encode())


def new_study(journal: Path, objectives: Sequence[Objective]) -> Study:
    """An empty study in a file, written anew by each process; nothing is read back from it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    lock = journal.with_name(f"{journal.name}.lock")  # of older releases, and of other writers that were killed
    for left_over in (journal, lock):
        left_over.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = optuna.create_study(
            study_name="autocompress",
            storage=JournalStorage(_Journal(journal)),
            directions=[StudyDirection[objective.direction.upper()] for objective in objectives],
        )
        study.set_metric_names([objective.name for objective in objectives])
    return study
