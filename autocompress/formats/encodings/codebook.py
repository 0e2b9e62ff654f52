"""Few different values."""

from __future__ import annotations

import numpy as np

from autocompress.data import Array
from autocompress.formats.encodings._base import (
    ENCODINGS,
    Encoded,
    Encoding,
    Writer,
    bit_patterns,
    cheapest,
)
from autocompress.formats.encodings._packing import fit, native_widths, write_native, write_planes
from autocompress.formats.encodings.float16 import Float16

MAX_VALUES = 256
SAMPLE = 4096
"""How many values are looked at first; more than `MAX_VALUES` different ones among them spare the sorting of all."""


@ENCODINGS.register
class Codebook(Encoding):
    """At most 256 different values, and for each place the index of its value.

    An index takes 2, 4 or 8 bits, for which ONNX has types, or just as many bits as are needed, which costs a few more
    nodes.

    References:
        Han et al., "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman
        Coding", 2016.
    """

    name = "codebook"

    def encode(self, tensor: Array, name: str, opset: int) -> Encoded | None:
        """The tensor as codebook and indices, in whichever width of an index takes the fewest bytes."""
        patterns = bit_patterns(tensor).ravel()
        if len(np.unique(patterns[:SAMPLE])) > MAX_VALUES:
            return None
        values, indices = np.unique(patterns, return_inverse=True)
        if len(values) > MAX_VALUES or (tensor.itemsize == 1 and len(values) > MAX_VALUES // 2):
            return None
        book, numbers = values.view(tensor.dtype), indices.astype(np.uint8).reshape(tensor.shape)
        bits = max(1, (len(values) - 1).bit_length())
        found = [_native(book, numbers, width, name, opset) for width in native_widths(bits, opset)]
        if bits not in native_widths(bits, opset) and fit(tensor.size, bits, opset):
            found.append(_planes(book, numbers, bits, name, opset))
        return min(found, key=lambda one: one.size_bytes)


def _native(book: Array, numbers: Array, bits: int, name: str, opset: int) -> Encoded:
    writer = Writer(name)
    stored = _write_book(writer, book, opset)
    writer.apply("Gather", stored, writer.cast(write_native(writer, numbers, bits), np.int32))
    return writer.finish()


def _planes(book: Array, numbers: Array, bits: int, name: str, opset: int) -> Encoded:
    writer = Writer(name)
    stored = _write_book(writer, book, opset)
    writer.apply("Gather", stored, writer.cast(write_planes(writer, numbers, bits, opset), np.int32))
    return writer.finish()


def _write_book(writer: Writer, book: Array, opset: int) -> str:
    return writer.include(cheapest(book, writer.part_name(), opset, [Float16()]))
