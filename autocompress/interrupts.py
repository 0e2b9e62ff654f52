"""Ctrl-C and termination as requests that a loop reads, instead of exceptions that strike anywhere."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Counts requests to stop while it is entered: one asks to drain, two or SIGTERM to cancel.

    Outside the main thread, where Python delivers no signals, it stays at zero.
    """

    def __init__(self) -> None:
        self.count = 0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def drain(self) -> bool:
        """True once nothing new shall be started."""
        return self.count >= 1

    @property
    def cancel(self) -> bool:
        """True once running work shall be dropped."""
        return self.count >= 2

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._previous[name] = signal.signal(name, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)
        self._previous.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.count += 2 if number == signal.SIGTERM else 1
