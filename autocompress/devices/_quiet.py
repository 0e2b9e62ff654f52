"""What references take undisturbed, as far as the last measurements tell."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from autocompress.devices._session import counted_clock
from autocompress.measurement import Samples, undisturbed

REMEMBERED = 10
"""Measurements of one reference: enough that one of them was quiet, and few enough that a machine which is slower for
good is soon taken as it is."""

MOST_REFERENCES = 64
"""An agent lives for long and meets many; the one that was not measured for longest is forgotten first."""


@dataclass(frozen=True)
class Reference:
    """A reference model, and what its time depends on besides the machine.

    Args:
        model: SHA-256 of the file.
        examples: What tells the inputs of one inference from others: their digest, or types and shapes.
        provider: Execution provider of ONNX Runtime.
        threads: Threads of one inference.
    """

    model: str
    examples: str
    provider: str
    threads: int


class QuietTimes:
    """The undisturbed times of the last measurements of some references, in memory alone and for one thread."""

    def __init__(self) -> None:
        self._times_ms: dict[Reference, deque[float]] = {}

    def of(self, reference: Reference) -> float:
        """The shortest that is remembered, in milliseconds; 0 if there is none."""
        return min(self._times_ms.get(reference, ()), default=0.0)

    def remember(self, reference: Reference, samples: Samples) -> None:
        """Take in what a measurement found, however disturbed it was."""
        clock = counted_clock(reference.provider, reference.threads)
        times_ms = self._times_ms.pop(reference, deque(maxlen=REMEMBERED))
        times_ms.append(undisturbed(getattr(samples, clock)))
        self._times_ms[reference] = times_ms
        if len(self._times_ms) > MOST_REFERENCES:
            del self._times_ms[next(iter(self._times_ms))]
