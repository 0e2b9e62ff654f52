"""What a search does beside its trials, on Ray: the baseline, looks at single changes, the front in the end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from functools import partial
from typing import Any, ClassVar, TypeVar

import ray
from ray.exceptions import RayActorError

from autocompress.errors import one_line
from autocompress.executors import TrialExecutor
from autocompress.executors._ray.tasks import Outcome, work

T = TypeVar("T")


class RayWorkers(TrialExecutor):
    """Processes of Ray that stay warm, one for each worker.

    They ask Ray for no processor. The loop never has more at work than it has workers, trials among them, and Tune
    keeps the processor of an ended trial for the next: who waited for one might wait for ever.
    """

    name: ClassVar[str] = "tune"

    def __init__(self, workers: int, threads: int) -> None:
        super().__init__(workers, threads)
        self._actors: list[Any] = [None] * workers
        self._pending: list[list[Future[Any]]] = [[] for _ in range(workers)]

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call `fn` in the process with the least work."""
        for index, futures in enumerate(self._pending):
            self._pending[index] = [future for future in futures if not future.done()]
        slot = min(range(self.workers), key=lambda index: len(self._pending[index]))
        if self._actors[slot] is None:
            actor: Any = ray.remote(_Worker).options(num_cpus=0, scheduling_strategy="SPREAD")
            self._actors[slot] = actor.remote(self.threads)
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._pending[slot].append(future)
        reference = self._actors[slot].call.remote(fn, args, kwargs)
        reference.future().add_done_callback(lambda done: self._pass_on(done, future, slot))
        return future

    def kill(self) -> None:
        """Kill every process that works; the next call starts new ones."""
        for slot, futures in enumerate(self._pending):
            if not all(future.done() for future in futures):
                self._end(slot)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes."""
        for slot in range(self.workers):
            self._end(slot)

    def _end(self, slot: int) -> None:
        actor, self._actors[slot] = self._actors[slot], None
        if actor is not None:
            ray.kill(actor)

    def _pass_on(self, done: Future[Outcome], future: Future[Any], slot: int) -> None:
        """Give what came of a call to whoever waits for it."""
        failed = done.exception()
        if isinstance(failed, RayActorError):
            self._actors[slot] = None
            failed = BrokenExecutor(one_line(failed))
        if failed is not None:
            future.set_exception(failed)
        else:
            done.result().pass_on_to(future)


class _Worker:
    """A process that calls what it is given, one call after the other.

    Args:
        threads: Threads that a call may use.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        """Call a function; what it raises is a result, as Ray would bury its message in that of another error."""
        return work(partial(function, **kwargs), args, self._threads)
