from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage, get_storage
from optuna.trial import TrialState

import autocompress
from autocompress.errors import InvalidInput
from autocompress.objective import make_objectives
from autocompress.run_directory import RunDirectory
from autocompress.storage import Database, StudyCopy, copying, own_name, write_study
from autocompress.strategies._study import new_study
from tests.tasks.stripes import task
from tests.unit.test_api import SPACE

PASSWORD = "ümläut&3"
QUOTED = "%C3%BCml%C3%A4ut%263"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database.of(f"sqlite:///{tmp_path}/study.db")


def begun(path: Path) -> tuple[RunDirectory, optuna.Study]:
    """A run directory with an empty study."""
    return RunDirectory.create(path), written(path)


def written(path: Path) -> optuna.Study:
    """An empty study in the file that a run directory holds its own in."""
    journal = path / "study.journal"
    journal.unlink(missing_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    return new_study(make_objectives((), "accuracy", "maximize"), storage)


def add(study: optuna.Study, number: int) -> None:
    trial = study.ask({"bits": optuna.distributions.IntDistribution(2, 8)})
    trial.set_user_attr("trial", number)
    study.tell(trial, [0.9, 1.0 + number, 100.0])


def told(study: optuna.Study) -> list[tuple[Any, ...]]:
    """All there is to trials but their times."""
    return [
        (one.number, one.state, one.values, one.params, one.distributions, one.user_attrs, one.system_attrs)
        for one in study.trials
    ]


def read(database: Database, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=str(database))


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.01)


