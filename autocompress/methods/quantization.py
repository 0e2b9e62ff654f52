"""Quantization: integers of 2 to 8 bits or 16-bit floats, chosen for each layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from autocompress.data import Array, batch_size_of
from autocompress.errors import InfeasiblePlan
from autocompress.graph.grids import is_clustered
from autocompress.graph.onnx_fields import attributes_of, replace_entries
from autocompress.graph.ranges import CALIBRATIONS, Range, histogram_of, range_of
from autocompress.graph.scopes import weight_nodes
from autocompress.graph.view import Layer, LayerView
from autocompress.methods._base import METHODS, CompressionMethod, Context, asked, said, values_of
from autocompress.methods._integer_weights import (
    Form,
    Weights,
    add_domain,
    blockwise,
    check_block,
    dynamic_product,
)
from autocompress.methods._qdq import Static, quantize_static, take_ranges
from autocompress.plan import Scalar, Settings, Stage
from autocompress.profile import HardwareProfile, KernelKind
from autocompress.space import Choice, MethodSpace, Suggest

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from torch import nn

FLOAT, STATIC, DYNAMIC = "fp32", "int8", "dynamic_int8"
WEIGHT_ONLY, BLOCKWISE, HALF = "weight_only", "nbits", "fp16"
PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "conv": (HALF, WEIGHT_ONLY, STATIC),
    "linear": (HALF, WEIGHT_ONLY, BLOCKWISE, STATIC, DYNAMIC),
    "attention": (HALF, WEIGHT_ONLY, BLOCKWISE, STATIC, DYNAMIC),
    "embedding": (HALF, WEIGHT_ONLY),
}
"""Layer kind to what layers of it can have instead of float; transposed convolutions have no integer kernel."""

FOLDED = (HALF, WEIGHT_ONLY)
"""Precisions whose weights become floats when the model is loaded: as fast as float, only smaller."""

DEFAULT_PRECISIONS = (FLOAT, WEIGHT_ONLY, STATIC, DYNAMIC)
BITS = range(2, 9)
BLOCK_BITS = (2, 4, 8)
BLOCK_SIZES = (32, 64, 128, 256)
"""What `MatMulNBits` takes; with blocks of 16 it takes 21 times as long as float at 2 bits."""

BLOCK_SIZE = 32

OBSERVED_SAMPLES = 64
"""Calibration samples that learned ranges start from."""

CHOICES: Mapping[str, tuple[Scalar, ...]] = {
    "precision": (FLOAT, *PRECISIONS["linear"]),
    "bits": tuple(BITS),
    "granularity": ("per_channel", "per_tensor"),
    "symmetric": (True, False),
    "calibration": CALIBRATIONS,
    "scales": ("observed", "learned"),
    "block_size": BLOCK_SIZES,
}
"""Every parameter with its values."""

SUITS: Mapping[str, tuple[str, ...]] = {
    "bits": (STATIC, DYNAMIC, WEIGHT_ONLY, BLOCKWISE),
    "granularity": (STATIC, DYNAMIC, WEIGHT_ONLY),
    "symmetric": (DYNAMIC, WEIGHT_ONLY),
    "calibration": (STATIC,),
    "scales": (STATIC, DYNAMIC, WEIGHT_ONLY, BLOCKWISE),
    "block_size": (BLOCKWISE,),
}
"""The precisions that a parameter means something to. Convolutions on integers have no kernel for weights that are not
symmetric, and blocks are symmetric."""


@METHODS.register
class Quantization(CompressionMethod):
    """Weights of 2 to 8 bits with u8 activations, static or dynamic, or float ones; or weights as 16-bit floats.

    Below 8 bits, and with learned scales, the weights are held to their grids while the model is trained; otherwise
    all happens in the exported graph. Fewer bits make the file smaller, not the model faster: kernels compute on 8.

    A layer left in float between two static ones is not float in the end: ONNX Runtime quantizes its weight when it
    loads the graph. What ran on integers is known only from the optimized graph.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        2018. Esser et al., "Learned Step Size Quantization", 2020.
    """

    name = "quantization"
    stage = Stage.NUMERICS
    parameters: ClassVar[Mapping[str, str]] = {
        "precision": (
            "fp32, int8 (ranges of activations from calibration), dynamic_int8 (linear layers only), weight_only "
            "(float activations), nbits (weights in blocks, linear layers only) or fp16 (weights alone)"
        ),
        "bits": "2 to 8 (default) for the weights; 2, 4 or 8 with nbits",
        "granularity": (
            "per_channel or per_tensor, which weights share a scale; by default per_tensor for dynamic_int8 with 8 "
            "bits, per_channel for all else"
        ),
        "symmetric": "true (default) or false (dynamic_int8 and weight_only): whether weights have no zero point",
        "calibration": "minmax (default), percentile, entropy or mse, for the ranges of activations of int8",
        "scales": "observed (default) or learned, with the ranges of int8's activations",
        "block_size": "inputs that share a scale with nbits: 32 (default), 64, 128 or 256",
    }

    def propose(self, model: LayerView, suggest: Suggest, space: MethodSpace, profile: HardwareProfile) -> Settings:
        """A precision for each layer, faster on this machine than float or as fast and smaller.

        Other parameters, such as the bits, are asked where the space names values for them.
        """
        wanted = values_of(space, "precision", DEFAULT_PRECISIONS)
        settings: dict[str, dict[str, Scalar]] = {}
        for layer in model.layers:
            worthwhile = _worthwhile(layer, profile)
            options = tuple(p for p in wanted if p in worthwhile)
            if options and space.admits(layer.name):
                precision = suggest(f"{self.name}/{layer.name}/precision", Choice((FLOAT, *options)))
                if precision != FLOAT:
                    settings[layer.name] = {
                        "precision": precision,
                        **self._details(layer, str(precision), suggest, space),
                    }
        return settings

    def withheld(self, model: LayerView, space: MethodSpace, profile: HardwareProfile) -> Mapping[str, str]:
        """Precisions that are slower than float here, and no smaller than those that are folded back to it."""
        named = {str(one) for one in values_of(space, "precision", DEFAULT_PRECISIONS)} - {FLOAT}
        kinds: dict[tuple[str, str, str], int] = {}
        for layer in model.layers:
            kernel = _kernel(layer)
            if kernel is None or not space.admits(layer.name):
                continue
            for precision in named - set(_worthwhile(layer, profile)):
                key = precision, kernel, _why_not(layer, precision, profile)
                kinds[key] = kinds.get(key, 0) + 1
        return {
            f"{precision} for {count} layer{'s' if count > 1 else ''} ({kind})": why
            for (precision, kind, why), count in sorted(kinds.items())
        }

    def _details(self, layer: Layer, precision: str, suggest: Suggest, space: MethodSpace) -> dict[str, Scalar]:
        """The other parameters of a layer, without those that are at their defaults."""
        given: dict[str, Scalar] = {}
        for parameter in SUITS:
            options = values_of(space, parameter, ())
            if precision in SUITS[parameter]:
                given |= asked(parameter, options, suggest, method=self.name, layer=layer.name)
        if precision == BLOCKWISE and given.get("bits", 8) not in BLOCK_BITS:
            given["bits"] = min(bits for bits in BLOCK_BITS if bits >= int(given["bits"]))
        return {parameter: value for parameter, value in given.items() if (parameter, value) != ("bits", 8)}

    def leaves(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> LayerView:
        """The layers with their precision and the bits of their weights."""

        def stored(layer: Layer) -> Layer:
            if layer.name not in settings:
                return layer
            precision = str(settings[layer.name]["precision"])
            bits = 16.0 if precision == HALF else float(settings[layer.name].get("bits", 8))
            return replace(layer, bits=min(layer.bits, bits), precision=FLOAT if precision in FOLDED else precision)

        return replace(model, layers=tuple(map(stored, model.layers)))

    def takes(self, parameter: str, value: Scalar) -> bool:
        """True for the values that `parameters` names; numbers and truth values are told apart."""
        return any(value == known and type(value) is type(known) for known in CHOICES[parameter])

    def check(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> None:
        """Refuse what a layer can't have, and parameters that mean nothing to its precision."""
        for name, setting in settings.items():
            precision = setting.get("precision")
            layers = model.beneath(name)
            known = sorted(set.intersection(*(set(_precisions(layer)) for layer in layers))) if layers else []
            if precision not in known:
                raise InfeasiblePlan(
                    f"{self.name}: layer {name!r}: {said(setting, 'precision')}; expected "
                    f"{' or '.join(known) or 'a layer that this method quantizes (conv, linear, attention, embedding)'}"
                )
            for parameter, value in setting.items():
                self._check_value(name, str(precision), parameter, value)

    def _check_value(self, layer: str, precision: str, parameter: str, value: Scalar) -> None:
        if not self.takes(parameter, value) or (
            precision == BLOCKWISE and parameter == "bits" and value not in BLOCK_BITS
        ):
            raise InfeasiblePlan(
                f"{self.name}: layer {layer!r}: {parameter} {value!r}; expected {self.parameters[parameter]}"
            )
        fitting = SUITS.get(parameter, (precision,))
        if precision not in fitting:
            raise InfeasiblePlan(
                f"{self.name}: layer {layer!r}: {parameter} {value!r} means nothing to precision {precision!r}; leave "
                f"it out, or choose {' or '.join(fitting)}"
            )

    def needs_recovery(self, settings: Settings) -> bool:
        """True for less than 8 bits and for learned scales: 8 bits alone cost next to none."""
        return any(_is_trained(setting) for setting in settings.values())

    def wants_integer_kernels(self, settings: Settings) -> bool:
        """True if a layer is to be computed on integers, not only stored in them."""
        return any(setting["precision"] not in (FLOAT, *FOLDED) for setting in settings.values())

    def apply(self, model: nn.Module, settings: Settings, context: Context) -> nn.Module:
        """Hold weights, and inputs whose ranges are learned, to what integers can say; others wait for `lower`."""
        from autocompress.graph.fake_quantization import quantize_weights

        for name, setting in settings.items():
            form = _form(setting, context.profile)
            _check_blocks(model, name, form)
            if _is_trained(setting):
                learned = setting.get("scales") == "learned"
                quantize_weights(model, name, form.layout, form.bits, symmetric=form.symmetric, learned=learned)
        for calibration in CALIBRATIONS:
            names = [name for name, setting in settings.items() if _learns_range(setting, calibration)]
            if names:
                _learn_ranges(model, names, calibration, context)
        return model

    def _check_effect(self, model: nn.Module, changed: nn.Module, settings: Settings) -> None:
        """Only what is trained changes before the export."""
        super()._check_effect(model, changed, {name: one for name, one in settings.items() if _is_trained(one)})

    def finalize(self, model: nn.Module) -> nn.Module:
        """Make the weights plain numbers of their grids, and leave of learned ranges what cuts off outside of them."""
        from autocompress.graph.constraints import release
        from autocompress.graph.fake_quantization import settle_inputs

        settle_inputs(model)
        return release(model)

    def verify(self, model: nn.Module, settings: Settings) -> None:
        """Hold weights that were trained against their bits.

        Raises:
            InfeasiblePlan: If a channel has more different weights than its bits can tell apart.
        """
        from autocompress.graph.fake_quantization import quantizable_weights

        for name, setting in settings.items():
            if not _is_trained(setting):
                continue
            form = _stored(setting)
            for module, parameter, axis in quantizable_weights(model, name):
                rows = form.layout(axis).rows(getattr(module, parameter).detach().cpu().numpy())
                most = max(len(np.unique(row)) for row in rows)
                if most > 2**form.bits:
                    raise InfeasiblePlan(
                        f"{self.name}: layer {name!r}: {most} different weights share a scale; expected at most "
                        f"{2**form.bits} with {form.bits} bits"
                    )

    def lower(self, graph: ModelProto, settings: Settings, context: Context) -> ModelProto:
        """Store the weights of the chosen layers in few bits, and compute on integers where that is wanted.

        Weights become int8 constants whatever their bits, with values in the range of the bits; the file is packed
        later. A weight that lies on a grid keeps its values exactly.

        Args:
            graph: A float graph; left as it is.
            settings: Layer name to its parameters.
            context: Calibration samples, and whether the machine needs weights of 7 bits.

        Returns:
            A checked graph.

        Raises:
            InfeasiblePlan: If a layer has no node with a constant weight, or one whose operator has no such kernel.
        """
        import onnx

        from autocompress.graph.fake_quantization import INPUT

        graph = copy.deepcopy(graph)
        ranges = take_ranges(graph, INPUT)
        nodes = {name: _Chosen(layer, settings[layer]) for name, layer in self._nodes(graph, settings).items()}
        static = {
            name: Static(_form(one.setting, context.profile), str(one.setting.get("calibration", "minmax")))
            for name, one in nodes.items()
            if one.precision == STATIC
        }
        if static:
            graph = quantize_static(graph, static, ranges, context.calibration)
        _rewrite(graph, {name: one for name, one in nodes.items() if name not in static}, context.profile)
        _clean(graph)
        onnx.checker.check_model(graph)
        _require_integers(graph, {name: one for name, one in nodes.items() if one.precision != HALF})
        return graph

    def _nodes(self, graph: ModelProto, settings: Settings) -> dict[str, str]:
        """The nodes of the chosen layers by name, each with its layer."""
        found: dict[str, str] = {}
        for layer, nodes in weight_nodes(graph, settings).items():
            if not nodes:
                raise InfeasiblePlan(
                    f"{self.name}: layer {layer!r}: no node of the exported graph multiplies with its weight"
                )
            for node in nodes:
                _check_kernel(node, layer, str(settings[layer]["precision"]))
                found[node.name] = layer
        return found


