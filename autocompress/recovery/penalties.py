"""What is added to the loss so that training moves weights or whole channels towards zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from autocompress.errors import InfeasiblePlan


def penalty(model: nn.Module, kind: Literal["l1", "group_lasso"]) -> Tensor:
    """A scalar that is small for sparse models.

    Args:
        model: Its convolutions, linear layers and batch norms count.
        kind: "l1" is the sum of the absolute scales of all batch norms, each of which holds one channel (Liu et al.,
            "Learning Efficient Convolutional Networks through Network Slimming", 2017), or of all weights of a model
            without batch norms. "group_lasso" is the sum over output channels of the L2 norm of their weights times
            the square root of their number (Wen et al., "Learning Structured Sparsity in Deep Neural Networks", 2016).

    Raises:
        InfeasiblePlan: If the model has no such weights.
    """
    terms = list(_norms_of_channels(model) if kind == "group_lasso" else _scales(model) or _weights(model))
    if not terms:
        raise InfeasiblePlan(f"penalty {kind!r}: the model has no convolution or linear layer; leave the penalty out")
    return torch.stack([term.abs().sum() for term in terms]).sum()


def _scales(model: nn.Module) -> list[Tensor]:
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [norm.weight for norm in norms if norm.affine]


def _weights(model: nn.Module) -> list[Tensor]:
    return [_weight(module) for module in _layers(model)]


def _norms_of_channels(model: nn.Module) -> Iterator[Tensor]:
    for module in _layers(model):
        channels = output_channels(module)
        yield channels.norm(dim=1) * channels.shape[1] ** 0.5


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear))


def _weight(module: nn.Module) -> Tensor:
    """The weight as the layer uses it, held by its constraints."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight


def output_channels(module: nn.Module) -> Tensor:
    """The weights of a convolution or linear layer as (output channels, weights of each)."""
    weight = _weight(module)
    if not getattr(module, "transposed", False):
        return weight.flatten(1)
    groups = int(getattr(module, "groups", 1))  # (in, out / groups, *kernel): each group of inputs has its own outputs
    return weight.reshape(groups, -1, *weight.shape[1:]).movedim(2, 1).flatten(0, 1).flatten(1)
