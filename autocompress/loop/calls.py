"""What the search loop can ask of the workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from autocompress.probe import Probe, Sensitivity
from autocompress.record import DeviceScore, Record, Remeasured, SplitScore, TooSlow, Trial
from autocompress.screen import Screen


@dataclass(frozen=True)
class Calls:
    """What the loop can ask of the workers.

    Args:
        run: Carry out a trial; one that is cancelled comes to nothing, and has no record.
        look: Look at a single change.
        test_score: Score a finished model on the test split.
        device_score: Score a finished model by what the device computes, in so many seconds at most.
        remeasure: Measure finished models together: records, the baseline's values, CPU seconds for each.
        kill: Drop all running work.
    """

    run: Callable[[Trial, Screen], Future[Record]]
    look: Callable[[Probe], Future[Sensitivity]]
    test_score: Callable[[Record], Future[SplitScore]]
    device_score: Callable[[Record, float], Future[DeviceScore | TooSlow]]
    remeasure: Callable[[tuple[Record, ...], Mapping[str, float], float], Future[tuple[Remeasured, ...]]]
    kill: Callable[[], None]
