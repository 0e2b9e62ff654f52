"""The run directory: the whole state of a search on disk, readable by anyone, written by one process."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from filelock import FileLock, Timeout
from pydantic import ConfigDict

from autocompress.cluster import ALONE, Cluster
from autocompress.doubt import likely_front
from autocompress.errors import InvalidInput, RunDirectoryError, one_line
from autocompress.front import feasible
from autocompress.objective import Constraint, Direction, Objective
from autocompress.point import Point, as_csv, confirmed, make_point
from autocompress.probe import Sensitivity
from autocompress.profile import HardwareProfile, made_for
from autocompress.record import Confirmation, DeviceScore, Record, Trial
from autocompress.serialization import dumps, from_data, from_json, to_json, write_atomically
from autocompress.space import SearchSpace

T = TypeVar("T")
Line = Record | Confirmation | DeviceScore | Sensitivity
"""One line of `records.jsonl`."""

RunStatus = Literal["running", "complete", "stopped", "failed", "interrupted"]

PHASES = ("free", "settled")
"""Phases of a recovery; the weights that each leaves lie in `artifacts/` as `DIGEST-PHASE-….safetensors`."""

SILENCE_S = 60.0
"""Seconds without a sign of life after which a search counts as dead, where its lock can't be tried."""

WRITTEN_S = 3600.0
"""Seconds after which nobody writes any more to a file that was not finished."""

FORMAT = 2
"""Of `run.json` and `records.jsonl`; it grows where files of before can't be read any more."""

NEAR_MISSES = 3
"""Models that are named where none obeys the constraints."""

BEGUN = "begun.jsonl"
"""The file with a line for each trial that began."""

CANCELLED = "cancelled"
"""The reason in the last sign of life of a search that was told twice to stop."""


@dataclass(frozen=True)
class RunConfig:
    """What a search was asked to do, as resolved; the file `run.json`.

    Args:
        task: Name of the task.
        task_reference: Where the task comes from; empty for one given as an object.
        metric: Name of its metric.
        is_percentage: True if the metric is a share in [0, 1].
        direction: Whether more or less of the metric is better.
        fingerprints: Digests of model, data and metric; a resumed search must have the same.
        space: The space with nothing left to resolve.
        profiles: The machines, at least one; values of the first have no machine in their names.
        objectives, constraints: What is better, what is allowed.
        strategy: Name of the search strategy.
        budget_s: Seconds of wall time over all resumes, or None.
        trials: Limit on trials over all resumes, or None.
        workers: Trials at the same time.
        seed: For everything random.
        versions: Package name to version.
        machine: Host name.
        created: UTC time in ISO 8601.
        epoch_s: Seconds of one epoch of recovery of the original, when the search began.
        score_on_device: Whether the front is scored by what the device computes, too.
        storage: The database that the study is written to, too, without a password; empty for none.
        study: Name of the study there.
        executor: Name of what trials run on.
        cluster: Which, if that has one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    task: str
    task_reference: str
    metric: str
    is_percentage: bool
    direction: Direction
    fingerprints: Mapping[str, str]
    space: SearchSpace
    profiles: tuple[HardwareProfile, ...]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    strategy: str
    budget_s: float | None
    trials: int | None
    workers: int
    seed: int
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    created: str = ""
    epoch_s: float | None = None
    score_on_device: bool = False
    storage: str = ""
    study: str = ""
    executor: str = "processes"
    cluster: Cluster = ALONE
    version: int = FORMAT

    @property
    def profile(self) -> HardwareProfile:
        """The first machine, on which models are scored where that is asked for."""
        return self.profiles[0]

    @property
    def target(self) -> HardwareProfile:
        """What models are made for."""
        return made_for(self.profiles)

    @property
    def the_metric(self) -> Objective:
        """The metric as something to be better in, whether it is an objective or not."""
        return Objective(self.metric, self.direction)


@dataclass(frozen=True)
class Heartbeat:
    """How far a search got; the file `heartbeat.json`, rewritten every second or so.

    Args:
        status: "running" while a process holds the lock.
        elapsed_s: Wall time spent over all resumes.
        pid, host: The process that wrote it.
        updated: Seconds since the epoch.
        reason: Why the search ended.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    status: RunStatus
    elapsed_s: float
    pid: int
    host: str
    updated: float
    reason: str = ""


