"""Grids of a few bits: the one that fits best, and the one that is there already."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.data import Array
from autocompress.graph.grids import Grid, Layout, bounds, fit, grid_of, is_clustered

SEEDS = st.integers(0, 2**16)


def on_a_grid(seed: int, bits: int, shape: tuple[int, ...], axis: int | None, *, symmetric: bool = True) -> Array:
    """Random numbers of random grids."""
    rng = np.random.default_rng(seed)
    layout = Layout(axis)
    groups = layout.rows(np.zeros(shape)).shape[0]
    low, high = bounds(bits, symmetric=symmetric)
    zeros = rng.integers(low, high + 1, groups) if not symmetric else np.zeros(groups, int)
    grid = Grid(np.exp(rng.uniform(-9, 3, groups)).astype(np.float32), zeros, low, high)
    integers = rng.integers(low, high + 1, layout.rows(np.zeros(shape)).shape).astype(np.int8)
    return np.asarray(layout.back(grid.values(integers), shape))


@given(SEEDS, st.integers(2, 8), st.sampled_from([(4, 3, 2, 2), (6, 40), (3, 1, 3)]), st.sampled_from([None, 0, 1]))
def test_any_grid_is_found_again(seed: int, bits: int, shape: tuple[int, ...], axis: int | None) -> None:
    weight = on_a_grid(seed, bits, shape, axis)
    found = grid_of(weight, bits, axis)
    assert found is not None
    rows = Layout(axis).rows(weight)
    assert np.allclose(found.values(found.integers(rows)), rows, rtol=1e-5, atol=0)


@given(SEEDS, st.integers(2, 8))
def test_a_grid_with_a_zero_point_is_found_again(seed: int, bits: int) -> None:
    weight = on_a_grid(seed, bits, (5, 30), 0, symmetric=False)
    found = grid_of(weight, bits, 0, symmetric=False)
    assert found is not None
    assert np.allclose(found.values(found.integers(weight)), weight, rtol=1e-5, atol=0)


@given(SEEDS)
def test_a_grid_survives_the_rounding_of_another_factor(seed: int) -> None:
    weight = on_a_grid(seed, 4, (8, 9), 0)
    scaled = weight * np.random.default_rng(seed).uniform(0.1, 9, (8, 1)).astype(np.float32)
    assert grid_of(scaled, 4, 0) is not None


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_that_are_on_no_grid_have_none(bits: int) -> None:
    assert grid_of(np.random.default_rng(0).standard_normal((8, 16)), bits, 0) is None


@given(SEEDS, st.integers(2, 7))
def test_the_next_wider_grid_is_not_found_with_fewer_bits(seed: int, bits: int) -> None:
    steps = np.arange(2 ** (bits + 1)) - 2**bits
    weight = steps * np.exp(np.random.default_rng(seed).uniform(-5, 5))
    assert grid_of(weight[None], bits, 0) is None


@given(SEEDS, st.integers(2, 8), st.booleans(), st.sampled_from([None, 0]))
def test_a_fitted_grid_keeps_zeros_and_its_number_of_values(
    seed: int, bits: int, symmetric: bool, axis: int | None
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((4, 300)).astype(np.float32) * (rng.random((4, 300)) < 0.5)
    rows = Layout(axis).rows(weight)
    grid = fit(rows, bits, symmetric=symmetric)
    values = grid.values(grid.integers(rows))
    assert (values[rows == 0] == 0).all()
    assert max(len(np.unique(row)) for row in values) <= 2**bits
    assert grid_of(values, bits, 0 if axis == 0 else None, symmetric=symmetric) is not None


@given(SEEDS, st.integers(2, 6))
def test_a_fitted_grid_is_no_worse_than_the_whole_range(seed: int, bits: int) -> None:
    rows = np.random.default_rng(seed).laplace(size=(3, 200)).astype(np.float32)
    low, high = bounds(bits)
    whole = Grid((np.abs(rows).max(1) / high).astype(np.float32), np.zeros(3, int), low, high)
    errors = [np.square(grid.values(grid.integers(rows)) - rows).sum(1) for grid in (fit(rows, bits), whole)]
    assert (errors[0] <= errors[1] * 1.0001).all()


def test_channels_of_zeros_have_a_usable_scale() -> None:
    rows = np.stack([np.zeros(9), np.linspace(-1, 1, 9)]).astype(np.float32)
    for grid in (fit(rows, 8), fit(rows, 2), fit(rows * 0, 8), fit(rows, 4, symmetric=False)):
        assert (grid.scales > 0).all()
        assert (grid.values(grid.integers(rows[:1].repeat(2, 0))) == 0).all()


def test_rows_of_a_layout_are_put_back_in_place() -> None:
    weight = np.arange(48).reshape(2, 6, 4)
    for layout in (Layout(0), Layout(1), Layout(None)):
        assert (layout.back(layout.rows(weight), weight.shape) == weight).all()
    assert Layout(0, 3).rows(weight[0]).shape == (8, 3)
    assert (Layout(1).rows(weight)[2] == weight[:, 2].reshape(-1)).all()


def test_few_values_shared_by_many_weights_are_a_codebook() -> None:
    rng = np.random.default_rng(0)
    assert is_clustered(rng.choice([0.1, 0.2, -0.5], (16, 9)))
    assert not is_clustered(rng.standard_normal((64, 64)))
    assert not is_clustered(rng.standard_normal((1, 3)))
