"""Ranges of activations from what was seen."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.data import Array
from autocompress.graph.ranges import CALIBRATIONS, histogram_of, range_of, scale_and_zero

SHAPES = st.sampled_from(["normal", "relu", "laplace", "negative", "constant", "outlier"])


def values_of(shape: str, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(4000)
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "laplace": rng.laplace(size=4000),
        "negative": -np.abs(normal) - 1,
        "constant": np.full(4000, 2.5),
        "outlier": np.append(normal, 60.0),
    }[shape]


def found(values: Array, calibration: str) -> tuple[float, float]:
    return range_of(histogram_of(values, values.min(), values.max()), calibration)


def error(values: Array, limits: tuple[float, float]) -> float:
    scale, zero = scale_and_zero(limits)
    rounded = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    return float(np.square(rounded - values).mean())


@given(SHAPES, st.integers(0, 2**16), st.sampled_from(CALIBRATIONS))
def test_every_range_lies_within_what_was_seen_and_holds_zero(shape: str, seed: int, calibration: str) -> None:
    values = values_of(shape, seed)
    low, high = found(values, calibration)
    assert min(values.min(), 0) - 1e-6 <= low <= 0 <= high <= max(values.max(), 0) + 1e-6
    assert high > low


@given(SHAPES, st.integers(0, 2**16))
def test_minmax_takes_everything(shape: str, seed: int) -> None:
    values = values_of(shape, seed)
    assert found(values, "minmax") == (min(values.min(), 0), max(values.max(), 0))


def test_the_zeros_behind_a_relu_do_not_draw_the_range_of_least_information_loss_to_them() -> None:
    values = np.maximum(np.random.default_rng(0).standard_normal(300_000), 0)
    assert error(values, found(values, "entropy")) <= 1.5 * error(values, found(values, "minmax"))


@settings(max_examples=30)
@given(SHAPES, st.integers(0, 2**16))
def test_mse_has_no_larger_error_than_minmax(shape: str, seed: int) -> None:
    values = values_of(shape, seed)
    assert error(values, found(values, "mse")) <= error(values, found(values, "minmax")) * 1.1 + 1e-12


def test_entropy_leaves_an_outlier_outside() -> None:
    assert found(values_of("outlier", 0), "entropy")[1] < 30


def test_percentile_leaves_a_ten_thousandth_outside() -> None:
    values = np.random.default_rng(0).laplace(size=200_000)
    low, high = found(values, "percentile")
    assert 2e-5 < ((values < low) | (values > high)).mean() < 2e-4


@given(st.floats(-1e4, 0), st.floats(0, 1e4))
def test_zero_is_a_number_of_its_own(low: float, high: float) -> None:
    scale, zero = scale_and_zero((low, high))
    assert scale > 0
    assert 0 <= zero <= 255
    assert (255 - zero) * scale >= high - scale
