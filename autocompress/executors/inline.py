"""Trials one after the other in this process: for debugging and tests."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

from autocompress.executors._base import EXECUTORS, TrialExecutor

T = TypeVar("T")


@EXECUTORS.register
class InlineExecutor(TrialExecutor):
    """Runs each call when it is submitted; the future it gives back is done."""

    name: ClassVar[str] = "inline"

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call `fn` now."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def kill(self) -> None:
        """Nothing runs between two calls."""
