"""Whole numbers of a few bits each, stored without gaps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from autocompress.data import Array
from autocompress.formats.encodings._base import Writer

NATIVE_OPSET = {2: 25, 4: 21, 8: 0}
"""Widths in bits that ONNX has a type for, with the oldest operator set whose Cast takes it."""


def packed_bytes(numbers: Array, bits: int) -> bytes:
    """Numbers below 2**bits as a stream of bits, the lowest first, as ONNX packs its small types.

    >>> packed_bytes(np.array([1, 2, 3], np.uint8), 4).hex()
    '2103'
    """
    digits = (numbers.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(digits.astype(np.uint8), axis=None, bitorder="little").tobytes()


def write_native(writer: Writer, numbers: Array, bits: int, *, signed: bool = False) -> str:
    """Store numbers (uint8, any shape) in ONNX's type of 2, 4 or 8 bits; gives a value of that type.

    A signed type takes the numbers for two's complements.
    """
    from onnx import TensorProto

    if bits == 8:
        return writer.store(numbers)
    kind = getattr(TensorProto, f"{'' if signed else 'U'}INT{bits}")
    return writer.store_raw(packed_bytes(numbers, bits), numbers.shape, kind, NATIVE_OPSET[bits])


def write_bits(writer: Writer, bits: Array) -> str:
    """Store zeros and ones (uint8) eight to a byte; gives them as uint8, (…, 8), with zeros behind the last."""
    column = writer.store(np.packbits(bits, axis=None, bitorder="little").reshape(-1, 1))
    shifted = writer.apply("BitShift", column, writer.store(np.arange(8, dtype=np.uint8)), direction="RIGHT")
    return writer.apply("BitwiseAnd", shifted, writer.store(np.array(1, np.uint8)))


def write_planes(writer: Writer, numbers: Array, bits: int, opset: int, *, signed: bool = False) -> str:
    """Store numbers (uint8, any shape) of any width in bits; gives them as uint8 of their shape.

    The bits are split into planes of 4, 2 and 1 bits, as far as the operator set has types for them. Planes of 1 bit
    must fill whole bytes. If the numbers are two's complements, the highest plane, which must be wider than a bit, is
    stored as a signed type: the sign then fills the bits above.
    """
    total, top = "", bits
    for width in plane_widths(bits, opset):
        top -= width
        highest = signed and not total
        plane = _write_plane(writer, (numbers >> top) & (2**width - 1), width, signed=highest)
        if top:
            plane = writer.apply("BitShift", plane, writer.store(np.array(top, np.uint8)), direction="LEFT")
        total = writer.apply("BitwiseOr", total, plane) if total else plane
    return total


def plane_widths(bits: int, opset: int) -> list[int]:
    """Widths of the planes that numbers of so many bits are split into, the highest bits first.

    >>> plane_widths(7, 25), plane_widths(7, 21)
    ([4, 2, 1], [4, 1, 1, 1])
    """
    widths: list[int] = []
    for width in (4, 2, 1):
        if width == 1 or NATIVE_OPSET[width] <= opset:
            widths += [width] * ((bits - sum(widths)) // width)
    return widths


def fit(count: int, bits: int, opset: int) -> bool:
    """True if every plane of that many numbers fills whole bytes, where it has to."""
    return count % 8 == 0 or 1 not in plane_widths(bits, opset)


def _write_plane(writer: Writer, numbers: Array, bits: int, *, signed: bool) -> str:
    if bits > 1:
        return writer.cast(write_native(writer, numbers, bits, signed=signed), np.uint8)
    return writer.apply("Reshape", write_bits(writer, numbers), writer.store(np.array(numbers.shape, np.int64)))


def native_widths(bits: int, opset: int) -> Iterable[int]:
    """The narrowest type of an operator set that holds numbers of so many bits; none above 8."""
    return [width for width, since in NATIVE_OPSET.items() if bits <= width and since <= opset][:1]
