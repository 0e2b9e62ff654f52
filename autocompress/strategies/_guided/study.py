"""The search as optuna-dashboard shows it: every proposal with its source, in the coordinates of policies."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from autocompress.objective import Objective
from autocompress.record import Record

STATES = {"complete": TrialState.COMPLETE, "screened": TrialState.PRUNED, "failed": TrialState.FAIL}


class StudyView:
    """An Optuna study that follows the search; written anew by each process, nothing is read back from it.

    Args:
        journal: Its file.
        objectives: Of the search.
        distributions: Of the coordinates.
    """

    def __init__(
        self, journal: Path, objectives: Sequence[Objective], distributions: Mapping[str, BaseDistribution]
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._objectives, self._distributions = objectives, dict(distributions)
        self._numbers: dict[int, int] = {}
        lock = journal.with_name(f"{journal.name}.lock")
        for left_over in (journal, lock):  # Optuna waits for ever for the lock of a process that was killed
            left_over.unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study = optuna.create_study(
                study_name="autocompress",
                storage=JournalStorage(JournalFileBackend(str(journal))),
                directions=[StudyDirection[objective.direction.upper()] for objective in objectives],
            )
            self._study.set_metric_names([objective.name for objective in objectives])

    def begin(self, number: int, source: str, policy: Mapping[str, float | str]) -> None:
        """A trial was proposed."""
        self._numbers[number] = len(self._numbers)
        self._study.add_trial(self._frozen(number, source, policy, TrialState.RUNNING, None))

    def end(self, record: Record, policy: Mapping[str, float | str] | None, *, whole: bool) -> None:
        """A trial ended, begun here or in an earlier process.

        Args:
            record: What came of it.
            policy: Its coordinates; None if they are not known.
            whole: False for less training than the search gives in the end: its values are not final, and not told.
        """
        state = STATES[record.status] if whole else TrialState.PRUNED
        values = (
            [record.values[objective.name] for objective in self._objectives] if record.status == "complete" else None
        )
        if record.number in self._numbers:
            number = self._numbers[record.number]
            self._study.tell(number, values if state == TrialState.COMPLETE else None, state)
            return
        self._numbers[record.number] = len(self._numbers)
        told = values if state == TrialState.COMPLETE else None
        self._study.add_trial(self._frozen(record.number, record.trial.proposal.source, policy or {}, state, told))

    def _frozen(
        self,
        number: int,
        source: str,
        policy: Mapping[str, float | str],
        state: TrialState,
        values: list[float] | None,
    ) -> optuna.trial.FrozenTrial:
        return optuna.trial.create_trial(
            state=state,
            values=values,
            params=dict(policy),
            distributions={name: self._distributions[name] for name in policy},
            user_attrs={"trial": number, "source": source},
        )
