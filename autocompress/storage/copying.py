"""A study in a database that follows the one in a run directory."""

from __future__ import annotations

import secrets
import shlex
from contextlib import suppress
from threading import Event, Thread

from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from autocompress.errors import InvalidInput
from autocompress.run_directory import RunDirectory
from autocompress.storage.database import Database
from autocompress.study_trials import update_trial

OWNER = "run"
"""Attribute of a study that names the run directory which it belongs to."""

PERIOD_S, RETRY_S = 1.0, 10.0
"""Seconds between two looks at the run directory, and until a database that failed is tried again."""

LAST_S = 10.0
"""Seconds that the end of a search waits at most for what is not written yet."""


class StudyCopy:
    """Keeps a study in a database as it is in the run directory, in a thread of its own.

    The search writes its study to `study.journal` and waits for nobody. The thread reads that file and writes what is
    new in it. Where the database fails, the search goes on; it is told once, and tried again until the whole study is
    written anew, since what the last write did is not known. As a context it begins and ends.

    Args:
        directory: The run, whose study has been made by this process.
        database: Where to.
        name: Of the study there.
    """

    def __init__(self, directory: RunDirectory, database: Database, name: str) -> None:
        self._directory, self._database, self._name = directory, database, name
        self._is_over = Event()
        self._is_behind = True  # until the last look
        self._is_failing = False
        self._thread = Thread(target=self._run, name="study copy", daemon=True)

    def __enter__(self) -> StudyCopy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(LAST_S)

    @property
    def lacking(self) -> str:
        """What to say of a database that does not hold the whole study, in a line; empty if it does."""
        if not self._is_behind:
            return ""
        again = f"autocompress search --resume {shlex.quote(str(self._directory.path))}"
        return f"storage {self._database} lacks the end of the study; {again} writes all of it"

    def _run(self) -> None:
        while self._is_behind:
            is_last_try = self._is_over.is_set()
            try:
                with self._database.opened() as storage:
                    self._follow(_Copied(self._directory, storage, self._name))
            except Exception as error:
                self._tell_failure(error)
                if is_last_try:
                    return
                self._is_over.wait(RETRY_S)

    def _follow(self, copied: _Copied) -> None:
        """Renew the copy until the search is over, and once more."""
        while self._is_behind:
            is_last = self._is_over.is_set()
            copied.renew()
            if self._is_failing:
                self._log("holds the whole study again")
            self._is_failing, self._is_behind = False, not is_last
            self._is_over.wait(PERIOD_S)

    def _tell_failure(self, error: Exception) -> None:
        if not self._is_failing:
            reason = self._database.reason(error)
            self._log(f"can't be written: {reason}; the search goes on, and the study is written anew later")
        self._is_failing = True

    def _log(self, event: str) -> None:
        with suppress(OSError):  # the search itself finds that the disk is full
            self._directory.log(f"storage {self._database} {event}")


def write_study(directory: RunDirectory, database: Database, name: str) -> None:
    """Write the study of a search that has ended.

    Raises:
        InvalidInput: If the database fails, or the run directory holds no study.
    """
    try:
        with database.opened() as storage:
            _Copied(directory, storage, name).renew()
    except Exception as error:
        raise InvalidInput(f"storage {database}: can't be written: {database.reason(error)}; try again") from None


def own_name(directory: RunDirectory, database: Database, name: str) -> str:
    """The name of a run's study: the one that it has, or a new one if none is given or that is another run's.

    Raises:
        InvalidInput: If the database can't be read.
    """
    try:
        if name and (not database.is_there or _is_own(directory, database, name)):
            return name
    except Exception as error:
        raise InvalidInput(f"storage {database}: can't be read: {database.reason(error)}; try again") from None
    new = f"{directory.path.resolve().name[:100]}-{secrets.token_hex(4)}"
    if name:
        directory.log(f"study {name} in {database} belongs to another run, so that of this one is {new}")
    return new


def _is_own(directory: RunDirectory, database: Database, name: str) -> bool:
    with database.opened() as storage:
        study = _find(storage, name)
        return study is None or _owner(storage, study) in ("", _text(directory))


class _Copied:
    """A study in a database, begun anew.

    Args:
        directory: The run.
        storage: The database.
        name: Of the study.

    Raises:
        InvalidInput: If there is a study of that name that belongs to another run.
    """

    def __init__(self, directory: RunDirectory, storage: RDBStorage, name: str) -> None:
        self._storage = storage
        self._journal = JournalStorage(JournalFileBackend(str(directory.path / "study.journal")))
        (study,) = self._journal.get_all_studies()
        self._source = self._journal.get_study_id_from_name(study.study_name)
        self._target = _created(storage, name, study.directions, _text(directory))
        for key, value in study.system_attrs.items():
            storage.set_study_system_attr(self._target, key, value)
        self._written: list[tuple[int, FrozenTrial]] = []
        """Trials by number: their ids in the database, and what is written there of them."""

    def renew(self) -> None:
        """Write what is new."""
        for trial in self._journal.get_all_trials(self._source, deepcopy=False):
            if trial.number == len(self._written):
                self._written.append((self._storage.create_new_trial(self._target, trial), trial))
                continue
            identity, before = self._written[trial.number]
            if trial is not before:  # a changed trial is another object
                update_trial(self._storage, identity, before, trial)
                self._written[trial.number] = identity, trial


def _created(storage: RDBStorage, name: str, directions: list[StudyDirection], run: str) -> int:
    """A new study in the place of the one that the run has had.

    SQLite gives the highest id again once it is free, and those who watch keep finished trials by that of their study;
    so a study without trials holds the next id until the new one has got another.

    Raises:
        InvalidInput: If there is a study of that name that belongs to another run.
    """
    old, between = _find(storage, name), f"{name}-old"
    if old is not None:
        owner = _owner(storage, old)
        if owner not in ("", run):
            raise InvalidInput(f"study {name} belongs to the run {owner}")
        if _find(storage, between) is None:
            storage.create_new_study(directions, between)
        storage.delete_study(old)
    study = storage.create_new_study(directions, name)
    storage.set_study_user_attr(study, OWNER, run)
    left = _find(storage, between)
    if left is not None:
        storage.delete_study(left)
    return study


def _find(storage: RDBStorage, name: str) -> int | None:
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        return None


def _owner(storage: RDBStorage, study: int) -> str:
    return str(storage.get_study_user_attrs(study).get(OWNER, ""))


def _text(directory: RunDirectory) -> str:
    return str(directory.path.resolve())