@dataclass(frozen=True)
class _Chosen:
    """The layer that a node belongs to, and its settings."""

    layer: str
    setting: Mapping[str, Scalar]

    @property
    def precision(self) -> str:
        return str(self.setting["precision"])


SLOW = "slower than fp32 on every machine that was measured"
"""Why a precision is not offered whatever the profile says."""


def _why_not(layer: Layer, precision: str, profile: HardwareProfile) -> str:
    """Why a layer is not offered a precision."""
    if layer.transposed or (precision == BLOCKWISE and layer.kind == "conv"):
        return "there is no such kernel"
    if precision in _precisions(layer) and _gains(layer, precision):
        return f"no faster than fp32 by the profile {profile.name!r}"
    return SLOW


def _precisions(layer: Layer) -> tuple[str, ...]:
    """What a layer can have instead of float."""
    known = PRECISIONS.get(layer.kind, ())
    return tuple(precision for precision in known if precision in FOLDED) if layer.transposed else known


def _worthwhile(layer: Layer, profile: HardwareProfile) -> tuple[str, ...]:
    """The precisions of a layer that are faster than float on a machine, or as fast and smaller."""
    kernel = _kernel(layer)
    fast = FOLDED + (profile.fast(kernel) if kernel else ())
    return tuple(precision for precision in _precisions(layer) if precision in fast and _gains(layer, precision))


