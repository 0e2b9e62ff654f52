"""What the search asks of an executor."""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import Executor
from typing import ClassVar

from autocompress.registry import Registry


class TrialExecutor(Executor):
    """A `concurrent.futures.Executor` whose work can be cut short.

    Args:
        workers: Trials at the same time.
        threads: Threads that one trial may use.
    """

    name: ClassVar[str]

    def __init__(self, workers: int, threads: int) -> None:
        self.workers = workers
        self.threads = threads

    @abstractmethod
    def kill(self) -> None:
        """End all work at once; nothing of it is kept. The executor can be used again."""


def settle(threads: int) -> None:
    """Make a process ready for trials.

    Args:
        threads: Threads that torch may take.
    """
    import onnxruntime
    import torch

    onnxruntime.set_default_logger_severity(3)  # what it warns of while it optimizes is nothing the user can mend
    torch.set_num_threads(threads)


EXECUTORS: Registry[type[TrialExecutor]] = Registry("executor", "autocompress.executors")
