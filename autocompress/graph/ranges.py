"""Ranges of activations: which part of what was seen 8 bits should cover."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from autocompress.data import Array

Calibration = Literal["minmax", "percentile", "entropy", "mse"]
CALIBRATIONS: tuple[str, ...] = get_args(Calibration)

BINS = 2048
LEVELS = 256
"""Numbers of 8 bits."""

OUTSIDE = 1e-4
"""Share of the values that `percentile` leaves outside, half on each side (99.99 %, Wu et al., 2020)."""

SHARES = np.linspace(0.1, 1.0, 91)
"""Shares of a range's ends that `mse` and `entropy` try."""

Range = tuple[float, float]
"""Least and largest value, 0 between them."""


@dataclass(frozen=True)
class Histogram:
    """How often values fell into equal bins between `low` and `high`, as (bins,)."""

    counts: Array
    low: float
    high: float

    @cached_property
    def centers(self) -> Array:
        """The middle of each bin, as (bins,)."""
        edges = np.linspace(self.low, self.high, len(self.counts) + 1)
        return np.asarray((edges[:-1] + edges[1:]) / 2)


def histogram_of(values: Array, low: float, high: float) -> Histogram:
    """The histogram of values that lie in [low, high]."""
    counts, _ = np.histogram(values, BINS, (low, high if high > low else low + 1.0))
    return Histogram(counts, low, high)


def range_of(histogram: Histogram, calibration: str) -> Range:
    """The range to quantize, within what was seen and widened to hold 0.

    Args:
        histogram: Of all values seen.
        calibration: minmax takes all of it; percentile leaves out the outermost 0.01 %; entropy takes the symmetric
            threshold that loses least information (Kullback-Leibler); mse that of least squared error, for each end.

    References:
        Migacz, "8-bit Inference with TensorRT", 2017. Wu et al., "Integer Quantization for Deep Learning Inference:
        Principles and Empirical Evaluation", 2020.
    """
    low, high = _FINDERS[calibration](histogram) if histogram.high > histogram.low else (histogram.low, histogram.high)
    return min(float(low), 0.0), max(float(high), 0.0)


def scale_and_zero(found: Range) -> tuple[float, int]:
    """Scale (float32) and zero point of u8 numbers that cover a range.

    >>> scale_and_zero((-1.0, 1.55))
    (0.009999999776482582, 100)
    """
    low, high = found
    scale = np.float32((high - low) / (LEVELS - 1))
    if scale < np.finfo(np.float32).tiny:  # nothing but zeros was seen
        return float(np.float32(1 / (LEVELS - 1))), 0
    return float(scale), int(np.clip(np.rint(-low / scale), 0, LEVELS - 1))


def _everything(histogram: Histogram) -> Range:
    return histogram.low, histogram.high


def _percentile(histogram: Histogram) -> Range:
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    below = np.cumsum(histogram.counts) / histogram.counts.sum()
    first, last = np.searchsorted(below, (OUTSIDE / 2, 1 - OUTSIDE / 2))
    return float(edges[first]), float(edges[min(last, len(histogram.counts) - 1) + 1])


def _entropy(histogram: Histogram) -> Range:
    """The threshold whose clipped distribution keeps most information when its values are rounded."""
    largest = max(abs(histogram.low), abs(histogram.high))
    magnitudes, _ = np.histogram(np.abs(histogram.centers), BINS, (0, largest), weights=histogram.counts)
    magnitudes[0] = magnitudes[1]  # zeros, half of all values behind a ReLU, are exact whatever the range
    levels = LEVELS if histogram.low >= 0 or histogram.high <= 0 else LEVELS // 2
    tried = [kept for kept in (round(share * BINS) for share in SHARES) if kept >= levels] or [BINS]
    threshold = min(tried, key=lambda kept: _divergence(magnitudes, kept, levels)) / BINS * largest
    return max(histogram.low, -threshold), min(histogram.high, threshold)


def _divergence(counts: Array, kept: int, levels: int) -> float:
    """Kullback-Leibler divergence of a distribution, clipped to its first bins, from itself rounded to levels."""
    clipped = counts[:kept].astype(np.float64)
    clipped[-1] += counts[kept:].sum()
    level = np.arange(kept) * levels // kept
    filled = counts[:kept] > 0
    sums = np.bincount(level, counts[:kept], levels)
    shares = np.bincount(level, filled, levels)
    rounded = np.where(filled, sums[level] / np.maximum(shares[level], 1), 0)
    p, q = _smoothed(clipped), _smoothed(rounded)
    return float((p * np.log(p / q)).sum())


def _smoothed(counts: Array) -> Array:
    """A distribution without zeros."""
    positive = counts + 1e-4 * max(counts.sum() / len(counts), 1e-12)
    return np.asarray(positive / positive.sum())


def _least_squares(histogram: Histogram) -> Range:
    """The ends of least squared error, one end after the other."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    for _ in range(2):
        high = min((share * max(histogram.high, 0.0) for share in SHARES), key=lambda end: _error(histogram, low, end))
        low = min((share * min(histogram.low, 0.0) for share in SHARES), key=lambda end: _error(histogram, end, high))
    return low, high


def _error(histogram: Histogram, low: float, high: float) -> float:
    """Squared error of rounding within a range, a twelfth of a step squared, and of what lies outside."""
    outside = histogram.centers - np.clip(histogram.centers, low, high)
    rounding = np.where(outside == 0, ((high - low) / (LEVELS - 1)) ** 2 / 12, 0)
    return float((histogram.counts * (np.square(outside) + rounding)).sum())


_FINDERS: Mapping[str, Callable[[Histogram], Range]] = {
    "minmax": _everything,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _least_squares,
}
