"""Small ONNX models of one kind of layer each, in float: what the benchmark measures and rewrites to other forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from autocompress.data import Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

LayerName = Literal["conv", "depthwise", "linear", "linear_rows", "attention"]

OPSET, IR_VERSION = 20, 9
"""As the models that a search ships."""

CHAIN = 3
"""Convolutions of the same width in a row, in a model of the staircase: what surrounds them weighs little then."""


@dataclass(frozen=True)
class Specimen:
    """A float model and what it reads.

    Args:
        model: With named nodes and the shape of every value. Its batch has any size, as in models that a search ships:
            where it is fixed, ONNX Runtime (1.32) makes a Gemm of MatMul and Add before it looks for integer kernels,
            and then finds none.
        example: One input, (1, …).
    """

    model: ModelProto
    example: Array


def specimen(layer: LayerName) -> Specimen:
    """The float model of a kind of layer; the same bytes every time."""
    return _BUILDERS[layer]()


def staircase_specimen(channels: int, *, size: int = 16) -> Specimen:
    """Convolutions of 3×3 from `channels` to as many, behind one that reads an image and before a global average.

    Args:
        channels: Width of the inner convolutions, from 1 up.
        size: Height and width of the image.
    """
    draft = _Draft((1, 3, size, size))
    draft.conv(channels)
    for _ in range(CHAIN):
        draft.relu()
        draft.conv(channels)
    draft.add("GlobalAveragePool", [draft.value], (1, channels, 1, 1))
    return draft.specimen()


class _Draft:
    """A graph in the making: a chain of nodes, of which the last gives `value` in `shape`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._rng = np.random.default_rng(0)
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []
        self._shapes: dict[str, tuple[int, ...]] = {"input": shape}
        self.value = "input"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the latest value."""
        return self._shapes[self.value]

    def add(self, operator: str, inputs: Sequence[str], shape: tuple[int, ...], **attributes: Any) -> str:
        """Append a node; returns the name of its result, which is the latest value."""
        from onnx import helper

        name = f"{operator.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        self._shapes[name] = shape
        self.value = name
        return name

    def constant(self, values: Array) -> str:
        """Append a constant; returns its name."""
        from onnx import numpy_helper

        name = f"k{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, *shape: int) -> str:
        """Append a constant of normal numbers that keeps the size of what is multiplied with it."""
        fan_in = math.prod(shape[1:]) or 1
        return self.constant((self._rng.standard_normal(shape) / math.sqrt(fan_in)).astype(np.float32))

    def conv(self, channels: int, *, kernel: int = 3, depthwise: bool = False) -> None:
        """A convolution that keeps height and width."""
        batch, given, *size = self.shape
        groups = given if depthwise else 1
        weights = [self.weight(channels, given // groups, kernel, kernel), self.weight(channels)]
        self.add(
            "Conv",
            [self.value, *weights],
            (batch, channels, *size),
            pads=[kernel // 2] * 4,
            kernel_shape=[kernel, kernel],
            group=groups,
        )

    def relu(self) -> None:
        """Zero where the latest value is negative."""
        self.add("Relu", [self.value], self.shape)

    def gemm(self, features: int) -> None:
        """A linear layer on rows, as torch exports it."""
        rows, given = self.shape
        self.add("Gemm", [self.value, self.weight(features, given), self.weight(features)], (rows, features), transB=1)

    def matmul(self, features: int, source: str = "") -> str:
        """A linear layer on (1, rows, features) of `source` or the latest value, as torch exports it."""
        source = source or self.value
        *rows, given = self._shapes[source]
        matrix = self.constant((self._rng.standard_normal((given, features)) / math.sqrt(given)).astype(np.float32))
        product = self.add("MatMul", [source, matrix], (*rows, features))
        return self.add("Add", [self.weight(features), product], (*rows, features))

    def specimen(self) -> Specimen:
        """What has been put together, with the latest value as the output."""
        from onnx import TensorProto, helper

        infos = {
            name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape[1:]])
            for name, shape in self._shapes.items()
        }
        given, result = infos.pop("input"), infos.pop(self.value)
        graph = helper.make_graph(
            self._nodes, "specimen", [given], [result], self._constants, value_info=list(infos.values())
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        example = self._rng.standard_normal(self._shapes["input"]).astype(np.float32)
        return Specimen(model, example)


def _conv() -> Specimen:
    draft = _Draft((1, 64, 14, 14))
    draft.conv(64)
    draft.relu()
    draft.conv(64)
    draft.add("Add", [draft.value, "input"], draft.shape)
    draft.relu()
    return draft.specimen()


def _depthwise() -> Specimen:
    """Blocks as in MobileNetV2: alone, a depthwise convolution would be slower for the rounding around it."""
    narrow, wide = 32, 128
    draft = _Draft((1, narrow, 28, 28))
    for _ in range(2):
        shortcut = draft.value
        draft.conv(wide, kernel=1)
        draft.relu()
        draft.conv(wide, depthwise=True)
        draft.relu()
        draft.conv(narrow, kernel=1)
        draft.add("Add", [draft.value, shortcut], draft.shape)
    return draft.specimen()


def _linear() -> Specimen:
    draft = _Draft((1, 1024))
    draft.gemm(1024)
    draft.relu()
    draft.gemm(1024)
    return draft.specimen()


def _linear_rows() -> Specimen:
    draft = _Draft((1, 64, 256))
    draft.matmul(1024)
    draft.relu()
    draft.matmul(256)
    return draft.specimen()


def _attention() -> Specimen:
    rows, width, heads = 64, 256, 4
    each = width // heads
    draft = _Draft((1, rows, width))
    split = draft.constant(np.array([0, rows, heads, each], np.int64))
    joined = draft.constant(np.array([0, rows, width], np.int64))
    scale = draft.constant(np.array(1 / math.sqrt(each), np.float32))

    def projected(order: Sequence[int]) -> str:
        draft.matmul(width, "input")
        draft.add("Reshape", [draft.value, split], (1, rows, heads, each))
        shape = tuple(draft.shape[axis] for axis in order)
        return draft.add("Transpose", [draft.value], shape, perm=list(order))

    query, key, value = (projected(order) for order in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)))
    scores = draft.add("MatMul", [query, key], (1, heads, rows, rows))
    draft.add("Mul", [scores, scale], draft.shape)
    draft.add("Softmax", [draft.value], draft.shape, axis=-1)
    draft.add("MatMul", [draft.value, value], (1, heads, rows, each))
    draft.add("Transpose", [draft.value], (1, rows, heads, each), perm=[0, 2, 1, 3])
    draft.add("Reshape", [draft.value, joined], (1, rows, width))
    draft.matmul(width)
    return draft.specimen()


_BUILDERS: Mapping[LayerName, Callable[[], Specimen]] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "linear": _linear,
    "linear_rows": _linear_rows,
    "attention": _attention,
}

LAYERS: Mapping[LayerName, str] = {
    "conv": "two 3×3 convolutions with a shortcut, 64 channels, 14×14",
    "depthwise": "two blocks of 1×1, depthwise 3×3 and 1×1 convolutions, 32 and 128 channels, 28×28",
    "linear": "two linear layers, 1024 features, 1 row",
    "linear_rows": "two linear layers, 256 and 1024 features, 64 rows",
    "attention": "attention, 4 heads of 64, 64 rows",
}
"""What is measured of each kind of layer, in words."""
