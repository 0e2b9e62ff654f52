"""Batch norms folded into the layers before them, as the exporter does, so that weights are those which are stored."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from autocompress.data import Array
from autocompress.graph.inspect import replace
from autocompress.graph.running import outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 1e-3
"""Largest difference of outputs, relative to their largest value, that counts as rounding."""


def fold_batch_norms(model: nn.Module, examples: tuple[Array, ...]) -> nn.Module:
    """A copy whose convolutions and linear layers have taken up the batch norms behind them.

    A batch norm whose layer is read by something else too, or called twice, stays: the outputs must be those of the
    model in evaluation mode. So does one whose layer is constrained in a way that scaling would break, or has a weight
    that the user's code computes from others.

    Args:
        model: Left as it is.
        examples: Inputs of one inference, arrays (batch, …).
    """
    pairs = _pairs(model, examples)
    if not pairs:
        return copy.deepcopy(model)
    wanted = outputs(model, examples)
    together = _folded(model, pairs)
    if _agree(wanted, outputs(together, examples)):
        return together
    sound = [pair for pair in pairs if _agree(wanted, outputs(_folded(model, [pair]), examples))]
    return _folded(model, sound)


def _pairs(model: nn.Module, examples: tuple[Array, ...]) -> list[tuple[str, str]]:
    """Names of layers and of the batch norms that read their outputs."""
    from torch import nn

    from autocompress.graph.constraints import constraints, is_free

    made: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that no address is used twice
    pairs: list[tuple[str, str]] = []

    def hook(name: str) -> Any:
        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                source = made.get(id(inputs[0])) if inputs else None
                if source is not None and module.running_mean is not None:
                    pairs.append((source[0], name))
            else:
                made[id(output)] = (name, output)

        return after

    plain = (nn.modules.conv._ConvNd, nn.Linear)
    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        or (
            isinstance(module, plain)
            and is_free(module)
            and all(constraint.survives_scaling for constraint in constraints(module))
        )
    ]
    try:
        outputs(model, examples)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if sum(pair[0] == other[0] or pair[1] == other[1] for other in pairs) == 1]


def _folded(model: nn.Module, pairs: Iterable[tuple[str, str]]) -> nn.Module:
    import torch
    from torch import nn

    from autocompress.graph.constraints import free_weight

    changed = copy.deepcopy(model)
    for layer_name, norm_name in pairs:
        layer: Any = changed.get_submodule(layer_name)
        norm: Any = changed.get_submodule(norm_name)
        with torch.no_grad():
            scale = torch.rsqrt(norm.running_var + norm.eps)
            shift = -norm.running_mean * scale
            if norm.affine:
                scale = scale * norm.weight
                shift = shift * norm.weight + norm.bias
            weight = free_weight(layer)
            if layer.bias is None:
                layer.bias = nn.Parameter(torch.zeros_like(shift))
            layer.bias.copy_(layer.bias * scale + shift)
            weight.mul_(_along_outputs(layer, scale))
        replace(changed, norm_name, nn.Identity())
    return changed


def _along_outputs(layer: Any, scale: Tensor) -> Tensor:
    """A factor for each output channel, in the shape of the layer's weight."""
    if getattr(layer, "transposed", False):  # (in, out / groups, *kernel): each group of inputs has its own outputs
        rows = scale.reshape(layer.groups, 1, -1).expand(-1, layer.in_channels // layer.groups, -1).flatten(0, 1)
        return rows.reshape(*rows.shape, *(1 for _ in layer.weight.shape[2:]))
    return scale.reshape(-1, *(1 for _ in layer.weight.shape[1:]))


def _agree(wanted: tuple[Tensor, ...], got: tuple[Tensor, ...]) -> bool:
    return all(
        bool((a - b).abs().max() <= TOLERANCE * a.abs().max().clamp_min(1e-6))
        for a, b in zip(wanted, got, strict=True)
        if a.numel() and a.is_floating_point()
    )
