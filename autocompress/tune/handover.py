"""Between the search and Ray Tune: trials on their way to it, and records on their way back."""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Collection, Mapping
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from autocompress.errors import DeviceUnavailable
from autocompress.point import summarize
from autocompress.record import Record, Trial
from autocompress.run_directory import RunDirectory
from autocompress.screen import Screen
from autocompress.serialization import from_json, to_json, write_atomically
from autocompress.site import Site
from autocompress.task_source import TaskSource

FOLDER = "handed"
"""The folder of a run directory that holds the trials which Tune was given, a file a trial."""

SITE = "site.pickle"
"""The file there that tells trials how they reach the search; each process that searches has another."""

SITE_WAIT_S, LOOK_S = 600.0, 0.5
"""Seconds for which a trial waits for a search that goes on, and those between two looks."""


@dataclass(frozen=True)
class Handed:
    """A trial that Tune was given.

    Args:
        trial: What to try.
        screen: What it has to beat before it is trained.
        source: The task.
    """

    trial: Trial
    screen: Screen
    source: TaskSource

    @staticmethod
    def read(directory: Path, number: int) -> Handed:
        """The trial of that number, from its file in the run directory."""
        return from_json(Handed, (directory / FOLDER / f"{number}.json").read_text(encoding="utf-8"))

    def write(self, directory: Path) -> None:
        """Leave it in the run directory."""
        folder = directory / FOLDER
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{self.trial.number}.json", to_json(self))

    def as_config(self, directory: Path) -> dict[str, Any]:
        """The `config` of the trial in Tune: where to find it, and what Tune's tables are to show."""
        trial = self.trial
        return {
            "number": trial.number,
            "name": summarize(trial.plan),
            "source": trial.proposal.source,
            "fidelity": trial.fidelity,
            "run": str(directory),
        }


def write_site(directory: Path, site: Site) -> None:
    """Let trials know how they reach the search."""
    folder = directory / FOLDER
    folder.mkdir(exist_ok=True)
    write_atomically(folder / SITE, pickle.dumps(site))


def forget_site(directory: Path) -> None:
    """Let trials wait from now on, as the process that searched is gone; if it is at work still, nothing happens."""
    path = directory / FOLDER / SITE
    if path.is_file() and not RunDirectory(directory).is_locked():
        path.unlink()


def await_site(directory: Path) -> Site:
    """How a trial reaches the search; one that Tune began again is earlier than a search that loads its task first.

    Raises:
        DeviceUnavailable: If there is no search.
    """
    path = directory / FOLDER / SITE
    until = time.monotonic() + SITE_WAIT_S
    while not path.is_file():
        if time.monotonic() > until:
            raise DeviceUnavailable(
                f"run {directory}: no search for {SITE_WAIT_S:g} s that this trial is for; go on with it by "
                "tune.Tuner.restore(PATH, trainable=trainable).fit()"
            )
        time.sleep(LOOK_S)
    site: Site = pickle.loads(path.read_bytes())
    return site


@dataclass(frozen=True)
class Known:
    """What a checkpoint of Tune says of its trials.

    Args:
        numbers: Tune's id of a trial to our number.
        running: Ids of those that it has not ended; a restored Tune begins them again by itself.
    """

    numbers: Mapping[str, int] = field(default_factory=dict)
    running: tuple[str, ...] = ()


class Handover:
    """Gives trials to Tune and their records to the search; the two are in threads of their own.

    A trial is written down before Tune gets it. Where the driver dies, Tune goes on from its last checkpoint, some
    seconds old: what it was given since is given to it again.

    Args:
        directory: The run directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = Lock()
        self._queue: deque[Handed] = deque()
        self._open: dict[int, Future[Record]] = {}
        self._numbers: dict[str, int] = {}
        self._running: set[str] = set()
        self._ended: set[int] = set()
        self._is_closed = False

    @property
    def ended(self) -> frozenset[int]:
        """Numbers of the trials whose outcome is known."""
        with self._lock:
            return frozenset(self._ended)

    # -- the search's side -----------------------------------------------------------------------------------------

    def put(self, handed: Handed) -> Future[Record]:
        """Have a trial carried out; the future is cancelled where Tune takes no more, or drops it."""
        future: Future[Record] = Future()
        with self._lock:
            if self._is_closed:
                _cancel(future)
            else:
                self._open[handed.trial.number] = future
                self._queue.append(handed)
        return future

    def go_on(self, known: Known, recorded: Collection[int]) -> dict[Future[Record], Trial]:
        """Take up what an earlier process handed out.

        What Tune knows nothing of is handed out again, even if it has its record: Tune counts and shows it then.

        Args:
            known: What Tune knows.
            recorded: Numbers of the trials with a record.

        Returns:
            The trials without a record, by the futures that will hold them.
        """
        numbers = sorted(int(path.stem) for path in (self._directory / FOLDER).glob("*.json"))
        begun: dict[Future[Record], Trial] = {}
        running = {known.numbers[tune_id] for tune_id in known.running}
        with self._lock:
            self._numbers.update(known.numbers)
            self._running.update(known.running)
            self._ended.update(recorded)
            for number in numbers:
                handed = Handed.read(self._directory, number)
                is_missing = number not in recorded
                if is_missing:
                    future: Future[Record] = Future()
                    begun[future] = handed.trial
                    self._open[number] = future
                if number not in known.numbers.values() or (is_missing and number not in running):
                    self._queue.append(handed)
        return begun

    # -- Tune's side -------------------------------------------------------------------------------------------------

    def take(self, tune_id: str) -> Handed | None:
        """The next trial for Tune, if there is one now; it is on disk when this returns."""
        with self._lock:
            if self._is_closed or not self._queue:
                return None
            handed = self._queue.popleft()
            handed.write(self._directory)
            self._numbers[tune_id] = handed.trial.number
            self._running.add(tune_id)
            return handed

    def end(self, tune_id: str, outcome: Record | Exception) -> bool:
        """Give the outcome of a trial to the search.

        Returns:
            False if it had one already; then this one counts for nothing.
        """
        future = self._pop(tune_id)
        if future is None:
            return False
        if isinstance(outcome, Record):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
        return True

    def lose(self, tune_id: str) -> None:
        """Tell the search that the process of a trial died."""
        self.end(tune_id, BrokenExecutor(f"Ray Tune tells more in error.txt of its trial {tune_id}"))

    def drop(self, tune_id: str) -> None:
        """Tell the search that Tune stopped a trial before it ended; there is no record of it."""
        future = self._pop(tune_id)
        if future is not None:
            _cancel(future)

    def known(self) -> Known:
        """What Tune knows by now."""
        with self._lock:
            return Known(dict(self._numbers), tuple(sorted(self._running)))

    def close(self) -> None:
        """Take nothing more, and drop what has not ended."""
        with self._lock:
            self._is_closed = True
            dropped = list(self._open.values())
            self._open.clear()
            self._queue.clear()
        for future in dropped:
            _cancel(future)

    def _pop(self, tune_id: str) -> Future[Record] | None:
        with self._lock:
            self._running.discard(tune_id)
            number = self._numbers.get(tune_id, -1)
            future = self._open.pop(number, None)
            if future is not None:
                self._ended.add(number)
            return future


def _cancel(future: Future[Record]) -> None:
    """Cancel a future and tell whoever waits for it already."""
    future.cancel()
    future.set_running_or_notify_cancel()
