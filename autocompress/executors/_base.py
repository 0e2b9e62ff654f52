"""What the search asks of an executor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import ClassVar

from autocompress.cluster import ALONE, Cluster
from autocompress.errors import InvalidInput
from autocompress.registry import Registry
from autocompress.site import HERE, Site

WORKER_BYTES = 1.5e9
"""What torch, ONNX Runtime and a small task take in each worker: no more run at a time than fit into a machine."""


class TrialExecutor(Executor):
    """A `concurrent.futures.Executor` whose work can be cut short.

    Args:
        workers: Trials at the same time.
        threads: Threads that one trial may use.
        cluster: Where to run, for executors that run on a cluster.

    Attributes:
        tell: Told what happens to workers, a line an event, by executors that have something to tell.

    Raises:
        InvalidInput: If a cluster is asked for where there is none.
    """

    name: ClassVar[str]
    has_cluster: ClassVar[bool] = False

    def __init__(self, workers: int, threads: int, cluster: Cluster = ALONE) -> None:
        if cluster != ALONE and not self.has_cluster:
            raise InvalidInput(f"executor {self.name!r}: runs on this machine alone; for a cluster take 'ray'")
        self.workers = workers
        self.threads = threads
        self.tell: Callable[[str], None] = _keep_silent

    @classmethod
    def usual_workers(cls, cluster: Cluster, *, takes_wall_time: bool) -> int | None:
        """Trials at the same time where nobody says how many; None for as many as this machine can do.

        Args:
            cluster: Where to run.
            takes_wall_time: Whether models are timed by the clock on the wall on a machine that also trains, so that
                other trials there would disturb it.
        """
        del cluster, takes_wall_time
        return None

    @classmethod
    def usual_threads(cls, workers: int, cluster: Cluster) -> int | None:
        """Threads of each of so many trials where nobody says how many; None to share out the cores of this machine."""
        del workers, cluster
        return None

    @property
    def site(self) -> Site:
        """Where its workers work; it goes with every call that needs more than its arguments."""
        return HERE

    def carry(self, file: Path) -> None:
        """Let workers on other machines have a file of this one."""

    def begin(self, run: Path) -> None:
        """Let workers on other machines have the files of a run, and those of theirs come into it."""

    @abstractmethod
    def kill(self) -> None:
        """End all work at once; nothing of it is kept. The executor can be used again."""


def _keep_silent(event: str) -> None:
    """Tell nobody."""


def prepare_process(threads: int) -> None:
    """Make a process ready for trials.

    Args:
        threads: Threads that torch may take.
    """
    import onnxruntime
    import torch

    onnxruntime.set_default_logger_severity(3)  # what it warns of while it optimizes is nothing the user can mend
    torch.set_num_threads(threads)


EXECUTORS: Registry[type[TrialExecutor]] = Registry("executor", "autocompress.executors")
