"""Quantization to 8 bits, layer by layer, in the exported graph."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from autocompress.data import Array, Split
from autocompress.errors import InfeasiblePlan
from autocompress.graph.scopes import weight_nodes
from autocompress.graph.view import Layer, LayerView
from autocompress.methods._base import METHODS, CompressionMethod, Context, values_of
from autocompress.plan import Scalar, Settings, Stage
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, MethodSpace, Suggest

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

FLOAT, STATIC, DYNAMIC = "fp32", "int8", "dynamic_int8"
KERNELS: Mapping[str, Literal["conv", "linear"]] = {"conv": "conv", "linear": "linear", "attention": "linear"}
"""Layer kind to the kernels it runs on."""

FOLLOWERS = frozenset(
    (
        *("Relu", "Clip", "LeakyRelu", "Sigmoid", "Add", "Mul"),
        *("MaxPool", "AveragePool", "GlobalAveragePool"),
        *("Concat", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"),
    )
)
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


@METHODS.register
class Quantization(CompressionMethod):
    """Static quantization (u8 activations, s8 weights for each channel) or dynamic, chosen for each layer.

    A layer left in float between two static ones is not float in the end: ONNX Runtime quantizes its weight when it
    loads the graph. What ran on integers is known only from the optimized graph.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        2018.
    """

    name = "quantization"
    stage = Stage.NUMERICS
    parameters: ClassVar[Mapping[str, str]] = {
        "precision": "fp32, int8 (ranges of activations from calibration) or dynamic_int8 (linear layers only)"
    }

    def propose(self, model: LayerView, suggest: Suggest, space: MethodSpace, profile: HardwareProfile) -> Settings:
        """A precision for each layer, among those that run faster than float on this machine."""
        wanted = values_of(space, "precision", (FLOAT, STATIC, DYNAMIC))
        settings: dict[str, dict[str, Scalar]] = {}
        for layer in model.layers:
            kernel = KERNELS.get(layer.kind)
            fast = profile.kernels.get(kernel, ()) if kernel else ()
            options = tuple(p for p in _precisions(layer) if p in fast and p in wanted)
            if options and space.admits(layer.name):
                precision = suggest(f"{self.name}/{layer.name}/precision", Choice((FLOAT, *options)))
                if precision != FLOAT:
                    settings[layer.name] = {"precision": precision}
        return settings

    def takes(self, parameter: str, value: Scalar) -> bool:
        """True for the precisions, fp32 among them."""
        return value in (FLOAT, STATIC, DYNAMIC)

    def check(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> None:
        """Refuse precisions that a layer can't have."""
        for name, setting in settings.items():
            precision = setting.get("precision")
            layers = [layer for layer in model.layers if f"{layer.name}.".startswith(f"{name}.")]
            known = sorted(set.intersection(*(set(_precisions(layer)) for layer in layers))) if layers else []
            if precision not in known:
                raise InfeasiblePlan(
                    f"{self.name}: layer {name!r}: precision {precision!r}; expected "
                    f"{' or '.join(known) or 'a layer that this method quantizes (conv, linear, attention)'}"
                )

    def needs_recovery(self, settings: Settings) -> bool:
        """False: 8 bits alone cost next to none."""
        return False

    def lower(self, graph: ModelProto, settings: Settings, context: Context) -> ModelProto:
        """Quantize the nodes of the chosen layers.

        Args:
            graph: A float graph; left as it is.
            settings: Layer name to its precision.
            context: Calibration samples, and whether the machine needs weights of 7 bits.

        Returns:
            A checked graph whose chosen layers have int8 weights.

        Raises:
            InfeasiblePlan: If a layer has no node with a constant weight, or one whose operator has no such kernel.
        """
        import onnx

        graph = copy.deepcopy(graph)
        static = self._nodes(graph, settings, STATIC)
        dynamic = self._nodes(graph, settings, DYNAMIC)
        if static:
            graph = _quantize_static(graph, static, context)
        if dynamic:
            _quantize_dynamic(graph, dynamic, reduce_range=context.profile.reduce_range)
        _clean(graph)
        onnx.checker.check_model(graph)
        self._verify(graph, static | dynamic)
        return graph

    def _nodes(self, graph: ModelProto, settings: Settings, precision: str) -> set[str]:
        """Names of the nodes to bring to a precision."""
        layers = [layer for layer, setting in settings.items() if setting["precision"] == precision]
        names: set[str] = set()
        for layer, nodes in weight_nodes(graph, layers).items():
            if not nodes:
                raise InfeasiblePlan(
                    f"{self.name}: layer {layer!r}: no node of the exported graph multiplies with its weight"
                )
            for node in nodes:
                (_check_dynamic if precision == DYNAMIC else _check_static)(node, layer)
            names |= {node.name for node in nodes}
        return names

    def _verify(self, graph: ModelProto, names: set[str]) -> None:
        """Every chosen node reads an int8 weight."""
        import onnx

        int8 = {tensor.name for tensor in graph.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
        sources = {node.output[0]: node.input[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
        nodes = {node.name: node for node in graph.graph.node}
        for name in sorted(names):
            weight = nodes[name].input[1]
            if sources.get(weight, weight) not in int8:
                raise InfeasiblePlan(f"{self.name}: the weight of node {name!r} did not become int8")


def _precisions(layer: Layer) -> tuple[str, ...]:
    """What a layer of that kind can have instead of float."""
    return {"conv": (STATIC,), "linear": (STATIC, DYNAMIC), "attention": (STATIC, DYNAMIC)}.get(layer.kind, ())


def _quantize_static(graph: ModelProto, names: set[str], context: Context) -> ModelProto:
    """Insert QuantizeLinear and DequantizeLinear around some nodes and those that can follow them.

    Matrix products give float: ONNX Runtime then fuses them with their bias, which is faster than another rounding,
    and logits keep their precision. Only a Gemm with an activation behind it gives integers: otherwise the two are
    fused to a float kernel that dequantizes the weight at each inference (measured: twice as slow as float).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    rounded = _rounded(graph, names)
    _average_globally(graph, rounded)
    names = names | _followers(graph, rounded)
    _clean(graph)
    add_pre_process_metadata(graph)  # else advice to run a simplifier is logged, which gains nothing here
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        onnx.save(graph, source)  # a graph given in memory would be emptied
        quantize_static(
            source,
            target,
            _CalibrationReader(graph, context.calibration),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=context.profile.reduce_range,
            nodes_to_quantize=sorted(names),
            op_types_to_quantize=sorted({node.op_type for node in graph.graph.node if node.name in names}),
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        quantized = onnx.load(target)
    _keep_float_outputs(quantized, {node.name for node in graph.graph.node if node.op_type == "Gemm"} - rounded)
    return quantized


def _rounded(graph: ModelProto, names: set[str]) -> set[str]:
    """The nodes among some whose results are rounded to 8 bits: convolutions, and Gemm before an activation."""
    activated = {node.input[0] for node in graph.graph.node if node.op_type in ACTIVATIONS}
    return {
        node.name
        for node in graph.graph.node
        if node.name in names and (node.op_type == "Conv" or (node.op_type == "Gemm" and node.output[0] in activated))
    }


def _keep_float_outputs(graph: ModelProto, names: set[str]) -> None:
    """Take the rounding away from the results of some nodes, in place."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    dropped = []
    for node in graph.graph.node:
        after = readers.get(node.output[0], []) if node.name in names else []
        if len(after) == 1 and after[0].op_type == "QuantizeLinear":
            (back,) = readers[after[0].output[0]]
            dropped += [after[0].name, back.name]
            node.output[0] = back.output[0]
    _keep(graph.graph.node, (node for node in graph.graph.node if node.name not in dropped))


def _followers(graph: ModelProto, rounded: set[str]) -> set[str]:
    """Nodes whose inputs are all rounded results, directly or through other such nodes."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    integer = {output for node in graph.graph.node if node.name in rounded for output in node.output}
    followers: set[str] = set()
    for node in graph.graph.node:
        data = node.input[:1] if node.op_type not in ("Add", "Mul", "Concat") else node.input
        if node.op_type in FOLLOWERS and not integer.isdisjoint(data) and integer | constants >= set(data):
            followers.add(node.name)
            integer |= set(node.output)
    return followers


def _average_globally(graph: ModelProto, rounded: set[str]) -> None:
    """Write the mean over all spatial axes of integer results as a global average pool, which has an integer kernel."""
    import onnx

    integer = rounded | _followers(graph, rounded)
    sources = {output for node in graph.graph.node if node.name in integer for output in node.output}
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.value_info}
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer} | {
        node.output[0]: _attributes(node)["value"] for node in graph.graph.node if node.op_type == "Constant"
    }
    nodes = []
    for node in graph.graph.node:
        rank = ranks.get(node.input[0], 0) if node.input else 0
        if node.op_type == "ReduceMean" and node.input[0] in sources and _is_spatial(node, tensors, rank):
            nodes += _global_average(node)
        else:
            nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def _is_spatial(node: NodeProto, tensors: dict[str, Any], rank: int) -> bool:
    """True if a ReduceMean runs over all axes but samples and channels."""
    from onnx import numpy_helper

    if rank < 3:
        return False
    given = _attributes(node).get("axes", ())
    if len(node.input) > 1 and node.input[1] in tensors:
        given = numpy_helper.to_array(tensors[node.input[1]]).tolist()
    return sorted(axis % rank for axis in given) == list(range(2, rank))


def _global_average(node: NodeProto) -> list[NodeProto]:
    from onnx import helper

    if _attributes(node).get("keepdims", 1):
        return [helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name)]
    pooled = f"{node.output[0]}_pooled"
    return [
        helper.make_node("GlobalAveragePool", node.input[:1], [pooled], node.name),
        helper.make_node("Flatten", [pooled], node.output, f"{node.name}/Flatten", axis=1),
    ]


class _CalibrationReader:
    """Feeds calibration samples to ONNX Runtime's quantizer, which asks for one batch after the other."""

    def __init__(self, graph: ModelProto, samples: Split) -> None:
        axis = graph.graph.input[0].type.tensor_type.shape.dim[0]
        self._names = [value.name for value in graph.graph.input]
        self._batches = self._feeds(samples, axis.dim_value)

    def _feeds(self, samples: Split, fixed: int) -> Iterator[dict[str, Array]]:
        for batch in samples.batches(fixed or 32):
            if not fixed or len(batch) == fixed:
                yield dict(zip(self._names, batch.inputs, strict=True))

    def get_next(self) -> dict[str, Array] | None:
        """The next batch, or None at the end."""
        return next(self._batches, None)


def _check_static(node: NodeProto, layer: str) -> None:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        raise InfeasiblePlan(
            f"quantization: layer {layer!r}: {STATIC} has no kernel for {node.op_type} ({node.name!r}); leave it out"
        )


def _check_dynamic(node: NodeProto, layer: str) -> None:
    attributes = _attributes(node)
    plain = attributes.get("transA", 0) == 0 and attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
    if node.op_type not in ("Gemm", "MatMul") or not plain:
        raise InfeasiblePlan(
            f"quantization: layer {layer!r}: {DYNAMIC} needs a matrix product; {node.name!r} is {node.op_type}; choose "
            f"{STATIC}"
        )


def _quantize_dynamic(graph: ModelProto, names: set[str], *, reduce_range: bool) -> None:
    """Replace matrix products by integer ones whose activation ranges are taken anew at each inference, in place.

    ONNX Runtime's own `quantize_dynamic` splits every Gemm of the graph, static ones included; so this is written out
    in the form that it fuses to DynamicQuantizeMatMul.
    """
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.graph.node:
        if node.name in names:
            weight, scale = _dynamic_weight(node, tensors[node.input[1]], reduce_range=reduce_range)
            graph.graph.initializer.extend((weight, scale))
            nodes += _dynamic_product(node, weight.name, scale.name)
        else:
            nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def _dynamic_weight(node: NodeProto, tensor: Any, *, reduce_range: bool) -> tuple[Any, Any]:
    """The weight (in, out) as int8 and its one scale, both as initializers.

    A scale for each column made an MLP of random weights 16 % slower (an encoder 3 %) and no more exact.
    """
    from onnx import numpy_helper

    weight = numpy_helper.to_array(tensor)
    if _attributes(node).get("transB", 0):
        weight = weight.T
    limit = 63 if reduce_range else 127
    scale = np.float32(max(np.abs(weight).max(), np.finfo(np.float32).tiny) / limit)
    integers = np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8)
    return (
        numpy_helper.from_array(np.ascontiguousarray(integers), f"{node.name}/weight_int8"),
        numpy_helper.from_array(np.array(scale), f"{node.name}/weight_scale"),
    )


def _dynamic_product(node: NodeProto, weight: str, scale: str) -> list[NodeProto]:
    from onnx import TensorProto, helper

    name, bias = node.name, node.input[2:]
    values = {key: f"{name}/{key}" for key in ("u8", "scale", "zero", "sum", "float", "scales", "product")}
    product = values["product"] if bias else node.output[0]
    nodes = [
        helper.make_node(
            "DynamicQuantizeLinear",
            node.input[:1],
            [values["u8"], values["scale"], values["zero"]],
            f"{name}/Quantize",
        ),
        helper.make_node("MatMulInteger", [values["u8"], weight, values["zero"]], [values["sum"]], name),
        helper.make_node("Cast", [values["sum"]], [values["float"]], f"{name}/Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [values["scale"], scale], [values["scales"]], f"{name}/Scales"),
        helper.make_node("Mul", [values["float"], values["scales"]], [product], f"{name}/Scale"),
    ]
    return [*nodes, *(helper.make_node("Add", [product, one], node.output, f"{name}/Bias") for one in bias)]


def _clean(graph: ModelProto) -> None:
    """Take out what nothing reads: float weights, constants, inferred shapes, notes of the quantizer."""
    used = {name for node in graph.graph.node for name in node.input}
    used |= {value.name for value in graph.graph.output}
    _keep(graph.graph.node, (node for node in graph.graph.node if node.op_type != "Constant" or node.output[0] in used))
    _keep(graph.graph.initializer, (tensor for tensor in graph.graph.initializer if tensor.name in used))
    _keep(graph.metadata_props, (entry for entry in graph.metadata_props if not entry.key.startswith("onnx.")))
    del graph.graph.value_info[:]


def _keep(field: Any, entries: Iterable[Any]) -> None:
    kept = list(entries)
    del field[:]
    field.extend(kept)


def _attributes(node: NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
