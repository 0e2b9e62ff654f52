"""Data splits seen as batches of numpy arrays, whatever they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from autocompress.errors import InvalidInput
from autocompress.user_code import user_code

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """Inputs of the model, in the order of its `forward`, and targets; all (samples, …)."""

    inputs: tuple[Array, ...]
    targets: Array

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: slice | Array) -> Batch:
        return Batch(tuple(array[index] for array in self.inputs), self.targets[index])


@runtime_checkable
class Split(Protocol):
    """A data split that can be gone through any number of times."""

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Batches of up to `size` samples; shuffled if a seed is given and the source allows it."""
        ...

    def fingerprint(self) -> str:
        """Hexadecimal digits that change with the data."""
        ...


@dataclass(frozen=True)
class ArraySplit:
    """A split held in arrays."""

    samples: Batch

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Batches of up to `size` samples, shuffled if a seed is given."""
        if seed is None:
            for start in range(0, len(self), size):
                yield self.samples[start : start + size]
            return
        order = np.random.default_rng(seed).permutation(len(self))
        for start in range(0, len(self), size):
            yield self.samples[order[start : start + size]]

    def fingerprint(self) -> str:
        """Digest of all values."""
        return _digest((*self.samples.inputs, self.samples.targets))


@dataclass(frozen=True)
class DatasetSplit:
    """A split held by a map-style dataset, which decodes and augments an item each time it is asked for it."""

    dataset: Any
    name: str

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Batches of up to `size` samples, shuffled if a seed is given."""
        return map(self.read, self.orders(size, seed=seed))

    def orders(self, size: int, *, seed: int | None = None) -> Iterator[Array]:
        """Numbers of the items of each batch."""
        count = len(self.dataset)
        order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
        for start in range(0, count, size):
            yield order[start : start + size]

    def read(self, items: Array) -> Batch:
        """The items of some numbers, which may be none."""
        return joined([self._item(int(item)) for item in items]) if len(items) else self._item(0)[:0]

    def fingerprint(self) -> str:
        """Digest of length, shapes and up to 200 targets; inputs may be augmented and differ each time."""
        indices = np.linspace(0, len(self.dataset) - 1, min(len(self.dataset), 200)).astype(int)
        items = [self._item(int(index)) for index in indices]
        shapes = [array.shape for array in items[0].inputs]
        return _digest((np.array(len(self.dataset)), *(item.targets for item in items)), extra=repr(shapes))

    def _item(self, index: int) -> Batch:
        return _one(user_code(lambda: self.dataset[index], f"reading {self.name} data, item {index}"), self.name)


@dataclass(frozen=True)
class LoaderSplit:
    """A split held by a loader: anything that can be iterated again and again and gives (inputs, targets)."""

    loader: Any
    name: str

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """The loader's batches, cut to at most `size` samples; the order is the loader's own."""
        del seed  # a loader shuffles by itself
        empty = True
        for item in self._items():
            batch = _as_batch(item, self.name)
            for start in range(0, len(batch), size):
                empty = False
                yield batch[start : start + size]
        if empty:
            raise InvalidInput(f"{self.name} data: the loader gave no batch; expected at least one (inputs, targets)")

    def _items(self) -> Iterator[Any]:
        doing, end = f"reading {self.name} data", object()
        items = user_code(lambda: iter(self.loader), doing)
        while (item := user_code(lambda: next(items, end), doing)) is not end:
            yield item

    def fingerprint(self) -> str:
        """Digest of shapes, types and the number of batches: what a loader that shuffles and augments keeps."""
        batch = next(self.batches(1))
        known = [(array.shape[1:], str(array.dtype)) for array in (*batch.inputs, batch.targets)]
        count = len(self.loader) if hasattr(self.loader, "__len__") else None
        return _digest((), extra=repr((known, count)))


def as_split(source: Any, name: str) -> Split:
    """A split from what the user has.

    Args:
        source: A pair (inputs, targets) of arrays or tensors, inputs a tuple where the model takes several; a
            `torch.utils.data.Dataset` of (inputs, target) items; or a `DataLoader`, or any other iterable that can be
            gone through again and again and gives (inputs, targets) batches.
        name: What messages call the split.

    Raises:
        InvalidInput: If it is none of these, empty, or its parts differ in length.
    """
    if isinstance(source, Split):
        return source
    if isinstance(source, tuple | list) and len(source) == 2 and not _is_batch_pair(source):
        batch = _as_batch(source, name)
        if not len(batch):
            raise InvalidInput(f"{name} data: 0 samples; expected at least one")
        _require_finite(batch, name)
        return ArraySplit(batch)
    if (
        hasattr(source, "__getitem__")
        and hasattr(source, "__len__")
        and not isinstance(source, tuple | list | dict | str)
    ):
        return _from_dataset(source, name)
    if hasattr(source, "__iter__") and not hasattr(source, "__next__") and not isinstance(source, str | dict):
        return LoaderSplit(source, name)
    raise InvalidInput(
        f"{name} data: {type(source).__name__}; expected a pair (inputs, targets) of arrays, a Dataset, or a "
        "DataLoader (a generator can be read once only: wrap it in a list)"
    )


