"""Splits: whatever the user has, seen as batches of numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from autocompress.data import ArraySplit, LoaderSplit, as_split, head, spread, take
from autocompress.errors import InvalidInput

INPUTS = np.arange(20, dtype=np.float32).reshape(10, 2)
TARGETS = np.arange(10)


def gathered(split: Any, size: int, seed: int | None = None) -> list[int]:
    """All targets in the order of the batches."""
    return [int(target) for batch in split.batches(size, seed=seed) for target in batch.targets]


SOURCES = {
    "arrays": (INPUTS, TARGETS),
    "a list of arrays": [INPUTS, TARGETS],
    "tensors": (torch.from_numpy(INPUTS), torch.from_numpy(TARGETS)),
    "a dataset": TensorDataset(torch.from_numpy(INPUTS), torch.from_numpy(TARGETS)),
    "a loader": DataLoader(TensorDataset(torch.from_numpy(INPUTS), torch.from_numpy(TARGETS)), batch_size=3),
    "a list of two batches": [(INPUTS[:6], TARGETS[:6]), (INPUTS[6:], TARGETS[6:])],
    "a list of three batches": [(INPUTS[s], TARGETS[s]) for s in (slice(0, 4), slice(4, 5), slice(5, 10))],
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_kind_of_source_gives_the_same_samples_again_and_again(source: Any) -> None:
    split = as_split(source, "train")
    for _ in range(2):
        batches = list(split.batches(4))
        assert all(1 <= len(batch) <= 4 for batch in batches)
        np.testing.assert_array_equal(np.concatenate([batch.inputs[0] for batch in batches]), INPUTS)
        np.testing.assert_array_equal(np.concatenate([batch.targets for batch in batches]), TARGETS)


def test_a_split_is_left_as_it_is() -> None:
    split = as_split((INPUTS, TARGETS), "train")
    assert as_split(split, "validation") is split


def test_a_model_of_several_inputs_gets_a_tuple() -> None:
    split = as_split(((INPUTS, TARGETS), TARGETS), "train")
    batch = next(iter(split.batches(3)))
    assert [array.shape for array in batch.inputs] == [(3, 2), (3,)]


def test_doubles_and_halves_become_floats_and_whole_numbers_stay() -> None:
    for kind in (np.float64, np.float16):
        split = as_split((INPUTS.astype(kind), TARGETS), "train")
        assert next(iter(split.batches(1))).inputs[0].dtype == np.float32
    assert next(iter(as_split((TARGETS, TARGETS), "train").batches(1))).inputs[0].dtype == TARGETS.dtype


@given(st.integers(1, 30), st.integers(0, 1000))
def test_shuffling_keeps_every_sample_and_follows_the_seed(size: int, seed: int) -> None:
    split = as_split((INPUTS, TARGETS), "train")
    order = gathered(split, size, seed)
    assert sorted(order) == list(range(10))
    assert order == gathered(split, size, seed)


def test_the_fingerprint_changes_with_any_value() -> None:
    other = INPUTS.copy()
    other[3, 1] += 1
    prints = [
        as_split(pair, "train").fingerprint() for pair in ((INPUTS, TARGETS), (other, TARGETS), (INPUTS, TARGETS[::-1]))
    ]
    assert len(set(prints)) == 3
    assert as_split((INPUTS.copy(), TARGETS.copy()), "train").fingerprint() == prints[0]


def test_a_loader_is_known_by_the_shapes_of_its_samples() -> None:
    loader = DataLoader(TensorDataset(torch.from_numpy(INPUTS), torch.from_numpy(TARGETS)), batch_size=3, shuffle=True)
    split = as_split(loader, "train")
    assert isinstance(split, LoaderSplit)
    assert split.fingerprint() == split.fingerprint()


@given(st.integers(1, 15))
def test_the_head_of_a_split_is_its_first_samples(count: int) -> None:
    for source in (SOURCES["arrays"], SOURCES["a list of three batches"]):
        assert gathered(head(as_split(source, "train"), count), 4) == list(range(min(count, 10)))


def test_samples_are_spread_over_arrays_by_seed_and_never_twice() -> None:
    split = as_split((INPUTS, TARGETS), "train")
    drawn = gathered(spread(split, 5), 5)
    assert len(set(drawn)) == 5
    assert drawn == gathered(spread(split, 5), 5)
    assert sorted(gathered(spread(split, 50), 5)) == list(range(10))


def test_any_first_part_of_spread_samples_is_a_draw_too_from_datasets_as_from_arrays() -> None:
    class Sorted:
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return np.full(2, index, np.float32), index // 100

    arrays = (np.arange(2000, dtype=np.float32).reshape(1000, 2), np.arange(1000) // 100)
    for source in (Sorted(), arrays):
        drawn = spread(as_split(source, "train"), 256)
        assert len(set(drawn.samples.targets[:64].tolist())) == 10


def test_samples_of_a_loader_are_its_first() -> None:
    assert gathered(spread(as_split(SOURCES["a list of three batches"], "train"), 5), 2) == [0, 1, 2, 3, 4]


def test_taking_batches_stops_after_as_many() -> None:
    assert [len(batch) for batch in take(as_split((INPUTS, TARGETS), "train"), 3, 2)] == [3, 3]


def a_generator() -> Iterator[Any]:
    """A source that can be read once only."""
    yield INPUTS, TARGETS


WRONG = {
    "no samples": ((INPUTS[:0], TARGETS[:0]), "train data: 0 samples; expected at least one"),
    "an empty dataset": (TensorDataset(torch.zeros(0, 2)), "train data: 0 samples; expected at least one"),
    "different lengths": ((INPUTS, TARGETS[:9]), r"inputs \(10, 2\) and targets \(9,\): expected the same number"),
    "a number for targets": ((INPUTS, 3), "expected the same number of samples"),
    "a dataset without targets": (TensorDataset(torch.from_numpy(INPUTS)), "an item is tuple; expected a pair"),
    "a generator": (a_generator(), "train data: generator; expected a pair .* wrap it in a list"),
    "text": ("train.csv", "train data: str; expected a pair"),
    "a dict": ({"x": INPUTS}, "train data: dict; expected a pair"),
    "nothing": (None, "train data: NoneType; expected a pair"),
}


@pytest.mark.parametrize(("source", "message"), WRONG.values(), ids=WRONG)
def test_a_source_that_is_no_data_is_refused(source: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        as_split(source, "train")


LOADERS = {
    "no batch": ([], "train data: the loader gave no batch"),
    "batches without targets": ([INPUTS, INPUTS, INPUTS], "train data: a batch is ndarray; expected a pair"),
    "a batch of different lengths": ([(INPUTS, TARGETS)] * 2 + [(INPUTS, TARGETS[:1])], "expected the same number"),
}


@pytest.mark.parametrize(("loader", "message"), LOADERS.values(), ids=LOADERS)
def test_a_loader_with_wrong_batches_is_refused_when_it_is_read(loader: Any, message: str) -> None:
    split = as_split(loader, "train")
    with pytest.raises(InvalidInput, match=message):
        list(split.batches(4))


def test_arrays_are_held_and_loaders_are_read() -> None:
    assert isinstance(as_split(SOURCES["arrays"], "train"), ArraySplit)
    assert isinstance(as_split(SOURCES["a loader"], "train"), LoaderSplit)
