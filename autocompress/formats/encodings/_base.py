"""What an encoding is, and how one is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from autocompress.data import Array
from autocompress.registry import Registry

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto


@dataclass(frozen=True)
class Encoded:
    """A tensor as smaller tensors and the nodes that compute it from them.

    Args:
        initializers: What is stored.
        nodes: Constant, in the order in which they are computed; the last one gives the tensor. None for a tensor that
            is stored as it is.
        opset: The oldest operator set that has all of this, or a lower number if every one in use has it.
    """

    initializers: tuple[TensorProto, ...]
    nodes: tuple[NodeProto, ...]
    opset: int = 0

    @cached_property
    def size_bytes(self) -> int:
        """What this adds to a file."""
        return file_bytes((*self.initializers, *self.nodes))


class Encoding(ABC):
    """One way to store a tensor without loss; a subclass sets `name` and overrides `encode`.

    Its module is imported where ONNX is missing, so ONNX is imported inside the functions that need it.
    """

    name: ClassVar[str]

    @abstractmethod
    def encode(self, tensor: Array, name: str, opset: int) -> Encoded | None:
        """The tensor in this encoding, with every bit as it is.

        Args:
            tensor: Of float32, float16, int8 or uint8, at least one value; left as it is.
            name: What the last node's output is called; the names of all other values start with it.
            opset: The newest operator set that may be used, 20 or later.

        Returns:
            None if this encoding can't hold the tensor, or is clearly not smaller than the plain one.
        """


ENCODINGS: Registry[type[Encoding]] = Registry(
    "weight encoding", "autocompress.formats.encodings", group="autocompress.encodings"
)


class Writer:
    """Collects the tensors and nodes of an encoding.

    Args:
        name: Of the tensor to encode; all other names are made of it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.opset = 0
        self._initializers: list[TensorProto] = []
        self._nodes: list[NodeProto] = []

    def store(self, array: Array) -> str:
        """Store an array as it is; gives its name."""
        from onnx import numpy_helper

        self._initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), self._fresh()))
        return self._initializers[-1].name

    def store_raw(self, data: bytes, shape: Iterable[int], data_type: int, opset: int) -> str:
        """Store packed values of a type that numpy lacks; gives their name."""
        from onnx import TensorProto

        self.opset = max(self.opset, opset)
        self._initializers.append(TensorProto(name=self._fresh(), dims=shape, data_type=data_type, raw_data=data))
        return self._initializers[-1].name

    def apply(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; gives the name of its output."""
        from onnx import helper

        self._nodes.append(helper.make_node(operator, inputs, [self._fresh()], **attributes))
        return str(self._nodes[-1].output[0])

    def cast(self, value: str, kind: type[np.generic]) -> str:
        """Add a node that changes the type of a value."""
        from onnx import helper

        return self.apply("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))

    def include(self, part: Encoded) -> str:
        """Take over an encoded part; gives the name of its value."""
        self._initializers += part.initializers
        self._nodes += part.nodes
        self.opset = max(self.opset, part.opset)
        return str(part.nodes[-1].output[0] if part.nodes else part.initializers[-1].name)

    def part_name(self) -> str:
        """A name for an encoded part."""
        return self._fresh()

    def finish(self) -> Encoded:
        """What was written; the output of the last node gets the name of the tensor."""
        self._nodes[-1].output[0] = self.name
        return Encoded(tuple(self._initializers), tuple(self._nodes), self.opset)

    def _fresh(self) -> str:
        return f"{self.name}{len(self._initializers) + len(self._nodes)}_"


def plain(tensor: Array, name: str) -> Encoded:
    """The tensor as it is."""
    from onnx import numpy_helper

    return Encoded((numpy_helper.from_array(np.asarray(tensor, order="C"), name),), ())


def cheapest(tensor: Array, name: str, opset: int, encodings: Iterable[Encoding]) -> Encoded:
    """The tensor in the encoding that takes the fewest bytes, plain storage among them."""
    found = [one for encoding in encodings if (one := encoding.encode(tensor, name, opset)) is not None]
    return min([plain(tensor, name), *found], key=lambda one: one.size_bytes)


def file_bytes(entries: Iterable[TensorProto | NodeProto]) -> int:
    """What entries of a graph's lists take in a file: each itself, its length and a tag."""
    sizes = [entry.ByteSize() for entry in entries]
    return sum(1 + max(1, -(-size.bit_length() // 7)) + size for size in sizes)


def bit_patterns(tensor: Array) -> Array:
    """The values as unsigned integers of the same size, so that equal ones are equal in every bit."""
    return np.asarray(tensor, order="C").view(f"u{tensor.dtype.itemsize}")
