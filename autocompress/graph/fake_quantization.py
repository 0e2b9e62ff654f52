"""Quantization during training: weights and inputs of layers rounded in the forward pass, free in the backward one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.data import Array
from autocompress.errors import InfeasiblePlan
from autocompress.graph.constraints import Constraint, hold, parametrizations_of
from autocompress.graph.grids import Layout, fit, is_clustered
from autocompress.graph.inspect import weighted_modules
from autocompress.graph.ranges import LEVELS, Range, scale_and_zero
from autocompress.graph.running import evaluating, inputs_of

INPUT = "input_range"
"""Name of the submodule that rounds the input of a layer; nodes of the exported graph carry it."""

OBSERVED_VALUES = 2**22
"""Most values of a tensor that its range is taken from."""


class FakeQuantized(Constraint):
    """Gives every weight a number of a grid, gradients passing straight through.

    An observed grid follows the weights: each training step moves the scales to where they fit best in the least
    squares. A learned one has its scales trained with the weights; they are held relative to where they started, so
    that an optimizer that takes steps of the size of its learning rate changes all of them by the same share.

    Args:
        weight: What is quantized; the first grid is fitted to it. Left as it is.
        layout: Which weights share a scale; weights that share a codebook get one scale, so that they still share few
            numbers.
        bits: 2 to 8.
        symmetric: True for grids around 0.
        learned: True to train the scales.

    References:
        Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013. Esser et al., "Learned
        Step Size Quantization", 2020.
    """

    def __init__(
        self, weight: Tensor, layout: Layout, bits: int, *, symmetric: bool = True, learned: bool = False
    ) -> None:
        super().__init__()
        self.asked, self.bits, self.symmetric = layout, bits, symmetric
        self.layout = Layout(None) if is_clustered(weight.detach().cpu().numpy()) else layout
        rows = self.layout.rows(weight.detach())
        grid = fit(rows.cpu().numpy(), bits, symmetric=symmetric)
        self.low, self.high = grid.low, grid.high
        self.scale: Tensor
        self.zero: Tensor
        self.register_buffer("scale", torch.from_numpy(grid.scales)[:, None].to(weight))
        self.register_buffer("zero", torch.from_numpy(grid.zeros)[:, None].to(weight))
        self.ratio = nn.Parameter(torch.ones_like(self.scale)) if learned else None

    def is_like(self, layout: Layout, bits: int, *, symmetric: bool, learned: bool) -> bool:
        """True if a grid made of the same weight with these settings would be the same."""
        own = (self.asked, self.bits, self.symmetric, self.ratio is not None)
        return own == (layout, bits, symmetric, learned)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid."""
        rows = self.layout.rows(weight)
        if self.ratio is not None:
            scale = (self.scale * self.ratio).abs()
            rounded = learned_step(rows, scale, (self.low - self.zero, self.high - self.zero), rows.shape[1])
        else:
            if self.training:
                self.scale = self._fitted(rows.detach())
            rounded = straight_through(self._steps(rows.detach()) * self.scale, rows)
        return self.layout.back(rounded, tuple(weight.shape))

    def _steps(self, rows: Tensor) -> Tensor:
        """The whole numbers of weights, counted from the zero."""
        return (rows / self.scale).round().clamp(self.low - self.zero, self.high - self.zero)

    def _fitted(self, rows: Tensor) -> Tensor:
        """The scales that are best for the whole numbers that the weights have now."""
        steps = self._steps(rows)
        scale = (steps * rows).sum(1, keepdim=True) / steps.square().sum(1, keepdim=True)
        return scale.where(scale.isfinite() & (scale > 0), self.scale)


class QuantizedInput(nn.Module):
    """Rounds what a layer reads to u8 numbers, the scale learned and the zero point kept.

    Settled, it only cuts off what lies outside of the range: rounding is left to the integer graph, into which the
    range travels as a Clip.

    Args:
        found: Range that the scale starts from.
    """

    def __init__(self, found: Range) -> None:
        super().__init__()
        scale, self.zero = scale_and_zero(found)
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale))
        self.ratio = nn.Parameter(torch.tensor(1.0))
        self.settled = False

    @property
    def range(self) -> Range:
        """Least and largest value that u8 numbers stand for."""
        scale = float((self.scale * self.ratio.detach()).abs())
        return -self.zero * scale, (LEVELS - 1 - self.zero) * scale

    def forward(self, value: Tensor) -> Tensor:
        """The value rounded, or cut off if settled."""
        if self.settled:
            return value.clamp(*self.range)
        low, high = (self.scale.new_tensor(float(limit)) for limit in (-self.zero, LEVELS - 1 - self.zero))
        scale = (self.scale * self.ratio).abs()
        return learned_step(value.float(), scale, (low, high), value[0].numel()).to(value.dtype)


def straight_through(rounded: Tensor, value: Tensor) -> Tensor:
    """The rounded tensor, exactly, with the gradient of the other."""
    return rounded.detach() + (value - value.detach())


