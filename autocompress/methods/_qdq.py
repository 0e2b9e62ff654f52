"""Static quantization of a graph: QuantizeLinear and DequantizeLinear around nodes, which the runtime fuses."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autocompress.data import Array, Split
from autocompress.graph.onnx_fields import attributes_of, replace_entries
from autocompress.graph.ranges import Range, scale_and_zero
from autocompress.graph.scopes import weight_of
from autocompress.methods._calibration import calibrate
from autocompress.methods._integer_weights import Form, Integers, Weights, integers_of, output_axis

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

SHARING = frozenset(("MaxPool", "AveragePool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"))
"""Operators whose results have the scale of what they read."""

JOINING = frozenset(("Add", "Mul", "Concat"))
"""Operators that read several values."""

FOLLOWERS = SHARING | JOINING | {"Relu", "Clip", "LeakyRelu", "Sigmoid", "GlobalAveragePool"}
"""Operators that ONNX Runtime computes on integers if all their inputs are; they follow the layers before them."""

ACTIVATIONS = frozenset(
    (
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "Tanh",
        "Elu",
        "Selu",
        "HardSigmoid",
        "Softplus",
        "Softsign",
        "ThresholdedRelu",
    )
)
"""Operators that ONNX Runtime fuses into a Gemm before them."""

LARGEST_BIAS = 2**30
"""Whole number that a bias may reach; int32 holds twice as much."""


@dataclass(frozen=True)
class Static:
    """How a node is computed on integers: the form of its weight, and how the range of what it reads is found."""

    form: Form
    calibration: str


def quantize_static(
    graph: ModelProto, chosen: Mapping[str, Static], ranges: Mapping[str, Range], samples: Split
) -> ModelProto:
    """A graph whose chosen nodes, and those that can follow them, compute on integers.

    Matrix products give float: ONNX Runtime then fuses them with their bias, which is faster than another rounding,
    and logits keep their precision. Only a Gemm with an activation behind it gives integers: otherwise the two are
    fused to a float kernel that dequantizes the weight at each inference (measured: twice as slow as float).

    Args:
        graph: Float; changed in place where that changes no result.
        chosen: Convolutions and matrix products by the names of their nodes.
        ranges: Ranges of values that are known, by the names of the values. Where values share a scale, the one that
            holds all is taken.
        samples: What the other ranges are taken from.
    """
    rounded = _rounded(graph, set(chosen))
    _average_globally(graph, rounded)
    followers = _followers(graph, rounded)
    result, limits = _without_activations(graph, followers | rounded)
    methods = _methods(result, chosen, rounded, followers)
    shared = _shared(result, followers, set(methods))
    known: dict[str, Range] = {}
    for name, learned in ranges.items():
        source = shared.get(name, name)
        least, most = limits.get(source, learned)  # a learned range may reach beyond what a Clip, now gone, let through
        low, high = max(learned[0], least), min(learned[1], most)
        other = known.get(source, (low, high))
        known[source] = min(low, other[0]), max(high, other[1])
    wanted = {name: method for name, method in methods.items() if name not in shared and name not in known}
    found = calibrate(graph, wanted, samples) | known
    scales = {name: scale_and_zero(found[shared.get(name, name)]) for name in methods}
    _Rewriting(result, chosen, scales).carry_out(followers)
    return result


def _rounded(graph: ModelProto, names: set[str]) -> set[str]:
    """The nodes among some whose results are rounded to 8 bits: convolutions, and Gemm before an activation."""
    activated = {node.input[0] for node in graph.graph.node if node.op_type in ACTIVATIONS}
    return {
        node.name
        for node in graph.graph.node
        if node.name in names and (node.op_type == "Conv" or (node.op_type == "Gemm" and node.output[0] in activated))
    }


def _data(node: NodeProto) -> list[str]:
    """The inputs of a follower that are values, not shapes or limits."""
    return list(node.input if node.op_type in JOINING else node.input[:1])


def _followers(graph: ModelProto, rounded: set[str]) -> set[str]:
    """Nodes whose inputs are all rounded results, directly or through other such nodes."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    integer = {output for node in graph.graph.node if node.name in rounded for output in node.output}
    followers: set[str] = set()
    for node in graph.graph.node:
        if (
            node.op_type in FOLLOWERS
            and not integer.isdisjoint(_data(node))
            and integer | constants >= set(_data(node))
        ):
            followers.add(node.name)
            integer |= set(node.output)
    return followers