class RunDirectory:
    """One search on disk.

    `run.json` the configuration · `records.jsonl` one line for each finished trial, change that was looked at,
    confirmation and score on the device, appended and synced · `heartbeat.json` time spent and status · `artifacts/`
    model files by the digest of their plan · `front/` the current front · `near_misses/` what comes nearest where
    nothing obeys the constraints · `study.journal` Optuna's own view · `report.html` · `log.txt`; where Ray Tune
    carried the trials out, `handed/` what it was given, and `task.pickle` a task that was an object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: tuple[Path, ...] = ()
        self._read: tuple[tuple[int, int], tuple[Line, ...]] | None = None
        self._config: tuple[tuple[int, int], RunConfig] | None = None
        self._placed: tuple[Point, ...] = ()

    @staticmethod
    def require_free(path: Path) -> None:
        """Refuse a path that a new search can't have.

        Raises:
            RunDirectoryError: If it is a file, or a folder that holds anything.
        """
        if path.exists() and not path.is_dir():
            raise RunDirectoryError(f"output {path}: is a file; give a folder that does not exist yet")
        if (path / "run.json").exists():
            raise RunDirectoryError(
                f"output {path}: holds a search already; go on with it by --resume {path}, or give another folder"
            )
        if path.is_dir() and any(path.iterdir()):
            raise RunDirectoryError(f"output {path}: is not empty; give a folder that does not exist yet")

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """Make a new, empty run directory.

        Raises:
            RunDirectoryError: If the folder holds anything already, or can't be written.
        """
        cls.require_free(path)
        directory = cls(path)
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            (path / "artifacts").mkdir(parents=True)
            directory._made = tuple(made)
            (path / "front").mkdir()
        except FileExistsError:
            raise RunDirectoryError(
                f"output {path}: another search has just begun there; give another folder"
            ) from None
        except OSError as error:
            _remove_empty(made)
            raise RunDirectoryError(
                f"output {path}: can't be written: {error.strerror}; give another folder"
            ) from error
        return directory

    def discard(self) -> None:
        """Leave everything as it was before the folder was made for a search that never began.

        Only the process that made the folder may call it.
        """
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        _remove_empty(self._made)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """A run directory that exists.

        Raises:
            RunDirectoryError: If there is none at that path, or a release with other files wrote it.
        """
        if not (path / "run.json").is_file():
            what = "no such folder" if not path.exists() else "no run.json in it, so it is no run directory"
            raise RunDirectoryError(f"run {path}: {what}; expected a folder that `autocompress search` wrote")
        _require_format(path)
        return cls(path)

    # -- configuration and state ---------------------------------------------------------------------------------

    @property
    def config(self) -> RunConfig:
        """What the search was asked to do.

        Raises:
            RunDirectoryError: If `run.json` is damaged.
        """
        path = self.path / "run.json"
        key = _state(path)
        if self._config is None or self._config[0] != key:
            self._config = key, _read(path, RunConfig)
        return self._config[1]

    def write_config(self, config: RunConfig) -> None:
        """Write `run.json`."""
        with self._writing():
            write_atomically(self.path / "run.json", to_json(config, indent=2))

    @property
    def heartbeat(self) -> Heartbeat | None:
        """The last sign of life, with the status "interrupted" where a process died without a word."""
        path = self.path / "heartbeat.json"
        if not path.is_file():
            return None
        try:
            beat = _read(path, Heartbeat)
        except RunDirectoryError as error:  # the records tell the time as well
            return Heartbeat("interrupted", 0.0, 0, "", 0.0, str(error))
        if beat.status == "running" and not self.is_locked():
            return Heartbeat("interrupted", beat.elapsed_s, beat.pid, beat.host, beat.updated, "the process died")
        return beat

    def beat(self, status: RunStatus, elapsed_s: float, reason: str = "") -> None:
        """Write a sign of life."""
        beat = Heartbeat(status, elapsed_s, os.getpid(), socket.gethostname(), time.time(), reason)
        with self._writing():
            write_atomically(self.path / "heartbeat.json", to_json(beat))

    # -- lock ----------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory alone; the lock falls with the process, however it ends.

        Raises:
            RunDirectoryError: If another process holds it; says which.
        """
        lock = FileLock(self.path / "run.lock", timeout=1)  # `show` holds it for an instant to see whether it is held
        try:
            lock.acquire()
        except Timeout:
            raise RunDirectoryError(f"run {self.path}: {self._owner()} is searching there; wait or stop it") from None
        try:
            yield
        finally:
            lock.release()

    def is_locked(self) -> bool:
        """True while some process holds the directory; whoever may not write there judges by its heartbeat."""
        if not os.access(self.path, os.W_OK):
            beat = _read(self.path / "heartbeat.json", Heartbeat)
            return time.time() - beat.updated < SILENCE_S
        lock = FileLock(self.path / "run.lock", timeout=0)
        try:
            with lock:
                return False
        except Timeout:
            return True

    def _owner(self) -> str:
        path = self.path / "heartbeat.json"
        if not path.is_file():
            return "another process"
        beat = _read(path, Heartbeat)
        return f"process {beat.pid} on {beat.host} (last sign of life {time.time() - beat.updated:.0f} s ago)"

    # -- records -------------------------------------------------------------------------------------------------

    def append(self, *lines: Line) -> None:
        """Add finished trials or other lines; they are on disk when this returns.

        Raises:
            RunDirectoryError: If the disk is full or the folder can't be written.
        """
        with self._writing(), (self.path / "records.jsonl").open("ab") as file:
            file.write(b"".join(to_json(line).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def note_begun(self, trial: Trial) -> None:
        """Write down that a trial begins, so that a process that goes on begins it again if this one is killed.

        Raises:
            RunDirectoryError: If the disk is full or the folder can't be written.
        """
        with self._writing(), (self.path / BEGUN).open("ab") as file:
            file.write(b"\n" + to_json(trial).encode())  # after a line that was cut short a new one begins

    def unfinished(self) -> tuple[Trial, ...]:
        """The trials that began and have no record, by number; of one number the latest. Lines cut short are none."""
        path = self.path / BEGUN
        if not path.is_file():
            return ()
        recorded = {record.number for record in self.records()}
        begun: dict[int, Trial] = {}
        for line in path.read_bytes().splitlines():
            with suppress(InvalidInput):
                trial = from_json(Trial, line)
                begun[trial.number] = trial
        return tuple(trial for number, trial in sorted(begun.items()) if number not in recorded)

    def lines(self) -> tuple[Line, ...]:
        """All lines of `records.jsonl`; a last line cut short by a crash is left out.

        Raises:
            RunDirectoryError: If another line is damaged; says which.
        """
        path = self.path / "records.jsonl"
        if not path.is_file():
            return ()
        key = _state(path)
        if self._read is None or self._read[0] != key:
            self._read = key, _parse_lines(path)
        return self._read[1]

    def repair(self) -> int:
        """Set a last line that a crash cut short aside, so that appending is safe; returns its bytes.

        The cut line is kept in `records.jsonl.torn`.
        """
        path = self.path / "records.jsonl"
        if not path.is_file():
            return 0
        content = path.read_bytes()
        whole = sum(len(line) + 1 for line in content.split(b"\n")[:-1])
        last = content[:whole].rstrip(b"\n").rsplit(b"\n", 1)[-1]
        if whole == len(content) and last.strip() and not _is_whole(last):
            whole -= len(last) + 1
        torn = content[whole:]
        if not torn:
            return 0
        if _is_whole(torn):
            with path.open("ab") as file:
                file.write(b"\n")
            return 0
        with (self.path / "records.jsonl.torn").open("ab") as file:
            file.write(torn.rstrip(b"\n") + b"\n")
        write_atomically(path, content[:whole])
        return len(torn)

    def records(self) -> tuple[Record, ...]:
        """The finished trials in the order they ended, each number once."""
        by_number: dict[int, Record] = {}
        for line in self.lines():
            if isinstance(line, Record):
                by_number.setdefault(line.number, line)
        return tuple(by_number.values())

    def confirmations(self) -> tuple[Confirmation, ...]:
        """The confirmations in the order they were made."""
        return tuple(line for line in self.lines() if isinstance(line, Confirmation))

    def device_scores(self) -> tuple[DeviceScore, ...]:
        """The scores on the device in the order they were made."""
        return tuple(line for line in self.lines() if isinstance(line, DeviceScore))

    def sensitivities(self) -> tuple[Sensitivity, ...]:
        """The entries of the sensitivity table in the order they were made."""
        return tuple(line for line in self.lines() if isinstance(line, Sensitivity))

    @contextmanager
    def disk_watched(self) -> Iterator[None]:
        """Say that the disk is full where some part of the search finds it so.

        Raises:
            RunDirectoryError: In place of whatever was raised then.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, RunDirectoryError) or not is_disk_full(error):
                raise
            raise RunDirectoryError(
                f"run {self.path}: can't be written: {one_line(error.__cause__ or error)}; make room, then search "
                f"again or go on by --resume {self.path}"
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunDirectoryError(
                f"run {self.path}: can't be written: {error.strerror or error}; make room or mend the rights, then go "
                f"on by --resume {self.path}"
            ) from error

    def forget_weights(self, needed: Collection[str]) -> None:
        """Delete trained weights but those of some plans.

        Args:
            needed: Digests of the plans.
        """
        with self._writing():
            for phase in PHASES:
                for path in (self.path / "artifacts").glob(f"*-{phase}-*.safetensors"):
                    if path.name.partition("-")[0] not in needed:
                        path.unlink(missing_ok=True)

    def forget_unfinished(self) -> None:
        """Delete files in `artifacts/` that were never finished, since whoever wrote them was killed."""
        with self._writing():
            for path in (self.path / "artifacts").glob(".*"):
                with suppress(FileNotFoundError):  # it was finished just now
                    if time.time() - path.stat().st_mtime > WRITTEN_S:
                        path.unlink()

    # -- front ---------------------------------------------------------------------------------------------------

    def points(self) -> tuple[Point | None, tuple[Point, ...]]:
        """The baseline (None before it is measured) and the front, read from the records."""
        return self._points(self.records(), self.confirmations(), self.device_scores())

    def near_misses(self) -> tuple[Point, ...]:
        """The models nearest to the constraints, by the farthest one; none if some model obeys all."""
        return self._near_misses(self.records(), self.confirmations())

    def _near_misses(self, records: Sequence[Record], confirmations: Sequence[Confirmation]) -> tuple[Point, ...]:
        config = self.config
        final = confirmed(records, confirmations)
        baseline = next((record for record in final if record.number == 0 and record.status == "complete"), None)
        if baseline is None or feasible(final, config.constraints, baseline.values):
            return ()

        def worst(record: Record) -> float:
            return max(constraint.distance(record.values, baseline.values) for constraint in config.constraints)

        tried = [record for record in final if record.status == "complete" and record.number > 0]
        return tuple(
            make_point(record, baseline, confirmations, config.metric, self.path / "near_misses")
            for record in sorted(tried, key=worst)[:NEAR_MISSES]
        )

    def _points(
        self,
        records: Sequence[Record],
        confirmations: Sequence[Confirmation],
        device_scores: Sequence[DeviceScore],
    ) -> tuple[Point | None, tuple[Point, ...]]:
        config = self.config
        final = confirmed(records, confirmations)
        baseline = next((record for record in final if record.number == 0 and record.status == "complete"), None)
        if baseline is None:
            return None, ()

        def point(record: Record, confidence: float | None = None) -> Point:
            return make_point(
                record,
                baseline,
                confirmations,
                config.metric,
                self.path / "front",
                confidence=confidence,
                device_score=on_device.get(record.number),
            )

        on_device = {one.number: one for one in device_scores}
        believed = {one.number: one.believed for one in confirmations if one.believed is not None}
        front = likely_front(final, config.objectives, config.constraints, config.the_metric, believed=believed)
        return point(baseline), tuple(point(one.record, one.confidence) for one in front)

    def write_front(
        self,
        records: Sequence[Record],
        confirmations: Sequence[Confirmation],
        device_scores: Sequence[DeviceScore],
    ) -> tuple[Point | None, tuple[Point, ...]]:
        """Bring `front/` up to date; at any moment every file that `front.json` names is there, whole.

        Returns:
            The baseline and the front.
        """
        baseline, front = self._points(records, confirmations, device_scores)
        if baseline is not None and (not front or (baseline, *front) != self._placed):
            with self._writing():
                self._place_front(records, baseline, front)
                misses = self._near_misses(records, confirmations) if not front else ()
                _keep_only(self.path / "near_misses", self._place_points(records, misses))
            self._placed = (baseline, *front)
        return baseline, front

    def _place_front(self, records: Sequence[Record], baseline: Point, front: tuple[Point, ...]) -> None:
        folder = self.path / "front"
        names = self._place_points(records, (baseline, *front))
        listed = {"baseline": _inside(baseline).as_json(), "front": [_inside(point).as_json() for point in front]}
        write_atomically(folder / "front.json", dumps(listed, indent=2))
        write_atomically(folder / "front.csv", as_csv([_inside(point) for point in front]))
        _keep_only(folder, names | {"front.json", "front.csv"})

    def _place_points(self, records: Sequence[Record], points: Sequence[Point]) -> set[str]:
        """Put model and plan of points where they say; the names of the files."""
        by_number = {record.number: record for record in records}
        for point in points:
            record = by_number[point.number]
            assert record.artifact is not None, "complete records have an artifact"
            Path(point.file).parent.mkdir(exist_ok=True)
            _place(self.path / record.artifact.path, Path(point.file))
            if not Path(point.plan).exists():
                write_atomically(Path(point.plan), record.plan.to_json())
        return {Path(name).name for point in points for name in (point.file, point.plan)}

    def log(self, message: str) -> None:
        """Add a line with the time to `log.txt`."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{stamp} {message}\n")


def _state(path: Path) -> tuple[int, int]:
    """What tells a file from what it was before.

    Raises:
        RunDirectoryError: If there is none.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise RunDirectoryError(f"{path}: can't be read: {error.strerror}; restore it") from error
    return state.st_mtime_ns, state.st_size


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, as far as they are there and empty."""
    with suppress(OSError):  # another search may have used the folder above meanwhile
        for folder in folders:
            if folder.is_dir():
                folder.rmdir()


def is_disk_full(error: BaseException) -> bool:
    """True if an error of any library is that nothing can be written: no room, none allowed, or read-only."""
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS))


