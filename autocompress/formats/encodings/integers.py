"""Integers of a small range."""

from __future__ import annotations

import numpy as np

from autocompress.data import Array
from autocompress.formats.encodings._base import ENCODINGS, Encoded, Encoding, Writer
from autocompress.formats.encodings._packing import fit, native_widths, plane_widths, write_native, write_planes


@ENCODINGS.register
class Integers(Encoding):
    """8-bit integers of a small range in about as many bits as it takes.

    For 2 and 4 bits ONNX has types, signed and unsigned, that a Cast widens; other widths are put together of these.
    """

    name = "integers"

    def encode(self, tensor: Array, name: str, opset: int) -> Encoded | None:
        """The tensor in a smaller integer type, if it is int8 or uint8 and does not use all 8 bits."""
        if tensor.dtype not in (np.int8, np.uint8):
            return None
        signed = tensor.dtype == np.int8
        bits = max(_bits(int(tensor.min()), signed=signed), _bits(int(tensor.max()), signed=signed), 2)
        numbers = np.asarray(tensor, order="C").view(np.uint8)  # two's complement
        writer = Writer(name)
        for width in range(bits, 8):
            if width in native_widths(width, opset):
                stored = write_native(writer, numbers, width, signed=signed)
            elif fit(tensor.size, width, opset) and plane_widths(width, opset)[0] > 1:
                stored = write_planes(writer, numbers, width, opset, signed=signed)
            else:
                continue
            writer.cast(stored, tensor.dtype.type)
            return writer.finish()
        return None


def _bits(number: int, *, signed: bool) -> int:
    """Bits that a number takes, a sign included.

    >>> _bits(7, signed=True), _bits(-8, signed=True), _bits(7, signed=False)
    (4, 4, 3)
    """
    return int(number if number >= 0 else -number - 1).bit_length() + signed
