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
from autocompress.graph.attention import expand_attention
from autocompress.graph.inspect import layer_view, used_layers
from autocompress.methods import METHODS, Context
from autocompress.plan import Scalar, Settings
from autocompress.space import MethodSpace, policy_suggest
from experiments.coverage.architectures import Architecture, build

CELLS: Mapping[str, tuple[str, Mapping[str, tuple[Scalar, ...]]]] = {
    "half the channels or heads": ("channel_pruning", {"pruning_ratio": (0, 0.5)}),
    "int8": ("quantization", {"precision": ("fp32", "int8", "dynamic_int8", "weight_only")}),
    "half rank": ("low_rank", {"rank_ratio": (0, 0.5)}),
}
"""Cell to its method and what the space offers; every layer takes the last value that it has."""

INTEGER_ERROR = 0.1
"""Largest relative error of 8-bit graphs; networks of random weights have no margins to speak of."""


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
        error: Largest difference from torch, relative to the largest output.
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
    first = parity.compare(parity.torch_predictor(changed), onnx_runtime.predictor(plain), examples, batch_size=1)
    last = parity.compare(onnx_runtime.predictor(plain), onnx_runtime.predictor(graph), examples, batch_size=1)
    before, after = used_layers(model, examples), used_layers(changed, examples)
    good = first.relative_error <= 1e-3 and last.relative_error <= INTEGER_ERROR
    return {
        "status": "equal" if good else "wrong",
        "reason": "" if good else f"export {first.relative_error:.2g}, lowered {last.relative_error:.2g}",
        "layers": len(settings),
        "macs": sum(one.macs for one in after) / max(1, sum(one.macs for one in before)),
        "parameters": sum(one.parameters for one in after) / max(1, sum(one.parameters for one in before)),
        "error": max(first.relative_error, last.relative_error),
    }


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