# -- the URL ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (f"postgresql+psycopg2://me:{QUOTED}@host:5432/studies", "postgresql+psycopg2://me@host:5432/studies"),
        (f"postgresql+psycopg2://me@host/studies?password={QUOTED}", "postgresql+psycopg2://me@host/studies"),
        (
            f"postgresql+psycopg2://host/studies?sslmode=require&sslpassword={QUOTED}",
            "postgresql+psycopg2://host/studies?sslmode=require",
        ),
    ],
)
def test_nothing_shows_a_password(given: str, shown: str) -> None:
    database = Database.of(given)
    assert str(database) == shown
    assert QUOTED not in repr(database)
    assert PASSWORD not in repr(database)
    assert database.reason(ValueError(f"no {PASSWORD} and no {QUOTED}")) == "no *** and no ***"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("study.db", "storage 'study.db': expected a URL such as sqlite:///study.db"),
        ("me:secret@host/studies", "storage '…': expected a URL"),
        ("postgresql://me:secret", "storage 'postgresql://…': expected a URL"),
        ("postgresql+psycopg2://me:sec@ret@host/studies", "more than one @; write %40"),
        ("postgresql+psycopg2://me:sec@ret/secret@host/studies", "more than one @; write %40"),
        ("postgresql+psycopg2://me:a@ret?secret@host/studies", "more than one @; write %40"),
        ("postgres://me:secret@host/studies", "storage postgres://me@host/studies: no database is called 'postgres'"),
        ("sqlite://", "in memory, where nobody else finds it"),
        ("sqlite:///:memory:", "in memory, where nobody else finds it"),
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(given: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Database.of(given)
    assert message in str(caught.value)
    assert not {"secret", "sec", "ret"} & set(str(caught.value).replace("@", " ").replace("/", " ").split())
    assert caught.value.__cause__ is None or "secret" not in str(caught.value.__cause__)


def test_a_missing_driver_is_refused_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

    def missing() -> None:
        raise ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")

    monkeypatch.setattr(PGDialect_psycopg2, "import_dbapi", missing)
    with pytest.raises(InvalidInput, match="the driver psycopg2 is missing; pip install psycopg2-binary, or"):
        Database.of("postgresql+psycopg2://me@host/studies")


# -- what can't be used ----------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_refused_before_anything_is_left(tmp_path: Path) -> None:
    url = f"postgresql+psycopg2://me:{QUOTED}@127.0.0.1:1/studies"
    with pytest.raises(InvalidInput) as caught:
        autocompress.search(task, storage=url, output=tmp_path / "run", hardware="fake")
    assert str(caught.value).startswith("storage postgresql+psycopg2://me@127.0.0.1:1/studies: can't be used: ")
    assert "Connection refused" in str(caught.value)
    assert "start the database" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_resume_says_that_passwords_are_not_kept() -> None:
    with pytest.raises(InvalidInput, match=r"run\.json keeps no password: give the URL again by --storage, or the"):
        Database.of("postgresql+psycopg2://me@127.0.0.1:1/studies").require_usable(resumed=True)


def test_a_file_that_is_no_database_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine " * 100)
    with pytest.raises(InvalidInput, match=r"mine\.txt: can't be used: file is not a database"):
        Database.of(f"sqlite:///{tmp_path}/mine.txt").require_usable()
    with pytest.raises(InvalidInput, match="nowhere is missing or can't be written; make it"):
        Database.of(f"sqlite:///{tmp_path}/nowhere/study.db").require_usable()
    assert (tmp_path / "mine.txt").read_text() == "mine " * 100


def test_looking_whether_a_database_can_be_used_leaves_nothing(database: Database, tmp_path: Path) -> None:
    database.require_usable()
    assert not list(tmp_path.iterdir()), "a file is made by the search"
    with database.opened() as storage:
        database.require_usable()
        assert storage.get_all_studies() == []


# -- the copy --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _quickly(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with database.opened():  # makes the tables, which who reads would try, too
        monkeypatch.setattr(copying, "PERIOD_S", 0.01)
        monkeypatch.setattr(copying, "RETRY_S", 0.05)


@pytest.mark.usefixtures("_quickly")
def test_a_copy_follows_the_study_and_is_whole_at_the_end(database: Database, tmp_path: Path) -> None:
    directory, study = begun(tmp_path / "run")
    with StudyCopy(directory, database, "mine") as copy:
        add(study, 1)
        until(lambda: optuna.get_all_study_names(str(database)) == ["mine"])
        study.enqueue_trial({"bits": 3})
        until(lambda: len(read(database, "mine").trials) == 2)
        add(study, 2)
    copied = read(database, "mine")
    assert not copy.lacking
    assert told(copied) == told(study)
    assert copied.metric_names == ["accuracy", "latency_ms", "size_bytes"]
    assert not (directory.path / "log.txt").exists(), "nothing to tell"


@pytest.mark.usefixtures("_quickly")
def test_a_database_that_goes_away_is_told_once_and_written_anew(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, study = begun(tmp_path / "run")
    is_away, tries = False, 0
    opened, renew = Database.opened, copying._Copied.renew

    @contextmanager
    def maybe(self: Database) -> Iterator[RDBStorage]:
        nonlocal tries
        tries += 1
        require_there()
        with opened(self) as storage:
            yield storage

    def require_there() -> None:
        if is_away:
            raise OSError("cut off\nin two lines")

    monkeypatch.setattr(Database, "opened", maybe)
    monkeypatch.setattr(copying._Copied, "renew", lambda self: (require_there(), renew(self)))
    with StudyCopy(directory, database, "mine"):
        add(study, 1)
        until(lambda: optuna.get_all_study_names(str(database)) == ["mine"])
        is_away = True
        add(study, 2)
        until(lambda: tries > 3)
        is_away = False
        until(lambda: "holds the whole study again" in (directory.path / "log.txt").read_text())
        add(study, 3)
    lines = [line.split(" ", 2)[-1] for line in (directory.path / "log.txt").read_text().splitlines()]
    assert lines == [
        f"storage {database} can't be written: cut off; the search goes on, and the study is written anew later",
        f"storage {database} holds the whole study again",
    ]
    assert told(read(database, "mine")) == told(study)


@pytest.mark.usefixtures("_quickly")
def test_a_database_that_stays_away_is_told_at_the_end(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, study = begun(tmp_path / "run")
    monkeypatch.setattr(copying._Copied, "renew", lambda self: 1 / 0)
    with StudyCopy(directory, database, "mine") as copy:
        add(study, 1)
    again = f"autocompress search --resume {directory.path} writes all of it"
    assert copy.lacking == f"storage {database} lacks the end of the study; {again}"


@pytest.mark.usefixtures("_quickly")
def test_a_study_that_somebody_deletes_is_written_anew(database: Database, tmp_path: Path) -> None:
    directory, study = begun(tmp_path / "run")
    with StudyCopy(directory, database, "mine"):
        trial = study.ask()
        until(lambda: optuna.get_all_study_names(str(database)) == ["mine"])
        optuna.delete_study(study_name="mine", storage=str(database))
        study.tell(trial, [0.9, 1.0, 100.0])
    assert told(read(database, "mine")) == told(study)


def test_runs_in_one_database_leave_one_another_alone(database: Database, tmp_path: Path) -> None:
    runs = [begun(tmp_path / folder / "run") for folder in ("a", "b")]
    names = [own_name(directory, database, "") for directory, _ in runs]
    assert len(set(names)) == 2
    assert all(name.startswith("run-") for name in names)
    for number, (directory, study) in enumerate(runs):
        for count in range(number + 1):
            add(study, count)
        write_study(directory, database, names[number])
    write_study(runs[0][0], database, names[0])
    assert [len(read(database, name).trials) for name in names] == [1, 2]
    assert sorted(optuna.get_all_study_names(str(database))) == sorted(names)


def test_a_run_that_was_copied_gets_a_study_of_its_own(database: Database, tmp_path: Path) -> None:
    (first, study), (second, _) = begun(tmp_path / "a"), begun(tmp_path / "b")
    add(study, 1)
    write_study(first, database, "mine")
    assert own_name(first, database, "mine") == "mine"
    assert own_name(second, database, "mine") != "mine"
    assert "study mine" in (second.path / "log.txt").read_text()
    with pytest.raises(InvalidInput, match=f"belongs to the run {first.path}"):
        write_study(second, database, "mine")
    assert told(read(database, "mine")) == told(study)


def test_who_watches_meanwhile_sees_the_study_that_was_written_anew(database: Database, tmp_path: Path) -> None:
    """Readers keep finished trials by the id of their study, which SQLite would give again."""
    directory, study = begun(tmp_path / "run")
    for number in (1, 2, 3):
        add(study, number)
    write_study(directory, database, "mine")
    watching = get_storage(str(database))
    before = watching.get_study_id_from_name("mine")
    assert len(watching.get_all_trials(before)) == 3
    study = written(directory.path)
    add(study, 7)
    write_study(directory, database, "mine")
    after = watching.get_study_id_from_name("mine")
    assert [trial.user_attrs for trial in watching.get_all_trials(after)] == [{"trial": 7}]
    assert optuna.get_all_study_names(str(database)) == ["mine"]


# -- searches --------------------------------------------------------------------------------------------------------


def search(run: Path, **options: Any) -> autocompress.Run:
    given: dict[str, Any] = {"trials": 3, "space": SPACE, "hardware": "fake", "executor": "inline", "strategy": "tpe"}
    return autocompress.search(task, output=run, **{**given, **options})


def test_the_database_holds_every_trial_also_after_a_resume(database: Database, tmp_path: Path) -> None:
    run = search(tmp_path / "run", storage=str(database))
    assert run.config.storage == str(database)
    assert len(read(database, run.config.study).trials) == len(run.trials) == 4
    more = autocompress.resume(run.path, task=task, trials=5, executor="inline")
    copied = read(database, run.config.study)
    assert more.config.study == run.config.study
    assert [trial.user_attrs["trial"] for trial in copied.trials if "trial" in trial.user_attrs] == [0, 1, 2, 3, 4, 5]
    assert {trial.state for trial in copied.trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    without = autocompress.resume(run.path, task=task, trials=6, executor="inline", storage="journal")
    assert without.config.storage == ""
    assert len(read(database, run.config.study).trials) == len(copied.trials)


def test_a_search_that_is_complete_is_written_to_a_database_by_a_resume(database: Database, tmp_path: Path) -> None:
    run = search(tmp_path / "run")
    records = (run.path / "records.jsonl").read_bytes()
    autocompress.resume(run.path, task=task, executor="inline", storage=str(database))
    assert len(read(database, run.config.study).trials) == len(run.trials)
    assert (run.path / "records.jsonl").read_bytes() == records
    assert run.config.storage == str(database)


def test_a_password_is_in_no_file_and_in_no_message(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server of the URL is one that can't be there; in its place is a file, which fails in the middle."""
    opened, attempts, events = Database.opened, 0, list[str]()

    @contextmanager
    def elsewhere(self: Database) -> Iterator[RDBStorage]:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            raise OSError(f"can't connect by {PASSWORD}")
        with opened(database) as storage:
            yield storage

    monkeypatch.setattr(Database, "opened", elsewhere)
    monkeypatch.setattr(copying, "RETRY_S", 0.01)
    url = f"postgresql+psycopg2://me:{QUOTED}@host.invalid/studies"
    run = search(tmp_path / "run", storage=url, observer=lambda snapshot: events.append(snapshot.event))
    shown = "postgresql+psycopg2://me@host.invalid/studies"
    assert f"the study is {run.config.study} in {shown}, where optuna-dashboard finds it" in events
    assert f"storage {shown} can't be written: can't connect by ***; the search goes on" in "\n".join(events)
    assert run.config.storage == shown
    everything = [*map(str.encode, events), *(path.read_bytes() for path in run.path.rglob("*") if path.is_file())]
    assert not [one for one in everything if PASSWORD.encode() in one or QUOTED.encode() in one]
