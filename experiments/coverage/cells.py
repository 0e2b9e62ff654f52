"""One cell of the table: a compression of one architecture, exported and held against torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from autocompress.data import Array, Split, as_split
from autocompress.devices.detection import detect_profile
from autocompress.errors import ConversionError, InfeasiblePlan
from autocompress.formats import onnx_export, onnx_runtime, parity
from autocompress.formats.parity import Parity
from autocompress.graph.attention import expand_attention
from autocompress.graph.inspect import layer_view, used_layers
from autocompress.graph.view import LayerView
from autocompress.methods import METHODS, Context
from autocompress.plan import Scalar, Settings
from autocompress.profile import HardwareProfile
from autocompress.space import MethodSpace, policy_suggest
from autocompress.task import Predict
from experiments.coverage.architectures import Architecture, build

Change = Callable[[LayerView, HardwareProfile], Settings]


def half_the_channels(view: LayerView, profile: HardwareProfile) -> Settings:
    """Half of the channels or heads of every group."""
    return _proposed("channel_pruning", "pruning_ratio", (0, 0.5), view, profile)


def half_the_rank(view: LayerView, profile: HardwareProfile) -> Settings:
    """Half of the full rank, of every layer whose factors are smaller then."""
    return _proposed("low_rank", "rank_ratio", (1, 0.5), view, profile)


def all_int8(view: LayerView, profile: HardwareProfile) -> Settings:
    """Every convolution and linear layer on integers, also where a search would not offer it since float is faster."""
    del profile
    return {layer.name: {"precision": "int8"} for layer in view.layers if layer.kind in ("conv", "linear")}


def _proposed(
    method: str, parameter: str, values: tuple[Scalar, ...], view: LayerView, profile: HardwareProfile
) -> Settings:
    policy = policy_suggest({f"{method}/{parameter}": values[-1]})
    space = MethodSpace({parameter: values})
    return METHODS[method]().propose(view, lambda name, knob: policy(f"original/{name}", knob), space, profile)


CELLS: Mapping[str, tuple[str, Change]] = {
    "half the channels or heads": ("channel_pruning", half_the_channels),
    "int8": ("quantization", all_int8),
    "half rank": ("low_rank", half_the_rank),
}
"""Cell to its method and what it is told."""

EXPORT_ERROR = 1e-3
"""Largest difference of a float graph from torch, relative to the largest output."""

KERNEL_FACTOR, KERNEL_ERROR = 2.0, 0.02
"""How much farther than the rounding that a graph describes its integer kernels may be from the float graph, and the
relative error that is no matter in any case.

Kernels round halves another way at times, and through fifty layers of random weights one step off becomes many; an
error twice as large does not come from that.
"""


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Args:
        architecture, library, family, cell: Which one.
        status: "equal", "refused" with a reason, or "wrong".
        reason: Why it was refused, or what was wrong.
        layers: Layers or groups that the method acted on.
        macs: Multiply-adds left, as a share.
        parameters: Weights left, as a share.
        error: Largest difference from torch, relative to the largest output; with integers what their rounding costs.
        seconds: Wall time.
    """

    architecture: str
    library: str
    family: str
    cell: str
    status: str
    reason: str = ""
    layers: int = 0
    macs: float = 1.0
    parameters: float = 1.0
    error: float = 0.0
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)


def try_cell(architecture: Architecture, cell: str) -> Outcome:
    """Carry out a cell; InfeasiblePlan and ConversionError are refusals, anything else is the caller's to catch."""
    started = time.perf_counter()

    def outcome(status: str, reason: str = "", **facts: float) -> Outcome:
        seconds = time.perf_counter() - started
        known = (architecture.name, architecture.library, architecture.family, cell, status, reason)
        return Outcome(*known, seconds=seconds, **facts)  # type: ignore[arg-type]

    try:
        return outcome(**_compress(architecture, cell))  # type: ignore[arg-type]
    except (InfeasiblePlan, ConversionError) as error:
        return outcome("refused", f"{type(error).__name__}: {error}")


def _compress(architecture: Architecture, cell: str) -> dict[str, object]:
    name, change = CELLS[cell]
    model, examples = expand_attention(build(architecture)), architecture.examples()
    profile = detect_profile()
    method = METHODS[name]()
    settings = change(layer_view(model, examples), profile)
    if not settings:
        raise InfeasiblePlan(f"{name} finds nothing to act on")
    context = Context(examples, _calibration(examples), profile)
    changed = method.finalize(method(model, settings, context))
    method.verify(changed, settings)
    plain = onnx_export.export(changed, examples)
    graph = method.lower(plain, settings, context)
    first = _apart(parity.torch_predictor(changed), onnx_runtime.predictor(plain), examples)
    floats = onnx_runtime.predictor(plain)
    last, described = (
        _apart(floats, onnx_runtime.predictor(graph, optimized=optimized), examples) for optimized in (True, False)
    )
    parity.require(last, parity.INTEGER_TOLERANCE, "the integer graph")  # as the pipeline does
    wrong = _faults(first, last, described)
    before, after = used_layers(model, examples), used_layers(changed, examples)
    return {
        "status": "wrong" if wrong else "equal",
        "reason": wrong,
        "layers": len(settings),
        "macs": sum(one.macs for one in after) / max(1, sum(one.macs for one in before)),
        "parameters": sum(one.parameters for one in after) / max(1, sum(one.parameters for one in before)),
        "error": max(first.relative_error, last.relative_error),
    }


def _apart(wanted: Predict, got: Predict, examples: tuple[Array, ...]) -> Parity:
    return parity.compare(wanted, got, examples, batch_size=1)


def _faults(exported: Parity, lowered: Parity, described: Parity) -> str:
    """What is wrong with a graph; empty if nothing is.

    Args:
        exported: The float graph against torch.
        lowered: The graph with integers, on kernels, against the float graph.
        described: The same carried out as it is written, rounding on floats.
    """
    faults = []
    if not exported.relative_error <= EXPORT_ERROR:
        faults.append(f"the export differs from torch by {exported.relative_error:.2g}")
    if not lowered.relative_error <= max(KERNEL_ERROR, KERNEL_FACTOR * described.relative_error):
        faults.append(
            f"integer kernels err by {lowered.relative_error:.2g}, the rounding they stand for by "
            f"{described.relative_error:.2g}"
        )
    return "; ".join(faults)


def _calibration(examples: tuple[Array, ...]) -> Split:
    """Eight samples like the example."""
    rng = np.random.default_rng(1)
    columns = [
        rng.standard_normal((8, *array.shape[1:])).astype(array.dtype)
        if np.issubdtype(array.dtype, np.floating)
        else np.concatenate([rng.permutation(array.ravel()).reshape(array.shape) for _ in range(8)])
        for array in examples
    ]
    inputs = columns[0] if len(columns) == 1 else tuple(columns)
    return as_split((inputs, np.zeros(8, np.int64)), "calibration")
