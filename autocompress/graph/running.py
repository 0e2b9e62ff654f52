"""Running a live model on example inputs, without a trace left in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from autocompress.data import Array

if TYPE_CHECKING:
    from torch import Tensor, nn


def outputs(model: nn.Module, examples: tuple[Array, ...]) -> tuple[Tensor, ...]:
    """The outputs of one inference in evaluation mode, nested containers flattened; the model is left as it is."""
    import torch

    with evaluating(model), torch.no_grad():
        return tuple(_flatten(model(*inputs_of(model, examples))))


def inputs_of(model: nn.Module, arrays: tuple[Array, ...]) -> tuple[Tensor, ...]:
    """Copies of arrays as tensors where the model is."""
    import torch

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return tuple(torch.from_numpy(array.copy()).to(device) for array in arrays)


def output_shapes(model: nn.Module, examples: tuple[Array, ...]) -> tuple[tuple[int, ...], ...]:
    """The shape of every output of one inference."""
    return tuple(tuple(output.shape) for output in outputs(model, examples))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; the mode of every submodule comes back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and without the fused kernel of transformer layers, for a while.

    That kernel hides the layers inside from traces and has no operator in ONNX.
    """
    import torch

    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def _flatten(value: Any) -> Iterator[Tensor]:
    if hasattr(value, "shape"):
        yield value
        return
    for item in value.values() if isinstance(value, dict) else value:
        yield from _flatten(item)
