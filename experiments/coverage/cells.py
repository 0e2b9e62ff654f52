"""One cell of the table: a compression of one architecture, exported and held against torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from autocompress.data import Array, Split, as_split
from autocompress.devices.detection import detect_profile
from autocompress.errors import ConversionError, InfeasiblePlan
from autocompress.formats import onnx_export, onnx_runtime, parity
from autocompress.formats.parity import Parity
from autocompress.graph.attention import expand_attention
from autocompress.graph.inspect import layer_view, used_layers
from autocompress.methods import METHODS, Context
from autocompress.plan import Scalar, Settings
from autocompress.space import MethodSpace, policy_suggest
from autocompress.task import Predict
from experiments.coverage.architectures import Architecture, build

CELLS: Mapping[str, tuple[str, Mapping[str, tuple[Scalar, ...]]]] = {
    "half the channels or heads": ("channel_pruning", {"pruning_ratio": (0, 0.5)}),
    "int8": ("quantization", {"precision": ("fp32", "int8", "dynamic_int8", "weight_only")}),
    "half rank": ("low_rank", {"rank_ratio": (0, 0.5)}),
}
"""Cell to its method and what the space offers; every layer takes the last value that it has."""

EXPORT_ERROR = 1e-3
"""Largest difference of a float graph from torch, relative to the largest output."""

KERNEL_STEPS = 2
"""Steps of an 8-bit output that integer kernels may be away from the rounding that the graph describes."""


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
    name, parameters = CELLS[cell]
    model, examples = expand_attention(build(architecture)), architecture.examples()
    profile = detect_profile()
    method, view = METHODS[name](), layer_view(model, examples)
    policy = policy_suggest({f"{name}/{parameter}": values[-1] for parameter, values in parameters.items()})
    if name == "quantization":
        settings: Settings = {
            layer.name: {"precision": "int8"} for layer in view.layers if layer.kind in ("conv", "linear")
        }
    else:
        settings = method.propose(
            view, lambda knob_name, knob: policy(f"original/{knob_name}", knob), MethodSpace(parameters), profile
        )
    if not settings:
        raise InfeasiblePlan(f"{name} finds nothing to act on")
    context = Context(examples, _calibration(examples), profile)
    changed = method.finalize(method(model, settings, context))
    method.verify(changed, settings)
    plain = onnx_export.export(changed, examples)
    graph = method.lower(plain, settings, context)
    first = _apart(parity.torch_predictor(changed), onnx_runtime.predictor(plain), examples)
    last, kernels = first, None
    if graph is not plain:
        last = _apart(onnx_runtime.predictor(plain), onnx_runtime.predictor(graph), examples)
        kernels = _apart(
            onnx_runtime.predictor(graph, optimized=False),
            onnx_runtime.predictor(graph, without=[onnx_runtime.ROUNDS_FLOAT_LAYERS]),
            examples,
        )
    wrong = _faults(first, last, kernels)
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


def _faults(exported: Parity, lowered: Parity, kernels: Parity | None) -> str:
    """What is wrong with a graph; empty if nothing is.

    Args:
        exported: The float graph against torch.
        lowered: The graph with integers against it, whose error is that of the rounding: networks of random weights
            have no margins, so only what the pipeline refuses is wrong.
        kernels: Integer kernels against the rounding that the graph describes; None without integers.
    """
    faults = []
    if not exported.relative_error <= EXPORT_ERROR:
        faults.append(f"the export differs from torch by {exported.relative_error:.2g}")
    if not lowered.relative_error <= parity.INTEGER_TOLERANCE:
        faults.append(f"the integer graph differs from the export by {lowered.relative_error:.2g}")
    if kernels is not None and not kernels.steps <= KERNEL_STEPS:
        faults.append(f"integer kernels are {kernels.steps:.1f} steps from what the graph describes")
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
    torch.manual_seed(0)
    inputs = columns[0] if len(columns) == 1 else tuple(columns)
    return as_split((inputs, np.zeros(8, np.int64)), "calibration")