def _without_activations(graph: ModelProto, integer: set[str]) -> tuple[ModelProto, dict[str, Range]]:
    """A copy without the Relu and Clip nodes that rounding to u8 does: it cuts off at the ends of their range.

    Returns:
        The copy, and what the nodes that are gone let through, by the names of their results.
    """
    result = copy.deepcopy(graph)
    makers = {output: node for node in result.graph.node for output in node.output}
    readers = _readers(result)
    scalars = dict(_scalars(graph))
    limits: dict[str, Range] = {}
    kept = []
    for node in result.graph.node:
        source = makers.get(node.input[0]) if node.input else None
        follows = node.name in integer and source is not None and source.name in integer
        alone = len(readers.get(node.input[0], ())) == 1 if node.input else False
        if follows and alone and source and source.op_type not in SHARING and _cuts_off(node, scalars):
            source.output[0] = node.output[0]
            makers[node.output[0]] = source
            limits[node.output[0]] = _limits(node, scalars)
        else:
            kept.append(node)
    replace_entries(result.graph.node, kept)
    return result, limits


def _limits(node: NodeProto, scalars: Mapping[str, float]) -> Range:
    """The least and largest value that a Relu or a Clip with constant limits lets through."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    low, high = (*node.input[1:], "", "")[:2]
    return scalars.get(low, -math.inf), scalars.get(high, math.inf)


def _cuts_off(node: NodeProto, scalars: Mapping[str, float]) -> bool:
    """True for Relu, and for Clip if 0 is between its limits."""
    if node.op_type != "Clip":
        return node.op_type == "Relu"
    if not set(node.input[1:]) - {""} <= scalars.keys():
        return False
    low, high = _limits(node, scalars)
    return low <= 0 <= high


def _readers(graph: ModelProto) -> dict[str, list[str]]:
    """The nodes that read each value; the outputs of the graph count as read by it."""
    readers: dict[str, list[str]] = {value.name: ["graph"] for value in graph.graph.output}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    return readers


def _methods(graph: ModelProto, chosen: Mapping[str, Static], rounded: set[str], followers: set[str]) -> dict[str, str]:
    """The values to round, each with the way to find its range: that of the layer that reads it or was before it."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    before: dict[str, str] = {}
    methods: dict[str, str] = {}
    for node in graph.graph.node:
        own = (
            chosen[node.name].calibration
            if node.name in chosen
            else next((before[name] for name in node.input if name in before), "minmax")
        )
        before |= dict.fromkeys(node.output, own)
        if node.name in followers:
            values = [*(name for name in _data(node) if name not in constants), node.output[0]]
        elif node.name in chosen:
            values = [node.input[0], *(node.output if node.name in rounded else ())]
        else:
            continue
        for name in values:
            methods.setdefault(name, own)
    for node in graph.graph.node:
        if node.name in chosen:
            methods[node.input[0]] = chosen[node.name].calibration
    return methods


def _shared(graph: ModelProto, followers: set[str], rounded: set[str]) -> dict[str, str]:
    """Values that have the scale of another one, which a pooling or reshaping node makes them of."""
    sources: dict[str, str] = {}
    for node in graph.graph.node:
        if node.name in followers and node.op_type in SHARING and node.input[0] in rounded:
            sources[node.output[0]] = sources.get(node.input[0], node.input[0])
    return sources