def _kernel(layer: Layer) -> KernelKind | None:
    """The kernels that a layer runs on; None for layers that have none on integers."""
    if layer.kind == "conv":
        return "depthwise" if layer.groups > 1 and layer.shape[1] == 1 else "conv"
    return layer.kind if layer.kind in ("linear", "attention") else None


def _gains(layer: Layer, precision: str) -> bool:
    """False where a kernel is slower than float whatever the machine.

    Grouped convolutions that are not depthwise, and those over three axes, take 1.1 to 2.6 times as long on integers.
    `MatMulNBits` gains on one row alone (measured: 0.3-0.8 of float, with 16 rows 1.4-2).
    """
    if precision == STATIC and layer.kind == "conv":
        return len(layer.shape) < 5 and (layer.groups == 1 or layer.shape[1] == 1)
    if precision == BLOCKWISE:
        return layer.kind == "linear" and layer.macs == math.prod(layer.shape) and layer.shape[1] % BLOCK_SIZE == 0
    return True


def _is_trained(setting: Mapping[str, Scalar]) -> bool:
    """True if a layer's weights are held to a grid in training."""
    return setting.get("precision") != HALF and (int(setting.get("bits", 8)) < 8 or setting.get("scales") == "learned")


def _learns_range(setting: Mapping[str, Scalar], calibration: str) -> bool:
    """True if the range of a layer's input is learned, from a first one that is found in that way."""
    learned = setting.get("precision") == STATIC and setting.get("scales") == "learned"
    return learned and setting.get("calibration", "minmax") == calibration


