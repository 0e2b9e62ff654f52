"""A measurement: a latency is its samples, its protocol and its machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict

from autocompress.profile import Protocol

Blocks = tuple[tuple[float, ...], ...]
"""Times of one model, one tuple a block, no block empty; of any unit."""

UNDISTURBED = 10
"""Percentile of a model's times that is taken for the time of an undisturbed inference.

Whatever else a machine does only ever adds time, so that a low percentile sees through it: beside two busy processes
ratios of medians varied by 1.2 to 3.9 %, of 25th percentiles by 0.5 to 0.8 %, of 10th percentiles by 0.2 to 0.4 %, and
came out the same as on an idle machine; found in `experiments/repeatability`. The shortest time of all is a matter of
chance again.
"""

BETWEEN_PROCESSES = 0.004
"""Relative standard deviation by which a ratio differs from one process to the next beyond what its blocks tell, since
code and tensors lie elsewhere in memory; found in `experiments/repeatability`."""

DISTURBED = 0.03
"""By how much longer a reference may take than it is known to take undisturbed, relative, until all that is measured
beside it counts as disturbed; others stay within 1.3 %, found in `experiments/repeatability`."""

BESIDE_DISTURBANCE, MOST_BESIDE_DISTURBANCE = 4.0, 0.25
"""Relative standard deviation of a ratio whose reference was disturbed, for each unit of the disturbance and at most:
what holds a machine for all of a reading slows models by different factors. Ratios were off by 8 to 47 % beside
disturbances of 0.06 to 0.15, found in `experiments/repeatability`."""


@dataclass(frozen=True)
class Samples:
    """Times of one model, one number an inference, in milliseconds, block by block.

    Args:
        cpu_ms: Thread-CPU time, one tuple a block.
        wall_ms: Wall time, one tuple a block.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    cpu_ms: Blocks
    wall_ms: Blocks


@dataclass(frozen=True)
class Measurement:
    """What a device measured of one model, beside a reference model measured in the same minutes.

    Args:
        latency_ms: Time of one inference that nothing disturbs, the percentile `UNDISTURBED` of all (the median in
            records that are older than that): thread-CPU time for one thread of the processor itself, wall time for
            several threads and for accelerators.
        latency_ratio: That over the reference's, both from this measurement.
        latency_ratio_interval: 95 % interval of that ratio, from resampled blocks and `BETWEEN_PROCESSES`, and from
            `BESIDE_DISTURBANCE` where there was one.
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
        disturbance: By how much longer the reference took than it is known to take undisturbed, relative; 0 where that
            is within `DISTURBED`, or no earlier measurement is known.
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
    disturbance: float = 0.0

    @property
    def reference_ms(self) -> float:
        """Time of an inference of the reference that nothing disturbs; 0 where the ratio does not tell it."""
        return self.latency_ms / self.latency_ratio if self.latency_ratio else 0.0

    @property
    def throughput_per_s(self) -> float:
        """Samples a second, one inference after the other where nothing disturbs them."""
        return 1000 * self.batch_size / self.latency_ms


Measurements = Mapping[str, Measurement]
"""Of one model, by the name of the machine's profile, the first machine first; empty where nothing was measured."""


def undisturbed(times: Blocks) -> float:
    """The time of an inference that nothing disturbs: the 10th percentile of all.

    >>> undisturbed(((1.0, 1.0, 3.0), (2.0, 9.0)))
    1.0
    """
    return float(np.percentile(np.concatenate(times), UNDISTURBED))


def ratio_interval(candidate: Blocks, reference: Blocks, *, resamples: int = 200) -> tuple[float, tuple[float, float]]:
    """Ratio of undisturbed times and its 95 % bootstrap interval over blocks of one process.

    Blocks, not single times, are resampled: times within a block share the machine's mood. What another process would
    find is in `repeatable`. The order of blocks is of no matter.

    Args:
        candidate, reference: Times above 0.
        resamples: Bootstrap samples.

    Returns:
        The ratio, and the low and high end of the interval.
    """
    ratio = undisturbed(candidate) / undisturbed(reference)
    rng = np.random.default_rng(0)
    draws = _redrawn(candidate, resamples, rng) / _redrawn(reference, resamples, rng)
    low, high = np.percentile(draws, (2.5, 97.5))
    return ratio, (float(min(low, ratio)), float(max(high, ratio)))


def _redrawn(times: Blocks, resamples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """The undisturbed time of as many blocks drawn from these with replacement, for each of the resamples."""
    blocks = sorted(times)
    values, block_of = np.concatenate(blocks), np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    order = np.argsort(values)
    often = rng.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), size=resamples)
    up_to = often[:, block_of[order]].cumsum(axis=1)  # how many of a resample's times are no longer than each value
    place = (up_to[:, -1] - 1) * (UNDISTURBED / 100)
    below, above = (values[order][(up_to <= near(place)[:, None]).sum(axis=1)] for near in (np.floor, np.ceil))
    between: npt.NDArray[np.float64] = below + (place % 1) * (above - below)
    return between


def disturbance(undisturbed_ms: float, known_ms: float) -> float:
    """By how much longer than it is known to take a model took, relative; 0 within `DISTURBED`, or if nothing is known.

    Args:
        undisturbed_ms: Its undisturbed time by its own measurement.
        known_ms: By earlier ones; 0 if there are none.

    >>> disturbance(0.75, 0.5), disturbance(0.51, 0.5), disturbance(0.75, 0.0)
    (0.5, 0.0, 0.0)
    """
    excess = undisturbed_ms / known_ms - 1 if known_ms else 0.0
    return excess if excess > DISTURBED else 0.0


def repeatable(ratio: float, interval: tuple[float, float], *, disturbance: float = 0.0) -> tuple[float, float]:
    """The 95 % interval in which ratios of other processes are expected, from that of one.

    Spreads are added up on a logarithmic scale, since they are factors: even the widest interval is above 0.

    >>> low, high = repeatable(0.5, (0.49, 0.5))
    >>> round(low, 4), round(high, 4)
    (0.4893, 0.5039)
    """
    beside = min(MOST_BESIDE_DISTURBANCE, BESIDE_DISTURBANCE * disturbance)
    spread = 1.96 * math.hypot(BETWEEN_PROCESSES, beside)
    below, above = math.log(ratio / interval[0]), math.log(interval[1] / ratio)
    return ratio * math.exp(-math.hypot(below, spread)), ratio * math.exp(math.hypot(above, spread))
