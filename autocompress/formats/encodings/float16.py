"""Floats of half the size."""

from __future__ import annotations

import numpy as np

from autocompress.data import Array
from autocompress.formats.encodings._base import ENCODINGS, Encoded, Encoding, Writer, bit_patterns


@ENCODINGS.register
class Float16(Encoding):
    """Values that are all exact in half precision, widened by a Cast."""

    name = "float16"

    def encode(self, tensor: Array, name: str, opset: int) -> Encoded | None:
        """The tensor as float16 numbers, if it is float32 and none of them changes by that."""
        if tensor.dtype != np.float32 or np.isnan(tensor).any():
            return None
        with np.errstate(over="ignore"):
            half = tensor.astype(np.float16)
        if not np.array_equal(bit_patterns(half.astype(np.float32)), bit_patterns(tensor)):
            return None
        writer = Writer(name)
        writer.cast(writer.store(half), np.float32)
        return writer.finish()
