"""The time of a search: what is spent, and what a trial will take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autocompress.record import TAKEN_UP, Proposal, Record, Trial

LEAST_EPOCHS = 2
"""Epochs below which no trial is shortened."""

REPORT_S = 2.0
"""Seconds kept for the report and for ending the processes."""

LEEWAY = 1.1
"""How much longer than the slowest lately all but the training of the next trial may take."""

FIRST_FIXED_S, FIRST_SCALE = 5.0, 1.5
"""What a trial takes before any has ended: seconds of all but training, and how often an expected epoch each epoch."""

LATEST_FIXED, LATEST_SCALES = 8, 16
"""Trials by which the next is judged, of all and of its kind: machines and networks change while a search goes on."""

Typical = Callable[[Sequence[float]], float]
"""Which of some times is counted with: the longest, or the shortest."""


class Clock:
    """Wall time of a search over all its resumes.

    Args:
        spent_s: Seconds spent before this process.
        started: `time.monotonic()` when this process began.
    """

    def __init__(self, spent_s: float, started: float) -> None:
        self._spent_s = spent_s
        self._started = started

    @property
    def elapsed_s(self) -> float:
        """Seconds spent until now."""
        return self._spent_s + time.monotonic() - self._started


@dataclass(frozen=True)
class Budget:
    """The time that a search may take.

    Args:
        clock: Time spent.
        total_s: Seconds for all, or None.
    """

    clock: Clock
    total_s: float | None

    @property
    def left_s(self) -> float:
        """Seconds until the report has to be written; infinite without a budget."""
        return math.inf if self.total_s is None else self.total_s - REPORT_S - self.clock.elapsed_s

    def share_s(self, share: float) -> float:
        """Seconds of a share of all; infinite without a budget."""
        return math.inf if self.total_s is None else share * self.total_s


class TrialTimes:
    """Predicts how long a trial takes: a fixed part and its epochs, corrected by ended trials.

    Args:
        epoch_s: Seconds of one epoch of the original, measured before the search.
    """

    def __init__(self, epoch_s: float) -> None:
        self._epoch_s = epoch_s
        self._fixed: list[float] = []
        self._scale: dict[str, list[float]] = {}

    def shortened(self, trial: Trial, available_s: float, *, hopefully: bool = False) -> Trial | None:
        """The trial with as many of its epochs as end in time; None if too few do.

        A shortened trial is another plan, which says what was really done; what was expected of the whole one is no
        longer said. It has two epochs at least, since some plans are trained in two phases.

        Args:
            trial: What to start.
            available_s: Seconds until it has to end.
            hopefully: Whether it is enough that the trial ends in time if it is as quick as the quickest lately; else
                it has to if it is as slow as the slowest.
        """
        typical: Typical = min if hopefully else max
        fixed_s = (1.0 if hopefully else LEEWAY) * self._fixed_s(typical)
        recovery = trial.plan.recovery
        each_s = self._each_s(trial, typical)
        left_s = available_s - fixed_s - recovery.sparsify_epochs * each_s
        epochs = min(recovery.epochs, math.floor(left_s / each_s))
        if left_s < 0 or epochs < min(LEAST_EPOCHS, recovery.epochs):
            return None
        if epochs == recovery.epochs:
            return trial
        plan = replace(trial.plan, recovery=replace(recovery, epochs=epochs))
        before = float(trial.proposal.attributes.get("before", 0.0))
        full = float(trial.proposal.attributes.get("full", recovery.epochs))
        return replace(
            trial,
            plan=plan,
            fidelity=min(1.0, (before + epochs) / full),
            proposal=_without_expectations(trial.proposal),
        )

    def least_s(self, trial: Trial) -> float:
        """Seconds that a trial takes with as few of its epochs as it may be shortened to, if it is slow."""
        fixed_s, each_s = self._fixed_s(max), self._each_s(trial, max)
        recovery = trial.plan.recovery
        return LEEWAY * fixed_s + (recovery.sparsify_epochs + min(LEAST_EPOCHS, recovery.epochs)) * each_s

    @property
    def quickest_s(self) -> float:
        """Seconds of a trial that is not trained, if it is as quick as the quickest lately."""
        return self._fixed_s(min)

    def learn(self, record: Record) -> None:
        """Take in a finished trial."""
        if record.status != "complete" or TAKEN_UP in record.details:
            return
        self._fixed.append(record.fixed_s)
        epochs = record.plan.recovery.epochs
        if epochs:
            expected_s = self._expected_epoch_s(record.trial) * epochs
            self._scale.setdefault(_kind(record.trial), []).append(record.training_s / expected_s)

    def _fixed_s(self, typical: Typical) -> float:
        """Seconds of all but training, as it took lately."""
        return typical(self._fixed[-LATEST_FIXED:] or [FIRST_FIXED_S])

    def _each_s(self, trial: Trial, typical: Typical) -> float:
        """Seconds of an epoch of a trial, as those of its kind took lately."""
        known = self._scale.get(_kind(trial)) or [scale for scales in self._scale.values() for scale in scales]
        return self._expected_epoch_s(trial) * typical(known[-LATEST_SCALES:] or [FIRST_SCALE])

    def _expected_epoch_s(self, trial: Trial) -> float:
        """What the strategy expects of an epoch, else that of the original."""
        return float(trial.proposal.attributes.get("expected_epoch_s", self._epoch_s))


def _without_expectations(proposal: Proposal) -> Proposal:
    """A proposal without what was expected of its accuracy, which depends on the epochs."""
    accuracy = ("expected_loss", "expected_deviation")
    return replace(proposal, attributes={key: v for key, v in proposal.attributes.items() if key not in accuracy})


def _kind(trial: Trial) -> str:
    """Trials whose epochs are compared: of one architecture, unless the strategy knows better what to expect."""
    return "" if "expected_epoch_s" in trial.proposal.attributes else trial.plan.architecture