def learned_step(value: Tensor, scale: Tensor, limits: tuple[Tensor, Tensor], count: int) -> Tensor:
    """Values rounded to multiples of a scale, with the gradients of LSQ.

    Inside the limits values have the gradient 1 and the scale round(v/s) - v/s; outside 0 and the limit. The scale's
    is multiplied by 1 / sqrt(count · largest limit), as the paper does.

    Args:
        value: v.
        scale: s, > 0; broadcasts against the value.
        limits: Least and largest multiple.
        count: Values that share a scale.

    References:
        Esser et al., "Learned Step Size Quantization", 2020, equations 1 to 3 and section 2.2.
    """
    factor = (count * limits[1].clamp_min(1)).rsqrt()
    scaled = scale.detach() + (scale - scale.detach()) * factor
    steps = (value / scaled).clamp(*limits)
    return straight_through(steps.round(), steps) * scaled


def quantizable_weights(model: nn.Module, name: str) -> Iterator[tuple[nn.Module, str, int]]:
    """The weights beneath a layer: the module that holds one, its name there, and its output axis."""
    for _, module in weighted_modules(model, name):
        yield module, "weight", 1 if getattr(module, "transposed", False) else 0
    for module in model.get_submodule(name).modules():
        if isinstance(module, nn.MultiheadAttention):
            names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
            yield from ((module, weight, 0) for weight in names if getattr(module, weight) is not None)


def quantize_weights(
    model: nn.Module, name: str, layout: Callable[[int], Layout], bits: int, *, symmetric: bool, learned: bool
) -> None:
    """Hold every weight beneath a layer to a grid, in place, wherever the model uses that weight.

    Args:
        model: Changed in place.
        name: The layer.
        layout: From the output axis of a weight to the weights that share a scale.
        bits: 2 to 8.
        symmetric: True for grids around 0.
        learned: True to train the scales.

    Raises:
        InfeasiblePlan: If a weight is tied to one that is held to another grid.
    """
    for module, parameter, axis in list(quantizable_weights(model, name)):
        weight = getattr(module, parameter)
        form = layout(axis)
        known = next((one for one in parametrizations_of(module, parameter) if isinstance(one, FakeQuantized)), None)
        if known is not None:
            if known.is_like(form, bits, symmetric=symmetric, learned=learned):
                continue
            raise InfeasiblePlan(
                f"layer {name!r} shares its weight with another one, which has {known.bits} bits or other settings; "
                "give both the same, or leave one of them out"
            )
        hold(model, module, FakeQuantized(weight, form, bits, symmetric=symmetric, learned=learned), parameter)


def quantize_inputs(
    model: nn.Module, names: Iterable[str], batches: Iterable[tuple[Array, ...]], find: Callable[[Array], Range]
) -> None:
    """Round what some layers read, in place; layers that read the same tensor share its range.

    Args:
        model: Changed in place.
        names: Layers; those that the forward pass does not call, or calls on no floats, are left out.
        batches: Inputs that first ranges are taken from.
        find: From values (n,) to their range.
    """
    modules = {
        inner: module for name in names for inner, module in weighted_modules(model, name) if not has_range(module)
    }
    seen, readers = _observe(model, modules, batches)
    for group in readers:
        quantizer = QuantizedInput(find(np.concatenate(seen[group[0]])))
        for name in group:
            modules[name].register_module(INPUT, quantizer)
            modules[name].register_forward_pre_hook(_through_range)


def has_range(module: nn.Module) -> bool:
    """True if the input of a layer is rounded."""
    return isinstance(getattr(module, INPUT, None), QuantizedInput)


def settle_inputs(model: nn.Module) -> None:
    """End the rounding of inputs, in place; their ranges stay."""
    for module in model.modules():
        if isinstance(module, QuantizedInput):
            module.settled = True


def _through_range(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    quantizer = cast(QuantizedInput, getattr(module, INPUT))
    return (quantizer(inputs[0]), *inputs[1:])


def _observe(
    model: nn.Module, modules: dict[str, nn.Module], batches: Iterable[tuple[Array, ...]]
) -> tuple[dict[str, list[Array]], list[list[str]]]:
    """What each module reads, as flat arrays, and the modules grouped by the tensor they read."""
    seen: dict[str, list[Array]] = {}
    readers: dict[int, tuple[Tensor, list[str]]] = {}  # holds the tensors, so that no address is used twice

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            value = inputs[0] if inputs else None
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return
            if name not in seen:
                readers.setdefault(id(value), (value, []))[1].append(name)
            known = seen.setdefault(name, [])
            room = OBSERVED_VALUES - sum(map(len, known))
            known.append(value.detach().float().cpu().numpy().reshape(-1)[: max(room, 0)].copy())

        return before

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                model(*inputs_of(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    return seen, [names for _, names in readers.values()]