def batch_size_of(examples: tuple[Array, ...]) -> int:
    """Samples of one inference: the first axis of its first input, 1 where there is none."""
    return len(examples[0]) if examples and examples[0].ndim else 1


def head(split: Split, count: int) -> ArraySplit:
    """The first `count` samples of a split, in memory."""
    batches: list[Batch] = []
    missing = count
    for batch in split.batches(count):
        batches.append(batch[:missing])
        missing -= len(batches[-1])
        if missing <= 0:
            break
    return ArraySplit(joined(batches))


def spread(split: Split, count: int, seed: int = 0) -> ArraySplit:
    """`count` samples drawn from a split, in the order of the draw, so that any number of the first is a fair draw too.

    Of a loader the first ones are taken, since it shuffles by itself or not at all.
    """
    if isinstance(split, LoaderSplit):
        return head(split, count)
    return ArraySplit(next(iter(split.batches(count, seed=seed))))


def _require_finite(batch: Batch, name: str) -> None:
    parts = {f"input {index}": array for index, array in enumerate(batch.inputs)} | {"targets": batch.targets}
    for what, array in parts.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise InvalidInput(f"{name} data: {what} holds {count} values that are NaN or infinite; clean them first")


def _is_batch_pair(source: Sequence[Any]) -> bool:
    """True for a list of two (inputs, targets) batches, which looks like a pair of arrays."""
    return isinstance(source, list) and all(isinstance(item, tuple | list) and len(item) == 2 for item in source)


def _from_dataset(dataset: Any, name: str) -> DatasetSplit | LoaderSplit:
    if not len(dataset):
        raise InvalidInput(f"{name} data: 0 samples; expected at least one")
    if hasattr(dataset, "batch_size") and hasattr(dataset, "__iter__"):
        return LoaderSplit(dataset, name)
    split = DatasetSplit(dataset, name)
    next(split.batches(1))  # refuses items that are no pair now, not in the middle of a search
    return split


def _one(item: Any, name: str) -> Batch:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InvalidInput(f"{name} data: an item is {type(item).__name__}; expected a pair (inputs, target)")
    inputs, target = item
    parts = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return Batch(tuple(as_array(part)[None] for part in parts), _targets(target)[None])


def _as_batch(item: Any, name: str) -> Batch:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InvalidInput(f"{name} data: a batch is {type(item).__name__}; expected a pair (inputs, targets)")
    inputs, targets = item
    parts = tuple(as_array(part) for part in (inputs if isinstance(inputs, tuple | list) else (inputs,)))
    batch = Batch(parts, _targets(targets))
    lengths = [array.shape[0] if array.ndim else -1 for array in (*parts, batch.targets)]
    if len(set(lengths)) != 1 or lengths[0] < 0:
        shapes = ", ".join(str(array.shape) for array in parts)
        raise InvalidInput(
            f"{name} data: inputs {shapes} and targets {batch.targets.shape}: expected the same number of samples "
            "in the first axis of each"
        )
    return batch


def as_array(value: Any) -> Array:
    """A numpy array from an array, a tensor or a number; doubles become floats, as models expect."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype in (np.float64, np.float16):
        return array.astype(np.float32)
    return array


def _targets(value: Any) -> Array:
    """Targets as an array; whole numbers become int64, as losses expect."""
    array = as_array(value)
    return array.astype(np.int64) if np.issubdtype(array.dtype, np.integer) else array


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches as one, in their order."""
    columns = zip(*(batch.inputs for batch in batches), strict=True)
    return Batch(tuple(np.concatenate(column) for column in columns), np.concatenate([b.targets for b in batches]))


def _digest(arrays: Sequence[Array], extra: str = "") -> str:
    total = hashlib.sha256(extra.encode())
    for array in arrays:
        total.update(f"{array.shape}{array.dtype}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]


def take(split: Split, size: int, count: int, *, seed: int | None = None) -> Iterator[Batch]:
    """The first `count` batches of a split."""
    return islice(split.batches(size, seed=seed), count)
