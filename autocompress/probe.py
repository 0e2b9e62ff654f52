"""A probe: one change to a model, looked at without training and without labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict

from autocompress.plan import Plan


@dataclass(frozen=True)
class Probe:
    """A change to look at.

    Args:
        plan: The original with one setting, and no recovery.
        seed: For everything random.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    plan: Plan
    seed: int = 0


@dataclass(frozen=True)
class Sensitivity:
    """What one change does to a model before any training; an entry of the sensitivity table.

    Args:
        probe: What was changed.
        reason: Why nothing is known, in one line; empty if all is.
        divergence: How far the outputs are from those of the original on calibration samples, >= 0: the mean
            Kullback-Leibler divergence of the classes, or the mean square of the difference over the variance of the
            outputs. No labels are looked at.
        values: `size_bytes` and `latency_ratio`, with several machines also `latency_ratio@MACHINE`, as measured of the
            file.
        seconds: Wall time.
        ended_s: Wall time of the search, over all its resumes, at which it ended.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    probe: Probe
    reason: str = ""
    divergence: float = 0.0
    values: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    ended_s: float = 0.0
    kind: Literal["sensitivity"] = "sensitivity"

    @property
    def plan(self) -> Plan:
        """The plan that holds the one change."""
        return self.probe.plan
