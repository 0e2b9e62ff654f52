"""Trials in processes of this machine that stay warm: torch, the task and its data are loaded once."""

from __future__ import annotations

import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import loky.backend.resource_tracker
from loky import ProcessPoolExecutor

from autocompress.cluster import ALONE, Cluster
from autocompress.executors._base import EXECUTORS, TrialExecutor, prepare_process

T = TypeVar("T")


@EXECUTORS.register
class ProcessExecutor(TrialExecutor):
    """One pool of a single process for each worker, so that a process that dies takes only its own trial with it.

    The processes are those of loky, which needs no `if __name__ == "__main__"` in the user's script. They ignore
    Ctrl-C, which is the driver's to handle, and end with the driver, however it ends. Where there are several GPUs they
    take turns in being those of the processes.
    """

    name: ClassVar[str] = "processes"

    def __init__(self, workers: int, threads: int, cluster: Cluster = ALONE) -> None:
        super().__init__(workers, threads, cluster)
        self._pools: list[Any] = [None] * workers
        self._pending: list[list[Future[Any]]] = [[] for _ in range(workers)]

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call `fn` in the process with the least work."""
        for index, futures in enumerate(self._pending):
            self._pending[index] = [future for future in futures if not future.done()]
        slot = min(range(self.workers), key=lambda index: len(self._pending[index]))
        with _interrupts_held():
            try:
                future: Future[T] = self._pool(slot).submit(fn, *args, **kwargs)
            except BrokenExecutor:  # its process died since the last call
                self._pools[slot] = None
                future = self._pool(slot).submit(fn, *args, **kwargs)
        self._pending[slot].append(future)
        return future

    def kill(self) -> None:
        """Kill every process; the next call starts new ones."""
        for index, pool in enumerate(self._pools):
            if pool is not None:
                pool.shutdown(kill_workers=True)
                self._pools[index] = None
                self._pending[index] = []
        _join_feeders()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes once their work is done; at once with `cancel_futures`."""
        if cancel_futures:
            self.kill()
        for index, pool in enumerate(self._pools):
            if pool is not None:
                pool.shutdown(wait=wait)
                self._pools[index] = None
        if wait:
            _join_feeders()

    def _pool(self, slot: int) -> Any:
        pool = self._pools[slot]
        if pool is None:
            pool = ProcessPoolExecutor(
                max_workers=1,
                initializer=_start_worker,
                initargs=(os.getpid(), self.threads, slot),
                env={
                    **{name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
                    "LOKY_MAX_MEMORY_LEAK_SIZE": "1e15",  # a worker that keeps torch and data warm is no leak
                },
            )
            self._pools[slot] = pool
        return pool


def _join_feeders() -> None:
    """Wait for the threads that fed closed queues.

    loky leaves them to themselves; one that the end of the interpreter stops while it frees its semaphores makes loky
    warn of leaked ones.
    """
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(timeout=1.0)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back for a moment; a process started meanwhile does not hear it before it ignores it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    for tracker in (multiprocessing.resource_tracker, loky.backend.resource_tracker):
        tracker.ensure_running()  # the start of either would take the mask off
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(driver: int, threads: int, slot: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(driver,), daemon=True).start()
    import torch

    prepare_process(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())
    if sys.platform == "linux":  # a DataLoader of the task may start processes; loky's own way needs loky's classes
        multiprocessing.set_start_method("fork", force=True)


def _end_with(driver: int) -> None:
    """End this process when its driver is gone: nobody will read what it computes."""
    while os.getppid() == driver:
        time.sleep(0.5)
    os._exit(1)
