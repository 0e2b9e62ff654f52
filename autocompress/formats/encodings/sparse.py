"""Mostly one value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from autocompress.data import Array
from autocompress.formats.encodings._base import ENCODINGS, Encoded, Encoding, Writer, bit_patterns, cheapest
from autocompress.formats.encodings._packing import (
    NATIVE_OPSET,
    fit,
    write_bits,
    write_native,
    write_planes,
)
from autocompress.formats.encodings.codebook import Codebook
from autocompress.formats.encodings.constant import write_filled
from autocompress.formats.encodings.float16 import Float16
from autocompress.formats.encodings.integers import Integers

MIN_SHARE = 0.1
"""Share of the most frequent value from which on leaving it out can pay."""


@ENCODINGS.register
class Sparse(Encoding):
    """The places and values of all that is not zero, or not the most frequent value of integers.

    Places are stored as distances of 2 to 8 bits from one to the next, long ones in several steps, or as one bit for
    every place; the values in whichever other encoding is the smallest. Every shape on the way to the tensor is known
    from the graph alone: what has a shape that depends on values (NonZero, Compress) is not computed at load.

    References:
        Han et al., "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman
        Coding", 2016.
    """

    name = "sparse"

    def encode(self, tensor: Array, name: str, opset: int) -> Encoded | None:
        """The tensor as places and values, if at least `MIN_SHARE` of it is one value."""
        flat = tensor.reshape(-1)
        ground = _most_frequent(flat)
        places = np.flatnonzero(bit_patterns(flat) != bit_patterns(ground))
        if not 0 < len(places) <= (1 - MIN_SHARE) * flat.size or flat.size >= 2**31:
            return None
        value_bits = 8 * _values(flat[places], name, opset).size_bytes / len(places)
        found = [_by_mask(tensor, ground, places, name, opset)]
        found += [_by_distance(tensor, ground, way, name, opset) for way in _ways(places, value_bits, opset)]
        return min(found, key=lambda one: one.size_bytes)


def _most_frequent(flat: Array) -> Array:
    """(1,): zero for floats; integers may have another zero point."""
    if flat.itemsize > 1:
        return np.zeros(1, flat.dtype)
    most = int(np.bincount(flat.view(np.uint8), minlength=256).argmax())
    return np.array([most], np.uint8).view(flat.dtype)


def _values(values: Array, name: str, opset: int) -> Encoded:
    return cheapest(values, name, opset, [Float16(), Codebook(), Integers()])


def _by_mask(tensor: Array, ground: Array, places: Array, name: str, opset: int) -> Encoded:
    """One bit for each place; how many are set before it says which value it gets."""
    flat = tensor.reshape(-1)
    mask = np.zeros(flat.size, np.uint8)
    mask[places] = 1
    writer = Writer(name)
    line = writer.store(np.array([-1], np.int64))
    bits = writer.apply("Reshape", write_bits(writer, mask), line)
    if flat.size % 8:
        ends = [writer.store(np.array([end], np.int64)) for end in (0, flat.size)]
        bits = writer.apply("Slice", bits, *ends)
    numbers = writer.cast(bits, np.int32)
    ranks = writer.apply("CumSum", numbers, writer.store(np.array(0, np.int32)))
    book = writer.include(_values(np.concatenate((ground, flat[places])), writer.part_name(), opset))
    values = writer.apply("Gather", book, writer.apply("Mul", ranks, numbers))
    writer.apply("Reshape", values, writer.store(np.array(tensor.shape, np.int64)))
    return writer.finish()


@dataclass(frozen=True)
class _Way:
    """Distances (uint8) in a width of bits, and whether ONNX has a type for it."""

    distances: Array
    bits: int
    native: bool


def _ways(places: Array, value_bits: float, opset: int) -> Iterator[_Way]:
    """The best width of a distance among ONNX's types, and among all others."""
    found = [(_distances(places, bits), bits) for bits in range(2, 9)]
    native = [bits for bits, since in NATIVE_OPSET.items() if since <= opset]
    for kind in (True, False):
        ways = [_Way(distances, bits, kind) for distances, bits in found if (bits in native) == kind]
        yield _padded(min(ways, key=lambda way: len(way.distances) * (way.bits + value_bits)), opset)


def _padded(way: _Way, opset: int) -> _Way:
    """With steps of 0 at the end where bits have to fill bytes: the last place some times more."""
    if way.native or fit(len(way.distances), way.bits, opset):
        return way
    return replace(way, distances=np.pad(way.distances, (0, -len(way.distances) % 8)))


def _distances(places: Array, bits: int) -> Array:
    """Distances from each place to the next, uint8, the first from 0.

    A long one is several steps. The places on the way get a value like all others, the one that they had before: to
    tell them apart would take more nodes than it saves.
    """
    most = 2**bits - 1
    gaps = np.diff(places, prepend=0)
    steps = np.maximum(gaps - 1, 0) // most
    distances = np.full(int(steps.sum()) + len(gaps), most, np.uint8)
    distances[np.cumsum(steps + 1) - 1] = gaps - steps * most
    return distances


def _by_distance(tensor: Array, ground: Array, way: _Way, name: str, opset: int) -> Encoded:
    flat, distances = tensor.reshape(-1), way.distances
    writer = Writer(name)
    if way.native:
        stored = write_native(writer, distances, way.bits)
    else:
        stored = write_planes(writer, distances, way.bits, opset)
    numbers = writer.cast(stored, np.int32)
    places = writer.apply("CumSum", numbers, writer.store(np.array(0, np.int32)))
    values = writer.include(_values(flat[np.cumsum(distances, dtype=np.int64)], writer.part_name(), opset))
    filled = writer.apply("ScatterElements", write_filled(writer, (flat.size,), ground), places, values)
    writer.apply("Reshape", filled, writer.store(np.array(tensor.shape, np.int64)))
    return writer.finish()