def _require_format(path: Path) -> None:
    """Refuse the files of another release; a damaged `run.json` is told when it is read.

    Raises:
        RunDirectoryError: If they have another format.
    """
    try:
        data = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    found = data.get("version", FORMAT) if isinstance(data, dict) else FORMAT
    if found != FORMAT:
        versions = data.get("versions")
        wrote = versions.get("autocompress", "unknown") if isinstance(versions, dict) else "unknown"
        raise RunDirectoryError(
            f"run {path}: its files have format {found}, and this release reads format {FORMAT}; open it with the "
            f"release that wrote it (autocompress {wrote}), or search again"
        )


def _read(path: Path, kind: type[T]) -> T:
    try:
        return from_json(kind, path.read_text(encoding="utf-8"))
    except (OSError, InvalidInput, UnicodeDecodeError) as error:
        raise RunDirectoryError(f"{path}: damaged: {error}; restore the file or start a new search") from error


def _parse_lines(path: Path) -> tuple[Line, ...]:
    raw = path.read_bytes().split(b"\n")
    found: list[Line] = []
    for number, line in enumerate(raw, start=1):
        if not line.strip():
            continue
        try:
            found.append(_parse_line(line))
        except InvalidInput as error:
            if all(not rest.strip() for rest in raw[number:]):
                break
            raise RunDirectoryError(
                f"{path}: line {number} is damaged ({error}); restore the file or delete that line, the search "
                "then repeats that trial"
            ) from error
    return tuple(found)


def _parse_line(line: bytes) -> Line:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise InvalidInput(f"not valid JSON: {error}") from error
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "confirmation":
        return from_data(Confirmation, data)
    if kind == "device_score":
        return from_data(DeviceScore, data)
    if kind == "sensitivity":
        return from_data(Sensitivity, data)
    return from_data(Record, data)


def _is_whole(line: bytes) -> bool:
    try:
        _parse_line(line)
    except InvalidInput:
        return False
    return True


def _keep_only(folder: Path, names: Collection[str]) -> None:
    """Delete all other files of a folder but hidden ones, which are being written."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in names and not path.name.startswith("."):
            path.unlink()


def _place(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system knows no hard links."""
    if target.exists():
        return
    temporary = target.with_name(f".{target.name}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _inside(point: Point) -> Point:
    """The point with files relative to `front/`, so that a run directory can be moved."""
    return replace(point, file=Path(point.file).name, plan=Path(point.plan).name)
