"""A search in a thread beside Ray Tune, which carries its trials out."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from autocompress.errors import DeviceUnavailable, SearchFailed
from autocompress.interrupts import Interrupts
from autocompress.loop import Clock
from autocompress.record import Record, Trial
from autocompress.request import Request, make_config, require_same
from autocompress.run_directory import RunDirectory
from autocompress.screen import Screen
from autocompress.serialization import from_json
from autocompress.session import Means, Session, clock_of, describe, mend, search_in
from autocompress.task import Task
from autocompress.task_source import TaskSource, sent
from autocompress.tune.handover import Handed, Handover, Known, forget_site
from autocompress.tune.trials import RECORD, TRACEBACK
from autocompress.tune.workers import Workers

KEPT_TASK = "task.pickle"
"""The file of a run directory that holds a task which was given as an object."""


@dataclass(frozen=True)
class Order:
    """What a search under Tune is to do.

    Args:
        task: The task, or where it is.
        request: What is searched.
        directory: The run directory.
    """

    task: Task | TaskSource
    request: Request
    directory: Path

    @contextmanager
    def source(self) -> Iterator[TaskSource]:
        """Where workers find the task."""
        kept = self.directory / KEPT_TASK
        if isinstance(self.task, TaskSource):
            yield self.task
        elif kept.is_file():
            yield TaskSource(file=str(kept))
        else:
            with sent(self.task) as source:
                yield source


class _Stop(Interrupts):
    """Asks to drain where Tune has ended early, and to cancel where the program has: no trial will end then."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held = False
        """True while draining has to wait: a search that goes on can confirm its front once it is prepared."""

    @property
    def drain(self) -> bool:
        return (super().drain and not self.is_held) or self.cancel

    @property
    def cancel(self) -> bool:
        return super().cancel or not threading.main_thread().is_alive()


class Driver:
    """A search that goes on in a thread of its own; Tune takes trials from it and brings what came of them.

    Args:
        order: What to search.
        known: What a restored Tune knows of the search; None to begin one.
    """

    def __init__(self, order: Order, known: Known | None) -> None:
        self.error: BaseException | None = None
        self._order, self._is_new = order, known is None
        self._stop, self._handover = _Stop(), Handover(order.directory)
        self._begun: dict[Future[Record], Trial] = {}
        if known is not None:
            forget_site(order.directory)
            self._begun = self._handover.go_on(known, self._recorded())
        self._thread = threading.Thread(target=self._run, name=f"search in {order.directory}")
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """True once the search has ended, its front confirmed."""
        return not self._thread.is_alive()

    def next(self, tune_id: str) -> dict[str, Any] | None:
        """The `config` of the next trial, if there is one now; Tune will call it by its id."""
        handed = self._handover.take(tune_id)
        return None if handed is None else handed.as_config(self._order.directory)

    def end(self, tune_id: str, result: dict[str, object]) -> None:
        """Take in what a trial reported."""
        record = str(result[RECORD])
        outcome = from_json(Record, record) if record else DeviceUnavailable(str(result["reason"]))
        if self._handover.end(tune_id, outcome) and TRACEBACK in result:
            RunDirectory(self._order.directory).log(str(result[TRACEBACK]))

    def lose(self, tune_id: str) -> None:
        """Take in that the process of a trial died."""
        self._handover.lose(tune_id)

    def drop(self, tune_id: str) -> None:
        """Take in that Tune stopped a trial."""
        self._handover.drop(tune_id)

    def known(self) -> Known:
        """What Tune knows by now."""
        return self._handover.known()

    def close(self, *, confirms: bool = True) -> None:
        """Wait until the search has ended, which gives out no trial any more.

        Args:
            confirms: Whether its front is confirmed.

        Raises:
            AutocompressError: What ended the search, if something went wrong.
        """
        if not confirms:
            self._stop.count = 2
        elif not self._has_all():
            self._drain()
        self._handover.close()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _recorded(self) -> frozenset[int]:
        return frozenset(record.number for record in RunDirectory(self._order.directory).records())

    def _has_all(self) -> bool:
        """True if there are as many trials as were asked for; the search ends by itself then."""
        limit, ended = self._order.request.trials, self._recorded() | self._handover.ended
        return limit is not None and len(ended - {0}) >= limit

    def _drain(self) -> None:
        self._stop.count = max(1, self._stop.count)

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._order.source() as source:
                pool = Workers(self._order.request.workers)
                means = Means(pool, source, self._stop)
                try:
                    self._begin(means) if self._is_new else self._go_on(means)
                finally:
                    pool.shutdown(cancel_futures=True)
        except KeyboardInterrupt:
            self.error = SearchFailed("the search was ended before its first trial; fit the Tuner again")
        except BaseException as error:
            self.error = error

    def _begin(self, means: Means) -> None:
        """Search from the beginning."""
        started, request, path = time.monotonic(), self._order.request, self._order.directory
        RunDirectory.require_free(path)
        description = describe(means, request.space)
        config = make_config(request, description, means.source)
        directory = RunDirectory.create(path)
        search_in(directory, config, description, self._with_tune(means), Clock(0.0, started))

    def _go_on(self, means: Means) -> None:
        """Go on with a search of an earlier process."""
        started, path = time.monotonic(), self._order.directory
        directory = RunDirectory.open(path)
        with directory.locked(), directory.disk_watched():
            mend(directory)
            clock, self._stop.is_held = clock_of(directory, started), True
            config = replace(directory.config, workers=self._order.request.workers)
            description = describe(means, config.space)
            require_same(config, description, path, accept_changes=False)
            session = Session(directory, self._with_tune(means), clock)
            session.go_on(config)
            self._stop.is_held = False
            session.finish(description, self._begun)

    def _with_tune(self, means: Means) -> Means:
        """The same with trials carried out by Tune, and a task that outlives this process: Tune may begin one again."""
        source, kept = means.source, self._order.directory / KEPT_TASK
        if source.file and Path(source.file) != kept:
            shutil.copyfile(source.file, kept)
            kept.chmod(0o600)
            source = TaskSource(file=str(kept))

        def put(trial: Trial, screen: Screen) -> Future[Record]:
            future = self._handover.put(Handed(trial, screen, source))
            if future.cancelled():
                self._drain()
            return future

        return replace(means, source=source, run=put)


def cluster_workers(request: Request) -> int:
    """Trials at once where Tune gives no number: one a processor, one where inference takes several threads."""
    if any(profile.threads > 1 for profile in request.profiles):
        return 1
    if not ray.is_initialized():
        ray.init()
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1)))