class _Rewriting:
    """A graph on the way from float to integers; changes the graph it is given."""

    def __init__(
        self, graph: ModelProto, chosen: Mapping[str, Static], scales: Mapping[str, tuple[float, int]]
    ) -> None:
        self._graph = graph
        self._chosen = chosen
        self._scales = scales
        self._weights = Weights(graph)
        self._nodes: list[NodeProto] = []
        self._known: dict[tuple[str, ...], str] = {}

    def carry_out(self, followers: set[str]) -> None:
        """Put the new nodes in."""
        nodes = list(self._graph.graph.node)
        given = [value.name for value in self._graph.graph.input if value.name in self._scales]
        results = {value.name for value in self._graph.graph.output}
        for name in given:
            self._round(name, name, f"{name}/dequantized")
        for node in nodes:
            self._rewrite(node, followers)
            node.input[:] = [
                f"{name}/dequantized" if name in self._scales and name not in results else name for name in node.input
            ]
            self._nodes.append(node)
            for place, name in enumerate(node.output):
                if name in self._scales and name in results:
                    node.output[place] = f"{name}/float"
                    self._round(name, f"{name}/float", name)
                elif name in self._scales:
                    self._round(name, name, f"{name}/dequantized")
        replace_entries(self._graph.graph.node, self._nodes)

    def _round(self, name: str, source: str, target: str) -> None:
        from onnx import helper

        scale, zero = self._scales[name]
        constants = [
            self._weights.add(np.array(scale, np.float32), f"{name}/scale"),
            self._weights.add(np.array(zero, np.uint8), f"{name}/zero"),
        ]
        self._nodes += [
            helper.make_node("QuantizeLinear", [source, *constants], [f"{name}/u8"], f"{name}/QuantizeLinear"),
            helper.make_node("DequantizeLinear", [f"{name}/u8", *constants], [target], f"{name}/DequantizeLinear"),
        ]

    def _rewrite(self, node: NodeProto, followers: set[str]) -> None:
        """Have a node read whole numbers instead of float constants."""
        if node.name in self._chosen:
            self._layer(node, self._chosen[node.name].form)
        elif node.name in followers:
            for place, name in enumerate(_data(node)):
                if name in self._weights:
                    node.input[place] = self._constant(name)

    def _constant(self, name: str) -> str:
        """A constant that a follower reads, as u8."""
        array = self._weights.array(name)
        scale, zero = scale_and_zero((min(0.0, float(array.min())), max(0.0, float(array.max()))))
        values = np.clip(np.rint(array / np.float32(scale)) + zero, 0, 255).astype(np.uint8)
        return self._dequantized(f"{name}/u8", values, np.array(scale, np.float32), np.array(zero, np.uint8), None)

    def _layer(self, node: NodeProto, form: Form) -> None:
        weight, axis = self._weights.array(weight_of(node)), output_axis(node)
        bias = self._bias(node, weight.shape[axis])
        input_scale = np.float64(self._scales[node.input[0]][0])
        least = None if bias is None else np.abs(bias) / (input_scale * LARGEST_BIAS)
        one = integers_of(weight, form, axis, least)
        if bias is not None:
            node.input[2] = self._integer_bias(node, bias, one, input_scale)
        zero = None if node.op_type == "Conv" else one.zeros  # products without one are not fused
        node.input[1] = self._dequantized(f"{node.input[1]}/integers", one.values, one.scales, zero, one.axis)

    def _bias(self, node: NodeProto, channels: int) -> Array | None:
        """The bias that is added to the plain product, a constant (channels,); None if there is none."""
        attributes = attributes_of(node)
        scaled = attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0
        if len(node.input) < 3 or node.input[2] not in self._weights or scaled:
            return None
        bias = self._weights.array(node.input[2])
        return bias if bias.shape == (channels,) else None

    def _integer_bias(self, node: NodeProto, bias: Array, one: Integers, input_scale: np.float64) -> str:
        """The bias as int32 in steps of the product's."""
        scales = np.asarray(input_scale * one.scales.astype(np.float64), np.float32)
        values = np.rint(bias / scales).astype(np.int32)
        axis = None if one.axis is None else 0
        return self._dequantized(f"{node.name}/bias", values, scales, None, axis)

    def _dequantized(self, name: str, values: Array, scales: Array, zero: Array | None, axis: int | None) -> str:
        """A constant as whole numbers, and the value that a DequantizeLinear makes of it."""
        from onnx import helper

        constants = [self._weights.add(values, name), self._weights.add(scales, f"{name}/scale")]
        if zero is not None:
            constants.append(self._weights.add(zero, f"{name}/zero"))
        key = (*constants, str(axis))
        if key not in self._known:
            target = self._known[key] = f"{constants[0]}/{constants[1]}/dequantized"
            node = helper.make_node("DequantizeLinear", constants, [target], f"{constants[0]}/DequantizeLinear")
            if axis is not None:
                node.attribute.append(helper.make_attribute("axis", axis))
            self._nodes.append(node)
        return self._known[key]


