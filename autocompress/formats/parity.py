"""Whether two forms of one model compute the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress.data import Array
from autocompress.errors import ConversionError, InvalidInput
from autocompress.graph.running import inputs_of
from autocompress.task import Predict

if TYPE_CHECKING:
    from torch import nn

FLOAT_TOLERANCE = 1e-4
"""Largest difference of a float export from torch, relative to the largest output."""

INTEGER_TOLERANCE = 0.5
"""The same for integer graphs: a guard against broken ranges and wrong scales, not against rounding; what
quantization costs is said by the score."""


@dataclass(frozen=True)
class Parity:
    """How far two models differ on the same inputs.

    Args:
        relative_error: Largest difference over the largest absolute reference output.
        agreement: Share of samples, and of the places in each (samples, classes, …), with the same largest class.
        steps: Difference that 99 % of the outputs stay within, in steps of 1/255 of the range of the reference outputs:
            what an output of 8 bits can tell apart.
    """

    relative_error: float
    agreement: float
    steps: float


def torch_predictor(model: nn.Module) -> Predict:
    """A torch model, wherever it is, as a function of input arrays, in evaluation mode and without gradients."""
    import torch

    def predict(inputs: tuple[Array, ...]) -> Array:
        with torch.inference_mode():
            outputs = model.eval()(*inputs_of(model, inputs))
        if not isinstance(outputs, torch.Tensor):
            raise InvalidInput(f"the model returned {type(outputs).__name__}; expected one tensor (samples, …)")
        return np.asarray(outputs.float().cpu().numpy())

    return predict


def compare(reference: Predict, candidate: Predict, inputs: tuple[Array, ...], *, batch_size: int) -> Parity:
    """Differences of two models on the same inputs, given in batches of `batch_size`."""
    pairs = [
        (reference(part), candidate(part))
        for start in range(0, len(inputs[0]), batch_size)
        for part in [tuple(array[start : start + batch_size] for array in inputs)]
    ]
    expected, found = (np.concatenate(column) for column in zip(*pairs, strict=True))
    scale = max(float(np.abs(expected).max()), 1e-12)
    differences = np.abs(expected - found)
    error = float(differences.max()) / scale
    step = max(float(expected.max() - expected.min()) / 255, 1e-12)
    classes = 1 if expected.ndim > 1 else 0
    same = expected.argmax(classes) == found.argmax(classes)
    return Parity(error, float(np.mean(same)), float(np.quantile(differences, 0.99, method="lower")) / step)


def outputs_of(predict: Predict, inputs: tuple[Array, ...], *, batch_size: int) -> Array:
    """What a model says to inputs, given in batches of `batch_size`."""
    starts = range(0, len(inputs[0]), batch_size)
    return np.concatenate([predict(tuple(array[start : start + batch_size] for array in inputs)) for start in starts])


def divergence(reference: Array, found: Array, *, classes: bool) -> float:
    """How far outputs are from those of a reference, 0 if they are the same.

    Args:
        reference, found: Outputs (samples, …).
        classes: True for scores of classes (samples, classes, …), of which the mean Kullback-Leibler divergence of the
            distributions is taken; else the mean square of the difference over the variance of the reference.
    """
    if classes and reference.ndim > 1 and reference.shape[1] > 1:
        expected, given = _log_shares(reference), _log_shares(found)
        return max(0.0, float(np.mean(np.sum(np.exp(expected) * (expected - given), axis=1))))
    return float(np.mean((reference - found) ** 2) / max(float(np.var(reference)), 1e-12))


def _log_shares(scores: Array) -> Array:
    """Logarithms of the softmax along the first axis after the samples."""
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    shares: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shares


def require(parity: Parity, tolerance: float, what: str) -> None:
    """Refuse a model that differs too much.

    Raises:
        ConversionError: If the relative error is not a number or above the tolerance.
    """
    if not parity.relative_error <= tolerance:
        raise ConversionError(
            f"{what}: outputs differ by {parity.relative_error:.2g} of the largest one; expected at most {tolerance:g}"
        )
