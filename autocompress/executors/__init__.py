"""Where trials run: in this process, in several, or on a Ray cluster; all are `concurrent.futures.Executor`s."""

from autocompress.executors._base import EXECUTORS, WORKER_BYTES, TrialExecutor, prepare_process

__all__ = ["EXECUTORS", "WORKER_BYTES", "TrialExecutor", "prepare_process"]