def _stored(setting: Mapping[str, Scalar]) -> Form:
    """How the weights of a layer are stored, whatever the machine."""
    precision, bits = setting["precision"], int(setting.get("bits", 8))
    coarse = precision == DYNAMIC and bits == 8  # a scale for each column: an MLP 16 % slower, an encoder 3 %
    granularity = setting.get("granularity", "per_tensor" if coarse else "per_channel")
    block = int(setting.get("block_size", BLOCK_SIZE)) if precision == BLOCKWISE else 0
    return Form(bits, granularity == "per_channel", bool(setting.get("symmetric", True)), block)


def _form(setting: Mapping[str, Scalar], profile: HardwareProfile) -> Form:
    """How the weights of a layer are stored for a machine: its integer products may saturate beyond 7 bits."""
    form = _stored(setting)
    narrow = profile.reduce_range and setting["precision"] in (STATIC, DYNAMIC)
    return replace(form, bits=min(form.bits, 7)) if narrow else form


def _check_blocks(model: nn.Module, layer: str, form: Form) -> None:
    """Refuse blocks that do not fill the rows of a weight, and those that would break up a codebook."""
    from autocompress.graph.fake_quantization import quantizable_weights

    for module, parameter, _ in quantizable_weights(model, layer) if form.block else ():
        weight = getattr(module, parameter).detach()
        check_block(weight.shape[1], form, layer)
        if is_clustered(weight.cpu().numpy()):
            raise InfeasiblePlan(
                f"quantization: layer {layer!r} has a codebook, and the scales of {BLOCKWISE} would make many values "
                f"of its few; choose {WEIGHT_ONLY}, or leave one of the two out"
            )