def _average_globally(graph: ModelProto, rounded: set[str]) -> None:
    """Write the mean over all spatial axes of integer results as a global average pool, which has an integer kernel."""
    import onnx

    integer = rounded | _followers(graph, rounded)
    sources = {output for node in graph.graph.node if node.name in integer for output in node.output}
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.value_info}
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer} | {
        node.output[0]: attributes_of(node)["value"] for node in graph.graph.node if node.op_type == "Constant"
    }
    nodes = []
    for node in graph.graph.node:
        rank = ranks.get(node.input[0], 0) if node.input else 0
        if node.op_type == "ReduceMean" and node.input[0] in sources and _is_spatial(node, tensors, rank):
            nodes += _global_average(node)
        else:
            nodes.append(node)
    replace_entries(graph.graph.node, nodes)


def _is_spatial(node: NodeProto, tensors: dict[str, Any], rank: int) -> bool:
    """True if a ReduceMean runs over all axes but samples and channels."""
    from onnx import numpy_helper

    if rank < 3:
        return False
    given = attributes_of(node).get("axes", ())
    if len(node.input) > 1 and node.input[1] in tensors:
        given = numpy_helper.to_array(tensors[node.input[1]]).tolist()
    return sorted(axis % rank for axis in given) == list(range(2, rank))


def _global_average(node: NodeProto) -> list[NodeProto]:
    from onnx import helper

    if attributes_of(node).get("keepdims", 1):
        return [helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name)]
    pooled = f"{node.output[0]}_pooled"
    return [
        helper.make_node("GlobalAveragePool", node.input[:1], [pooled], node.name),
        helper.make_node("Flatten", [pooled], node.output, f"{node.name}/Flatten", axis=1),
    ]


def take_ranges(graph: ModelProto, marker: str) -> dict[str, Range]:
    """Take the Clip nodes out of a graph that carry learned ranges, in place.

    Args:
        graph: Loses the nodes.
        marker: What a scope of their names is, or begins with before `_1`, `_2` and so on.

    Returns:
        The range of each value that was clipped; where several were, the one that holds all.
    """
    constants, marked = dict(_scalars(graph)), re.compile(rf"(^|/){marker}(_\d+)?/")
    ranges: dict[str, Range] = {}
    source: dict[str, str] = {}
    kept = []
    for node in graph.graph.node:
        node.input[:] = [source.get(name, name) for name in node.input]
        if node.op_type == "Clip" and marked.search(node.name):
            low, high = constants[node.input[1]], constants[node.input[2]]
            known = ranges.get(node.input[0], (0.0, 0.0))
            ranges[node.input[0]] = min(low, known[0]), max(high, known[1])
            source[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    replace_entries(graph.graph.node, kept)
    return ranges


def _scalars(graph: ModelProto) -> Iterator[tuple[str, float]]:
    """The constants of a graph that hold a single number."""
    from onnx import numpy_helper

    for tensor in graph.graph.initializer:
        if not tensor.dims or list(tensor.dims) == [1]:
            yield tensor.name, float(numpy_helper.to_array(tensor).reshape(()))
    for node in graph.graph.node:
        if node.op_type == "Constant" and "value" in (known := attributes_of(node)):
            array = numpy_helper.to_array(known["value"])
            if array.size == 1:
                yield node.output[0], float(array.reshape(()))
