"""The Optuna study of a search, which optuna-dashboard shows."""

from __future__ import annotations

import json
import os
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from autocompress.objective import Objective
from autocompress.plan import Scalar
from autocompress.record import Record

STUDY = "autocompress"
"""What the study of a search is called in its file."""

STATES = {"complete": TrialState.COMPLETE, "screened": TrialState.PRUNED, "failed": TrialState.FAIL}
"""What Optuna calls the states of a record at full fidelity."""


def state_of(record: Record) -> TrialState:
    """What Optuna calls the state of a record; a model that had less than full training is pruned, not complete."""
    is_part = record.status == "complete" and record.trial.fidelity < 1
    return TrialState.PRUNED if is_part else STATES[record.status]


@dataclass(frozen=True)
class Shown:
    """A trial of a search as its study shows it.

    Args:
        number: Of the search; the baseline has 0.
        source: Who proposed it.
        params: The answers to its knobs.
        distributions: The knobs behind them.
        attributes: What a sampler keeps with it.
    """

    number: int
    source: str
    params: Mapping[str, Scalar]
    distributions: Mapping[str, BaseDistribution]
    attributes: Mapping[str, Scalar] = field(default_factory=dict)


class StudyView:
    """The search as optuna-dashboard shows it: an Optuna study in a file, one trial for each of the search's.

    It is written anew by each process, and nothing is read back from it. Optuna's own storage would read each entry
    again and keep all trials once more, which with many workers takes longer than all else that a proposal does; so
    the trials are written here, in the format of its journal.

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
            new_study(objectives, JournalStorage(JournalFileBackend(str(journal))))
        self._file = os.open(journal, os.O_WRONLY | os.O_APPEND)
        weakref.finalize(self, os.close, self._file)
        self._ids: dict[int, int] = {}
        """By the search's numbers: those in the study."""

        self._knobs: dict[str, tuple[BaseDistribution, str]] = {}
        """By name: a knob as it was written last, and its text."""

    def begin(self, trial: Shown) -> None:
        """Show a trial that runs."""
        self._write(self._created(trial, TrialState.RUNNING, None, {}))

    def end(
        self, trial: Shown, state: TrialState, values: Sequence[float] | None, violations: Mapping[str, float]
    ) -> None:
        """Show that a trial has ended.

        Args:
            trial: If it was begun here, what is shown of it stays as it was then.
            state: How it ended.
            values: Of the objectives, if it is complete.
            violations: By constraint: above zero by how much it is broken.
        """
        if trial.number not in self._ids:
            self._write(self._created(trial, state, values, violations))
            return
        identity = self._ids[trial.number]
        broken = [_entry(_Entry.ATTRIBUTE, trial_id=identity, system_attr=one) for one in _constraints(violations)]
        self._write(*broken, _ended(identity, state, values))

    def drop(self, number: int) -> None:
        """Show that a trial that was begun here came to nothing."""
        self._write(_ended(self._ids[number], TrialState.FAIL, None))

    def _created(
        self, trial: Shown, state: TrialState, values: Sequence[float] | None, violations: Mapping[str, float]
    ) -> dict[str, Any]:
        self._ids[trial.number] = len(self._ids)
        attributes = dict(trial.attributes)
        for constraint in _constraints(violations):
            attributes |= constraint
        return _entry(
            _Entry.TRIAL,
            study_id=0,
            state=state,
            **_values(values),
            datetime_start=_now(),
            **({"datetime_complete": _now()} if state.is_finished() else {}),
            distributions={name: self._text(name, knob) for name, knob in trial.distributions.items()},
            params={name: trial.distributions[name].to_internal_repr(value) for name, value in trial.params.items()},
            user_attrs={"trial": trial.number, "source": trial.source},
            system_attrs=attributes,
            intermediate_values={},
        )

    def _text(self, name: str, knob: BaseDistribution) -> str:
        known = self._knobs.get(name)
        if known is None or known[0] is not knob:
            known = self._knobs[name] = knob, distribution_to_json(knob)
        return known[1]

    def _write(self, *entries: Mapping[str, Any]) -> None:
        lines = "".join(f"{json.dumps(entry, separators=(',', ':'))}\n" for entry in entries)
        os.write(self._file, lines.encode())  # at once: readers see whole entries


class _Entry(IntEnum):
    """Entries of a journal, as Optuna numbers them."""

    TRIAL = 4
    STATE = 6
    ATTRIBUTE = 9


def _entry(kind: _Entry, **fields: Any) -> dict[str, Any]:
    return {"op_code": kind, "worker_id": STUDY, **fields}


def _ended(identity: int, state: TrialState, values: Sequence[float] | None) -> dict[str, Any]:
    return _entry(_Entry.STATE, trial_id=identity, state=state, values=values, datetime_complete=_now())


def _values(values: Sequence[float] | None) -> dict[str, Any]:
    """Values as a new trial has them; those of one objective stand apart."""
    is_single = values is not None and len(values) == 1
    return {"value": values[0] if values and is_single else None, "values": None if is_single else values}


def _constraints(violations: Mapping[str, float]) -> list[dict[str, float]]:
    return [{f"constraints:{name}": violation} for name, violation in violations.items()]


def _now() -> str:
    return datetime.now(tz=UTC).isoformat(timespec="microseconds")


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
