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

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    inputs = [torch.from_numpy(array.copy()).to(device) for array in examples]
    with evaluating(model), torch.no_grad():
        return tuple(_flatten(model(*inputs)))


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


def _flatten(value: Any) -> Iterator[Tensor]:
    if hasattr(value, "shape"):
        yield value
        return
    for item in value.values() if isinstance(value, dict) else value:
        yield from _flatten(item)