def _learn_ranges(model: nn.Module, names: list[str], calibration: str, context: Context) -> None:
    """Round what some layers read, to ranges that start from calibration samples."""
    from autocompress.graph.fake_quantization import quantize_inputs

    size = batch_size_of(context.examples)
    batches = islice(context.calibration.batches(size), max(1, OBSERVED_SAMPLES // size))

    def find(values: Array) -> Range:
        return range_of(histogram_of(values, float(values.min()), float(values.max())), calibration)

    quantize_inputs(model, names, (batch.inputs for batch in batches), find)


def _check_kernel(node: NodeProto, layer: str, precision: str) -> None:
    attributes = attributes_of(node)
    plain = attributes.get("transA", 0) == 0 and attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
    if precision == STATIC and node.op_type not in ("Conv", "Gemm", "MatMul"):
        raise InfeasiblePlan(
            f"quantization: layer {layer!r}: {STATIC} has no kernel for {node.op_type} ({node.name!r}); choose "
            f"{WEIGHT_ONLY}"
        )
    if precision in (DYNAMIC, BLOCKWISE) and (node.op_type not in ("Gemm", "MatMul") or not plain):
        raise InfeasiblePlan(
            f"quantization: layer {layer!r}: {precision} needs a matrix product; {node.name!r} is {node.op_type}; "
            f"choose {WEIGHT_ONLY}"
        )


def _rewrite(graph: ModelProto, chosen: Mapping[str, _Chosen], profile: HardwareProfile) -> None:
    """Bring nodes to precisions other than int8, in place."""
    weights = Weights(graph)
    nodes: list[NodeProto] = []
    for node in list(graph.graph.node):
        one = chosen.get(node.name)
        if one is None:
            nodes.append(node)
        elif one.precision == WEIGHT_ONLY:
            nodes += [*weights.fold_back(node, _form(one.setting, profile)), node]
        elif one.precision == BLOCKWISE:
            nodes.append(blockwise(weights, node, _form(one.setting, profile), one.layer))
        elif one.precision == DYNAMIC:
            nodes += dynamic_product(weights, node, _form(one.setting, profile))
        else:
            weights.round_to_half(node, one.layer)
            nodes.append(node)
    if any(one.precision == BLOCKWISE for one in chosen.values()):
        add_domain(graph, "com.microsoft")
    replace_entries(graph.graph.node, nodes)


def _require_integers(graph: ModelProto, chosen: Mapping[str, _Chosen]) -> None:
    """Every chosen node reads a weight that is stored in whole numbers of its bits.

    Raises:
        InfeasiblePlan: If one does not.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    makers = {output: node for node in graph.graph.node for output in node.output}
    for node in graph.graph.node:
        one = chosen.get(node.name)
        if one is None:
            continue
        name = node.input[0 if node.op_type == "Gather" else 1]
        while name in makers:
            name = makers[name].input[0]
        values = numpy_helper.to_array(tensors[name])
        bits = _stored(one.setting).bits
        packed = values.dtype == np.uint8  # blocks, several numbers in a byte
        if not packed and (values.dtype != np.int8 or np.ptp(values.astype(int)) >= 2**bits):
            raise InfeasiblePlan(
                f"quantization: layer {one.layer!r}: the weight of {node.name!r} is {values.dtype}, from "
                f"{values.min()} to {values.max()}; expected whole numbers of {bits} bits"
            )


def _clean(graph: ModelProto) -> None:
    """Take out what nothing reads: float weights, constants, inferred shapes."""
    used = {name for node in graph.graph.node for name in node.input}
    used |= {value.name for value in graph.graph.output}
    replace_entries(
        graph.graph.node, [node for node in graph.graph.node if node.op_type != "Constant" or node.output[0] in used]
    )
    replace_entries(graph.graph.initializer, [one for one in graph.graph.initializer if one.name in used])
    del graph.graph.value_info[:]
