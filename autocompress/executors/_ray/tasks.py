"""What runs in a task of Ray, and how its result or error travels."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from autocompress.executors._base import prepare_process
from autocompress.executors._ray.losses import loss
from autocompress.point import summarize
from autocompress.probe import Probe
from autocompress.record import Record, Trial

HIDDEN = "AUTOCOMPRESS_HIDES_GPUS"
"""Environment variable of processes of Ray that are to see no GPU."""

WITHOUT_GPUS, WITH_GPUS = ({"env_vars": {HIDDEN: hidden}} for hidden in ("1", ""))
"""Environments of tasks that have no GPU, from which Ray hides none, and of those that have some.

A task begins with the environment of the one that starts it. `CUDA_VISIBLE_DEVICES` has no place in there: Ray takes it
for a list of what it may give the task.
"""


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    Args:
        result: What it returned.
        error: What it raised, or None. Ray would wrap it in a class of its own, which not all errors survive.
        trace: The traceback of the error.
    """

    result: Any = None
    error: Exception | None = None
    trace: str = ""

    def unwrapped(self) -> Any:
        """The result; an error is raised, with the traceback as its cause."""
        if self.error is not None:
            raise self.error from RemoteTraceback(self.trace)
        return self.result

    def pass_on_to(self, future: Future[Any]) -> None:
        """End a future with it; an error has the traceback as its cause."""
        if self.error is None:
            future.set_result(self.result)
        else:
            self.error.__cause__ = RemoteTraceback(self.trace)
            future.set_exception(self.error)


class RemoteTraceback(Exception):
    """The traceback of an error on another node, as its cause."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def work(function: Callable[..., Any], args: tuple[Any, ...], threads: int) -> Outcome:
    """Call a function in a worker that keeps torch warm."""
    hide_gpus()
    prepare_process(threads)
    return attempt(function, args)


def attempt(function: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
    """Call a function; its error is an outcome too, unless something was lost that the call needed."""
    try:
        return Outcome(function(*args))
    except Exception as error:
        if loss(error):  # whoever asked begins it again
            raise
        return Outcome(error=_sendable(error), trace=traceback.format_exc())


def hide_gpus() -> None:
    """See no GPU from now on, if this process is to see none."""
    if os.environ.get(HIDDEN):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def title(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """What Ray's dashboard calls a call: the trial, the stage and the plan."""
    name = getattr(function, "__name__", "call").replace("_", " ")
    for given in args:
        if isinstance(given, Record | Trial):
            trial = given.trial if isinstance(given, Record) else given
            return f"{name} {trial.number} {summarize(trial.plan)}"
        if isinstance(given, Probe):
            return f"{name} {summarize(given.plan)}"
    return name


def _sendable(error: Exception) -> Exception:
    """The error, or its text where it can't travel."""
    import cloudpickle

    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # whatever an error of the user's libraries does when it is pickled
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
