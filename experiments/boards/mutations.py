"""Random damage to a good ONNX model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

SHAPE = (1, 1, 8, 8)
"""Of the only input of the model."""

Random = np.random.Generator
Mutation = Callable[[Random], bytes]


@cache
def network() -> bytes:
    """A convolution, a pool and a linear layer, of a kilobyte; three fifths of it are weights."""
    random = np.random.default_rng(0)
    shapes = {"kernel": (4, 1, 3, 3), "bias": (4,), "weight": (16, 8), "offset": (8,)}
    weights = [numpy_helper.from_array(random.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["a"], name="conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MaxPool", ["b"], ["c"], name="pool", kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["c"], ["d"], name="flatten", axis=1),
        helper.make_node("Gemm", ["d", "weight", "offset"], ["e"], name="linear"),
        helper.make_node("Softmax", ["e"], ["y"], name="softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = made.SerializeToString()
    return content


def flipped(random: Random) -> bytes:
    """With 1 to 16 bytes changed."""
    content = bytearray(network())
    for place in random.integers(len(content), size=random.integers(1, 17)):
        content[place] ^= int(random.integers(1, 256))
    return bytes(content)


def flipped_outside_weights(random: Random) -> bytes:
    """With 1 to 3 bytes of what is no weight changed."""
    content = bytearray(network())
    weights = [tensor.raw_data for tensor in _parsed().graph.initializer]
    starts = [(content.index(raw), len(raw)) for raw in weights]
    inside = {place for start, length in starts for place in range(start, start + length)}
    outside = [place for place in range(len(content)) if place not in inside]
    for place in random.choice(outside, size=random.integers(1, 4)):
        content[place] ^= int(random.integers(1, 256))
    return bytes(content)


def truncated(random: Random) -> bytes:
    """The beginning, of any length."""
    return network()[: random.integers(len(network()))]


def swapped(random: Random) -> bytes:
    """With two chunks of up to 64 bytes in each other's place."""
    content = network()
    size = int(random.integers(1, 65))
    first, second = sorted(int(place) for place in random.choice(len(content) - 2 * size, size=2, replace=False))
    second += size
    one, other = content[first : first + size], content[second : second + size]
    return content[:first] + other + content[first + size : second] + one + content[second + size :]


def changed_field(random: Random) -> bytes:
    """With one to three fields of the message set to what they should not be."""
    model = _parsed()
    for change in random.choice(len(FIELDS), size=random.integers(1, 4)):
        FIELDS[change](model, random)
    content: bytes = model.SerializeToString()
    return content


MUTATIONS: Mapping[str, Mutation] = {
    "bytes flipped": flipped,
    "bytes flipped outside weights": flipped_outside_weights,
    "truncated": truncated,
    "chunks swapped": swapped,
    "fields changed": changed_field,
}

WRONG_NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 7, 2**16, 2**31 - 1, 2**31, 2**40, 2**63 - 1)
OPERATORS = ("Loop", "If", "Scan", "Resize", "Reshape", "Gather", "QLinearConv", "LSTM", "NoSuchOperator", "", "Conv")


def _parsed() -> ModelProto:
    model: ModelProto = ModelProto.FromString(network())
    return model


def _one(items: Any, random: Random) -> Any:
    return items[int(random.integers(len(items)))] if len(items) else None


def _number(random: Random) -> int:
    return int(_one(WRONG_NUMBERS, random))


def _operator(model: ModelProto, random: Random) -> None:
    if node := _one(model.graph.node, random):
        node.op_type = _one(OPERATORS, random)


def _domain(model: ModelProto, random: Random) -> None:
    if node := _one(model.graph.node, random):
        node.domain = _one(("com.microsoft", "ai.onnx.ml", "evil.so", "x" * 10_000), random)


def _edge(model: ModelProto, random: Random) -> None:
    node, other = _one(model.graph.node, random), _one(model.graph.node, random)
    if node and other and node.input and other.output:
        node.input[int(random.integers(len(node.input)))] = _one(other.output, random)


def _lost_edge(model: ModelProto, random: Random) -> None:
    if (node := _one(model.graph.node, random)) and node.input:
        del node.input[int(random.integers(len(node.input)))]


def _attribute(model: ModelProto, random: Random) -> None:
    attributes = [one for node in model.graph.node for one in node.attribute]
    if one := _one(attributes, random):
        if one.ints:
            one.ints[int(random.integers(len(one.ints)))] = _number(random)
        else:
            one.i = _number(random)


def _attribute_kind(model: ModelProto, random: Random) -> None:
    attributes = [one for node in model.graph.node for one in node.attribute]
    if one := _one(attributes, random):
        one.ClearField("type")
        one.s = b"\xff" * int(random.integers(1, 1000))


def _dimension(model: ModelProto, random: Random) -> None:
    if (tensor := _one(model.graph.initializer, random)) and tensor.dims:
        tensor.dims[int(random.integers(len(tensor.dims)))] = _number(random)


def _data_type(model: ModelProto, random: Random) -> None:
    if tensor := _one(model.graph.initializer, random):
        tensor.data_type = int(random.integers(0, 30))


def _data(model: ModelProto, random: Random) -> None:
    if tensor := _one(model.graph.initializer, random):
        tensor.raw_data = tensor.raw_data[: int(random.integers(len(tensor.raw_data) + 1))]


def _location(model: ModelProto, random: Random) -> None:
    if tensor := _one(model.graph.initializer, random):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=_one(("../log", "/etc/passwd", "log", "answer.json"), random))


def _lost_node(model: ModelProto, random: Random) -> None:
    if model.graph.node:
        del model.graph.node[int(random.integers(len(model.graph.node)))]


def _doubled_node(model: ModelProto, random: Random) -> None:
    if node := _one(model.graph.node, random):
        model.graph.node.add().CopyFrom(node)


def _many_nodes(model: ModelProto, random: Random) -> None:
    name = "x"
    for number in range(2000):
        model.graph.node.append(helper.make_node("Relu", [name], [f"more{number}"]))
        name = f"more{number}"


def _input_shape(model: ModelProto, random: Random) -> None:
    if shape := _one(model.graph.input, random):
        dims = shape.type.tensor_type.shape.dim
        dims[int(random.integers(len(dims)))].dim_value = _number(random)


def _version(model: ModelProto, random: Random) -> None:
    model.opset_import[0].version = _number(random)


def _format_version(model: ModelProto, random: Random) -> None:
    model.ir_version = _number(random)


def _output(model: ModelProto, random: Random) -> None:
    model.graph.output[0].name = _one(("x", "kernel", "none", "", "a"), random)


FIELDS: tuple[Callable[[ModelProto, Random], None], ...] = (
    _operator,
    _domain,
    _edge,
    _lost_edge,
    _attribute,
    _attribute_kind,
    _dimension,
    _data_type,
    _data,
    _location,
    _lost_node,
    _doubled_node,
    _many_nodes,
    _input_shape,
    _version,
    _format_version,
    _output,
)
