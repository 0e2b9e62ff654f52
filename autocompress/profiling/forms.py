"""The forms that a float model is measured in: those that a search writes, and others that show what to keep away from.

What a search writes is made by the functions of the compression methods themselves, so that the benchmark measures the
kernels that searches will run on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from autocompress.data import Array, ArraySplit, Batch
from autocompress.graph.onnx_fields import attributes_of, replace_entries
from autocompress.graph.scopes import weight_of
from autocompress.methods._integer_weights import (
    Form,
    Weights,
    add_domain,
    blockwise,
    dynamic_product,
    integers_of,
    output_axis,
)
from autocompress.methods._qdq import Static, quantize_static
from autocompress.profiling.models import LayerName, Specimen

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

FormName = Literal[
    "int8",
    "int8_dense",
    "int8_s8",
    "dynamic_int8",
    "nbits_8",
    "nbits_4",
    "weight_only",
    "dequantized_weights",
    "fp16",
]

FORMS: Mapping[FormName, str] = {
    "int8": "static int8, u8 activations, s8 weights",
    "int8_dense": "the same, depthwise convolutions in fp32",
    "int8_s8": "static int8, s8 activations",
    "dynamic_int8": "dynamic int8",
    "nbits_8": "blocks of 8 bits (MatMulNBits)",
    "nbits_4": "blocks of 4 bits (MatMulNBits)",
    "weight_only": "int8 weights, floats once loaded",
    "dequantized_weights": "int8 weights, DequantizeLinear alone",
    "fp16": "computed in fp16",
}
"""Every form in words."""

BLOCK = 32
"""Weights of a block, as a search has them by default."""


def forms_of(layer: LayerName) -> tuple[FormName, ...]:
    """The forms that a kind of layer has; blocks of few bits are for matrix products alone."""
    others: set[FormName] = {"nbits_8", "nbits_4"} if layer in ("conv", "depthwise") else set()
    if layer != "depthwise":
        others.add("int8_dense")
    return tuple(form for form in FORMS if form not in others)


def rewritten(specimen: Specimen, form: FormName) -> ModelProto:
    """A model in another form; the specimen is left as it is.

    Args:
        specimen: Float; every convolution and matrix product with a constant weight is rewritten.
        form: One of those that suit its layers.
    """
    model = _REWRITERS[form](copy.deepcopy(specimen.model), specimen.example)
    _drop_unused(model)
    return model


def _layers(model: ModelProto) -> list[NodeProto]:
    """The nodes that multiply with a constant weight."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if weight_of(node) in constants]


def _static(model: ModelProto, example: Array, *, depthwise: bool = True) -> ModelProto:
    layers = [node for node in _layers(model) if depthwise or attributes_of(node).get("group", 1) == 1]
    chosen = {node.name: Static(Form(), "minmax") for node in layers}
    samples = ArraySplit(Batch((example,), np.zeros(len(example))))
    return quantize_static(model, chosen, {}, samples)


def _static_signed(model: ModelProto, example: Array) -> ModelProto:
    """As static, with all that is u8 moved down by 128, which stands for the same numbers."""
    from onnx import TensorProto, numpy_helper

    model = _static(model, example)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.UINT8:
            moved = (numpy_helper.to_array(tensor).astype(np.int16) - 128).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    return model


def _each_layer(model: ModelProto, rewrite: Callable[[Weights, NodeProto], Iterable[NodeProto]]) -> ModelProto:
    """A model with each layer's node replaced by others."""
    weights, names = Weights(model), {node.name for node in _layers(model)}
    nodes: list[NodeProto] = []
    for node in list(model.graph.node):
        nodes += rewrite(weights, node) if node.name in names else [node]
    replace_entries(model.graph.node, nodes)
    return model


def _dynamic(model: ModelProto, example: Array) -> ModelProto:
    def rewrite(weights: Weights, node: NodeProto) -> list[NodeProto]:
        if node.op_type == "Conv":
            return _dynamic_conv(weights, node)
        return dynamic_product(weights, node, Form(per_channel=False))  # one scale, as a search has it by default

    return _each_layer(model, rewrite)


def _dynamic_conv(weights: Weights, node: NodeProto) -> list[NodeProto]:
    """A convolution on integers whose activation ranges are taken anew at each inference."""
    from onnx import TensorProto, helper

    name, result = node.name, node.output[0]
    one = integers_of(weights.array(weight_of(node)), Form(), 0)
    channels = (1, -1, 1, 1)
    scales = weights.add(one.scales.reshape(channels), f"{name}/weight_scale")
    bias = weights.add(weights.array(node.input[2]).reshape(channels), f"{name}/bias")
    values = {key: f"{name}/{key}" for key in ("u8", "scale", "zero", "sum", "float", "scales", "product")}
    factors = [values["u8"], weights.add(one.values, f"{name}/integers"), values["zero"]]
    conv = helper.make_node("ConvInteger", factors, [values["sum"]], name)
    conv.attribute.extend(node.attribute)
    return [
        helper.make_node(
            "DynamicQuantizeLinear", node.input[:1], [values["u8"], values["scale"], values["zero"]], f"{name}/Quantize"
        ),
        conv,
        helper.make_node("Cast", [values["sum"]], [values["float"]], f"{name}/Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [values["scale"], scales], [values["scales"]], f"{name}/Scales"),
        helper.make_node("Mul", [values["float"], values["scales"]], [values["product"]], f"{name}/Scale"),
        helper.make_node("Add", [values["product"], bias], [result], f"{name}/Bias"),
    ]


def _blocks(bits: int) -> Callable[[ModelProto, Array], ModelProto]:
    def rewrite(model: ModelProto, example: Array) -> ModelProto:
        form = Form(bits, block=BLOCK)
        model = _each_layer(model, lambda weights, node: [blockwise(weights, node, form, node.name)])
        add_domain(model, "com.microsoft")
        return model

    return rewrite


def _folded_weights(model: ModelProto, example: Array) -> ModelProto:
    return _each_layer(model, lambda weights, node: [*weights.fold_back(node, Form()), node])


def _dequantized_weights(model: ModelProto, example: Array) -> ModelProto:
    from onnx import helper

    def rewrite(weights: Weights, node: NodeProto) -> list[NodeProto]:
        name, axis = node.name, output_axis(node)
        one = integers_of(weights.array(weight_of(node)), Form(), axis)
        stored = [weights.add(one.values, f"{name}/integers"), weights.add(one.scales, f"{name}/scale")]
        target = f"{name}/weight"
        node.input[1] = target
        return [helper.make_node("DequantizeLinear", stored, [target], f"{name}/Dequantize", axis=axis), node]

    return _each_layer(model, rewrite)


def _half(model: ModelProto, example: Array) -> ModelProto:
    """The model with all of its floats, inputs and outputs among them, of 16 bits."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def _drop_unused(model: ModelProto) -> None:
    """Take out constants that nothing reads any more."""
    used = {name for node in model.graph.node for name in node.input}
    replace_entries(model.graph.initializer, [one for one in model.graph.initializer if one.name in used])


_REWRITERS: Mapping[FormName, Callable[[ModelProto, Array], ModelProto]] = {
    "int8": _static,
    "int8_dense": partial(_static, depthwise=False),
    "int8_s8": _static_signed,
    "dynamic_int8": _dynamic,
    "nbits_8": _blocks(8),
    "nbits_4": _blocks(4),
    "weight_only": _folded_weights,
    "dequantized_weights": _dequantized_weights,
    "fp16": _half,
}
