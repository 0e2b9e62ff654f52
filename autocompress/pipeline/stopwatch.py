"""Where the time of a trial goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Wall time by stage; a stage within another is counted by itself alone, so that the sum is the whole."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block, less that of stages within it."""
        started, before_s = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            within_s = sum(self.seconds.values()) - before_s
            self._add(name, time.perf_counter() - started - within_s)

    def take_over(self, seconds: Mapping[str, float]) -> None:
        """Add the stages of another process that this one waits for; the stage here is left with the waiting alone."""
        for name, stage_s in seconds.items():
            self._add(name, stage_s)

    def _add(self, name: str, stage_s: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + stage_s
