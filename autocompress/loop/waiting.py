"""Waiting for calls: with signs of life, and no longer than there is time."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from autocompress.errors import MeasurementError
from autocompress.interrupts import Interrupts
from autocompress.loop.calls import Calls
from autocompress.loop.telling import Telling
from autocompress.loop.times import Budget

TICK_S = 0.5
"""Seconds between two signs of life."""

GRACE_S, GRACE_SHARE = 5.0, 0.03
"""Seconds, or the share of the budget if that is more, by which what has been begun may go beyond the budget."""


class Waiting:
    """Waits for calls and drops all of them when their time is spent.

    Args:
        calls: The workers.
        budget: Of the search.
        telling: Gives signs of life.
        interrupts: Requests to stop.
    """

    def __init__(self, calls: Calls, budget: Budget, telling: Telling, interrupts: Interrupts) -> None:
        self._calls, self._budget, self._telling, self._interrupts = calls, budget, telling, interrupts

    def for_all(self, futures: Sequence[Future[Any]]) -> None:
        """Wait until all calls have ended; see `for_some` for the errors."""
        pending = set(futures)
        while pending:
            pending -= self.for_some(pending)

    def for_some(self, pending: Collection[Future[Any]], *, until_s: float = math.inf) -> set[Future[Any]]:
        """Wait a moment for calls; those that have ended.

        Args:
            pending: What is waited for, not empty.
            until_s: Time of the search at which they are given up, in any case a grace after its budget.

        Raises:
            MeasurementError: If none has ended and it is too late already, or somebody cancels; the calls are dropped
                then.
        """
        grace_s = max(GRACE_S, self._budget.share_s(GRACE_SHARE))
        late = self._budget.left_s < -grace_s or self._budget.clock.elapsed_s > until_s
        if (late or self._interrupts.cancel) and not any(future.done() for future in pending):
            self._calls.kill()
            raise MeasurementError("cancelled" if self._interrupts.cancel else "its time is spent")
        done, _ = wait(pending, timeout=TICK_S, return_when=FIRST_COMPLETED)
        self._telling.tell("")
        return done
