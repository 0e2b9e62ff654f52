"""A snapshot: how a running search stands, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from autocompress.objective import Direction
from autocompress.point import Point

Phase = Literal["preparing", "searching", "draining", "confirming", "complete", "stopped", "failed"]


@dataclass(frozen=True)
class Snapshot:
    """How a running search stands.

    Args:
        phase: "draining" once no new trial is started; "confirming" while the front is measured and scored again.
        event: What happened since the last snapshot, in a line; empty for a mere tick of the clock.
        elapsed_s: Wall time spent over all resumes.
        budget_s: Wall time allowed, or None.
        trial_limit: Trials allowed, or None.
        complete, screened, failed: Finished trials by status, the baseline left out.
        running: Workers at work now.
        looked: Entries of the sensitivity table.
        baseline: The baseline, once it is measured; None before the search proper and after it.
        front: The front now.
        metric: Name of the task's metric.
        is_percentage: True if the metric is a share in [0, 1].
        direction: Whether more or less of the metric is better.
    """

    phase: Phase
    event: str
    elapsed_s: float
    budget_s: float | None
    trial_limit: int | None
    complete: int
    screened: int
    failed: int
    running: int
    baseline: Point | None
    front: tuple[Point, ...]
    metric: str
    is_percentage: bool
    direction: Direction
    looked: int = 0


Observer = Callable[[Snapshot], None]
"""Called from the driver on every change and about twice a second in between."""
