"""A measurement: a latency is its samples, its protocol and its machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from autocompress.profile import Protocol

BETWEEN_PROCESSES = 0.007
"""Relative standard deviation by which a ratio differs from one process to the next beyond what its blocks tell, since
code and tensors lie elsewhere in memory; found in `experiments/repeatability`."""


@dataclass(frozen=True)
class Samples:
    """Times of one model, one number an inference, in milliseconds, block by block.

    Args:
        cpu_ms: Thread-CPU time, one tuple a block.
        wall_ms: Wall time, one tuple a block.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    cpu_ms: tuple[tuple[float, ...], ...]
    wall_ms: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Measurement:
    """What a device measured of one model, beside a reference model measured in the same minutes.

    Args:
        latency_ms: Median time of one inference: thread-CPU time for one thread of the processor itself, wall time for
            several threads and for accelerators.
        latency_ratio: Median over the reference's median, both from this measurement.
        latency_ratio_interval: 95 % interval of that ratio, from resampled blocks and `BETWEEN_PROCESSES`.
        wall_p50_ms, wall_p95_ms, wall_p99_ms: Percentiles of the wall time; 0 for the last in records that are older
            than it.
        contention: Wall time over CPU time; above about 1.1 other work held the processor, or an accelerator worked.
        peak_memory_bytes: Growth of the process from before the session to the peak of its first runs; 0 if the
            platform does not tell.
        integer_nodes: Nodes that ran on integer kernels in the graph that the runtime optimized.
        nodes: All nodes of that graph.
        machine: Processor and runtime version.
        protocol: How it was taken.
        session_ms: Wall time that the runtime took to load the model, optimize its graph and be ready for the first
            inference; 0 where it is worked out, and in records that are older than it.
        batch_size: Samples of one inference.
        energy_mj: Millijoules of one inference in the mean, by the counters of the processor: of all packages, with
            idle power and whatever else ran there. None where the machine does not tell, or an accelerator works.
        samples, reference_samples: The times behind the numbers, whole blocks, thinned where there are many.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    latency_ms: float
    latency_ratio: float
    latency_ratio_interval: tuple[float, float]
    wall_p50_ms: float
    wall_p95_ms: float
    contention: float
    peak_memory_bytes: int
    integer_nodes: int
    nodes: int
    machine: str
    protocol: Protocol = field(default_factory=Protocol)
    samples: Samples | None = None
    reference_samples: Samples | None = None
    wall_p99_ms: float = 0.0
    session_ms: float = 0.0
    energy_mj: float | None = None
    batch_size: int = 1

    @property
    def throughput_per_s(self) -> float:
        """Samples a second, one inference after the other, by the median of the wall time."""
        return 1000 * self.batch_size / self.wall_p50_ms


Measurements = Mapping[str, Measurement]
"""Of one model, by the name of the machine's profile, the first machine first; empty where nothing was measured."""


def ratio_interval(
    candidate: tuple[tuple[float, ...], ...],
    reference: tuple[tuple[float, ...], ...],
    *,
    resamples: int = 200,
) -> tuple[float, tuple[float, float]]:
    """Ratio of medians and its 95 % bootstrap interval over blocks of one process.

    Blocks, not single times, are resampled: times within a block share the machine's mood. What another process would
    find is in `repeatable`.

    Args:
        candidate, reference: Times in blocks, each block not empty.
        resamples: Bootstrap samples.

    Returns:
        The ratio, and the low and high end of the interval.
    """
    ratio = float(np.median(np.concatenate(candidate)) / np.median(np.concatenate(reference)))
    rng = np.random.default_rng(0)
    top = np.array([np.median(block) for block in candidate])
    bottom = np.array([np.median(block) for block in reference])
    draws = np.median(rng.choice(top, (resamples, len(top))), axis=1) / np.median(
        rng.choice(bottom, (resamples, len(bottom))), axis=1
    )
    low, high = np.percentile(draws, (2.5, 97.5))
    return ratio, (float(min(low, ratio)), float(max(high, ratio)))


def repeatable(ratio: float, interval: tuple[float, float]) -> tuple[float, float]:
    """The 95 % interval in which ratios of other processes are expected, from that of one.

    >>> low, high = repeatable(0.5, (0.49, 0.5))
    >>> round(low, 4), round(high, 4)
    (0.4879, 0.5069)
    """
    spread = 1.96 * BETWEEN_PROCESSES * ratio
    return ratio - math.hypot(ratio - interval[0], spread), ratio + math.hypot(interval[1] - ratio, spread)
