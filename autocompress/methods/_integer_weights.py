"""Weights of an exported graph as whole numbers, in the forms that ONNX Runtime computes with or folds away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress.data import Array
from autocompress.errors import InfeasiblePlan
from autocompress.graph.grids import Grid, Layout, fit, grid_of, is_clustered
from autocompress.graph.onnx_fields import attributes_of
from autocompress.graph.scopes import weight_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto


@dataclass(frozen=True)
class Form:
    """How a weight is stored.

    Args:
        bits: 2 to 8.
        per_channel: True for a scale for each output channel (row, for embeddings).
        symmetric: True for whole numbers around 0.
        block: Length of the runs of inputs that have their own scale; 0 for none.
    """

    bits: int = 8
    per_channel: bool = True
    symmetric: bool = True
    block: int = 0

    def layout(self, axis: int) -> Layout:
        """Which weights share a scale, for a weight with that output axis."""
        return Layout(axis if self.per_channel else None, self.block)


@dataclass(frozen=True)
class Integers:
    """A weight as whole numbers.

    Args:
        values: int8, in the weight's shape.
        grid: What they stand for; a single group if all share a scale.
        axis: The axis whose entries are the groups; None for one group or for blocks.
    """

    values: Array
    grid: Grid
    axis: int | None

    @property
    def scales(self) -> Array:
        """() or (channels,), float32."""
        return self.grid.scales if self.axis is not None else np.asarray(self.grid.scales[0])

    @property
    def zeros(self) -> Array:
        """() or (channels,), int8."""
        zeros = self.grid.zeros.astype(np.int8)
        return zeros if self.axis is not None else np.asarray(zeros[0])

    def along(self, one: Array) -> Array:
        """A scale or zero of each channel in a shape that broadcasts against the weight."""
        if self.axis is None:
            return one
        return one.reshape([-1 if axis == self.axis else 1 for axis in range(self.values.ndim)])


def integers_of(weight: Array, form: Form, axis: int, least_scales: Array | None = None) -> Integers:
    """A weight as whole numbers: those it is made of if it lies on a grid, else of the grid that fits best.

    A weight whose values come from a codebook gets one scale, so that it keeps few different numbers.

    Args:
        weight: Floats.
        form: Bits, and which weights share a scale.
        axis: Output axis.
        least_scales: (channels,); what scales must not be below. Ones that are smaller are raised.
    """
    grid, shared = _grid(weight, form, axis)
    layout = Layout(None) if shared else form.layout(axis)
    if least_scales is not None:
        least = least_scales if len(grid.scales) > 1 else least_scales.max(keepdims=True)
        grid = Grid(np.maximum(grid.scales, least).astype(np.float32), grid.zeros, grid.low, grid.high)
    rows = grid.integers(np.asarray(layout.rows(weight)))
    values = np.ascontiguousarray(layout.back(rows, weight.shape))
    return Integers(values, grid, None if layout.block else layout.axis)


def _grid(weight: Array, form: Form, axis: int) -> tuple[Grid, bool]:
    """The grid of a weight, and whether all channels share it though each could have its own."""
    clustered = is_clustered(weight) and not form.block
    if clustered and (found := grid_of(weight, form.bits, None, symmetric=form.symmetric)):
        return found, True
    layout = form.layout(axis)
    if found := grid_of(weight, form.bits, layout.axis, symmetric=form.symmetric, block=layout.block):
        return found, False
    rows = Layout(None).rows(weight) if clustered else layout.rows(weight)
    return fit(rows, form.bits, symmetric=form.symmetric), clustered


def output_axis(node: NodeProto) -> int:
    """The output axis of the weight that a node reads."""
    if node.op_type == "Gemm":
        return 0 if attributes_of(node).get("transB", 0) else 1
    return {"Conv": 0, "Gather": 0, "ConvTranspose": 1, "MatMul": 1}[node.op_type]


class Weights:
    """Takes float weights of a graph apart and adds whole numbers to it; a weight read twice is stored once."""

    def __init__(self, graph: ModelProto) -> None:
        from onnx import numpy_helper

        self._graph = graph.graph
        self._to_array = numpy_helper.to_array
        self._from_array = numpy_helper.from_array
        self._tensors: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.graph.initializer}
        self._added: dict[tuple[str, str, bytes], str] = {}
        self._folded: dict[tuple[str, Form, int], str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def array(self, name: str) -> Array:
        """A constant of the graph by its name."""
        return np.asarray(self._to_array(self._tensors[name]))

    def add(self, array: Array, name: str) -> str:
        """Put a constant into the graph; returns its name, that of an equal one of the same purpose if there is any."""
        key = (name, str(array.dtype), array.tobytes())
        if key not in self._added:
            free = name
            while free in self._tensors:
                free += "_"
            tensor = self._from_array(np.asarray(array), free)
            self._tensors[free] = tensor
            self._graph.initializer.append(tensor)
            self._added[key] = free
        return self._added[key]

    def fold_back(self, node: NodeProto, form: Form) -> list[NodeProto]:
        """Have a node read a weight of whole numbers times scale, which the runtime folds to floats when it loads.

        Args:
            node: Reads the new weight afterwards.
            form: How the weight is stored.

        Returns:
            The nodes that make the weight; none if another node's are shared.
        """
        name = weight_of(node)
        key = (name, form, output_axis(node))
        known = self._folded.get(key)
        made = [] if known else self._folding_nodes(*key)
        self._folded[key] = known or made[-1].output[0]
        node.input[list(node.input).index(name)] = self._folded[key]
        return made

    def _folding_nodes(self, name: str, form: Form, axis: int) -> list[NodeProto]:
        from onnx import TensorProto, helper

        one = integers_of(self.array(name), form, axis)
        others = sum(other == name for other, *_ in self._folded)  # tied layers may store one weight in several forms
        unit = f"{name}/{form.bits}bit{f'_{others}' if others else ''}"
        nodes = [
            helper.make_node(
                "Cast",
                [self.add(one.values, f"{unit}/integers")],
                [f"{unit}/cast"],
                f"{unit}/Cast",
                to=TensorProto.FLOAT,
            )
        ]
        if not form.symmetric:
            zeros = self.add(one.along(one.zeros).astype(np.float32), f"{unit}/zeros")
            nodes.append(helper.make_node("Sub", [nodes[-1].output[0], zeros], [f"{unit}/sub"], f"{unit}/Sub"))
        scales = self.add(one.along(one.scales), f"{unit}/scales")
        nodes.append(helper.make_node("Mul", [nodes[-1].output[0], scales], [f"{unit}/weight"], f"{unit}/Mul"))
        return nodes

    def round_to_half(self, node: NodeProto, layer: str) -> None:
        """Have a node read its weight rounded to numbers that 16-bit floats can hold, kept as 32-bit floats.

        Raises:
            InfeasiblePlan: If a weight is too large for 16-bit floats.
        """
        name = weight_of(node)
        weight = self.array(name)
        largest = np.abs(weight).max(initial=0.0)
        if largest > np.finfo(np.float16).max:
            raise InfeasiblePlan(
                f"quantization: layer {layer!r}: fp16 holds numbers up to 65504; the layer has a weight of "
                f"{largest:.3g}; choose another precision"
            )
        rounded = self.add(weight.astype(np.float16).astype(np.float32), f"{name}/half")
        node.input[list(node.input).index(name)] = rounded


def blockwise(weights: Weights, node: NodeProto, form: Form, layer: str) -> NodeProto:
    """A matrix product as `MatMulNBits`, which reads blocks of few bits and rounds activations to 8 bits as it goes.

    Without rounded activations (`accuracy_level` 0) the kernels for 8 and 2 bits took 10-28 times as long as float.

    Raises:
        InfeasiblePlan: If the inputs of the layer are no multiple of the block.
    """
    from onnx import helper

    weight = weights.array(weight_of(node))
    matrix = np.ascontiguousarray(weight if output_axis(node) == 0 else weight.T)
    outputs, inputs = matrix.shape
    check_block(inputs, form, layer)
    one = integers_of(matrix, form, 0)
    packed = pack(one.values, form.bits).reshape(outputs, inputs // form.block, -1)
    values = [
        weights.add(packed, f"{node.name}/blocks"),
        weights.add(one.grid.scales, f"{node.name}/scales"),
    ]
    bias = ["", "", node.input[2]] if len(node.input) > 2 else []
    return helper.make_node(
        "MatMulNBits",
        [node.input[0], *values, *bias],
        list(node.output),
        node.name,
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=form.bits,
        block_size=form.block,
        accuracy_level=4,
    )


def check_block(inputs: int, form: Form, layer: str) -> None:
    """Refuse blocks that do not fill a row.

    Raises:
        InfeasiblePlan: If the inputs of the layer are no multiple of the block.
    """
    if inputs % form.block:
        raise InfeasiblePlan(
            f"quantization: layer {layer!r}: block_size {form.block} does not divide its {inputs} inputs; choose a "
            "smaller one, or weight_only"
        )


def add_domain(graph: ModelProto, domain: str) -> None:
    """Let a graph use the operators of a domain, in place."""
    from onnx import helper

    if all(known.domain != domain for known in graph.opset_import):
        graph.opset_import.append(helper.make_opsetid(domain, 1))


def dynamic_product(weights: Weights, node: NodeProto, form: Form) -> list[NodeProto]:
    """A matrix product on integers whose activation ranges are taken anew at each inference.

    ONNX Runtime's own `quantize_dynamic` splits every Gemm of the graph, static ones included; so this is written out
    in the form that it fuses to DynamicQuantizeMatMul.
    """
    from onnx import TensorProto, helper

    weight = weights.array(weight_of(node))
    matrix = np.ascontiguousarray(weight if output_axis(node) == 1 else weight.T)
    one = integers_of(matrix, form, 1)
    stored = [weights.add(one.values, f"{node.input[1]}/integers")]
    zeros = [] if form.symmetric else [weights.add(one.zeros, f"{node.name}/weight_zero")]
    scale = weights.add(one.scales, f"{node.name}/weight_scale")
    name, bias = node.name, node.input[2:]
    values = {key: f"{name}/{key}" for key in ("u8", "scale", "zero", "sum", "float", "scales", "product")}
    product = values["product"] if bias else node.output[0]
    factors = [values["u8"], *stored, values["zero"], *zeros]
    nodes = [
        helper.make_node(
            "DynamicQuantizeLinear",
            node.input[:1],
            [values["u8"], values["scale"], values["zero"]],
            f"{name}/Quantize",
        ),
        helper.make_node("MatMulInteger", factors, [values["sum"]], name),
        helper.make_node("Cast", [values["sum"]], [values["float"]], f"{name}/Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [values["scale"], scale], [values["scales"]], f"{name}/Scales"),
        helper.make_node("Mul", [values["float"], values["scales"]], [product], f"{name}/Scale"),
    ]
    return [*nodes, *(helper.make_node("Add", [product, one], node.output, f"{name}/Bias") for one in bias)]


def pack(values: Array, bits: int) -> Array:
    """Signed whole numbers as bytes, each moved up by half its range, the first in the lowest bits.

    >>> pack(np.array([-8, 7, 0, -1], np.int8), 4).tolist()
    [240, 120]
    """
    each = 8 // bits
    moved = (values.reshape(-1, each).astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    return np.asarray(np.bitwise_or.reduce(moved << shifts, axis=1), np.uint8)
