"""One value, everywhere."""

from __future__ import annotations

import numpy as np

from autocompress.data import Array
from autocompress.formats.encodings._base import ENCODINGS, Encoded, Encoding, Writer, bit_patterns


@ENCODINGS.register
class Constant(Encoding):
    """A tensor whose values are all the same, as its shape and that value."""

    name = "constant"

    def encode(self, tensor: Array, name: str, opset: int) -> Encoded | None:
        """The tensor as ConstantOfShape, if it holds one value."""
        patterns = bit_patterns(tensor).ravel()
        if (patterns != patterns[0]).any():
            return None
        writer = Writer(name)
        write_filled(writer, tensor.shape, tensor.reshape(-1)[:1])
        return writer.finish()


def write_filled(writer: Writer, shape: tuple[int, ...], value: Array) -> str:
    """Give a tensor of a shape that is filled with a value (1,)."""
    from onnx import numpy_helper

    sizes = writer.store(np.array(shape, np.int64))
    if value.dtype == np.float32 and not bit_patterns(value).any():
        return writer.apply("ConstantOfShape", sizes)  # what it gives by default
    return writer.apply("ConstantOfShape", sizes, value=numpy_helper.from_array(value))
