"""How much channels matter: of weights, of gradients, of activations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.data import Array, Batch, Split
from autocompress.errors import InfeasiblePlan
from autocompress.graph.running import inference, inputs_of

if TYPE_CHECKING:
    from autocompress.graph.channel_groups import Share
    from autocompress.graph.view import Importance

BATCH = 16
BATCHES = 8
"""Batches of calibration data looked at."""


class Scores:
    """Scores of the channels of one model; gradients and activations are taken once for all groups that ask.

    Args:
        model: Left as it is.
        calibration: Samples with targets.
        loss: Of outputs and targets; None for the usual one of the targets' type.
    """

    def __init__(
        self, model: nn.Module, calibration: Split | None, loss: Callable[[Tensor, Tensor], Tensor] | None
    ) -> None:
        self._model, self._calibration, self._loss = model, calibration, loss
        self._state = model.state_dict(keep_vars=True)

    def of(self, kind: Importance, share: Share) -> tuple[float, ...]:
        """One number a channel of a group, with mean 1.

        Raises:
            InfeasiblePlan: If the group has nothing of this kind.
        """
        totals = np.zeros(share.group.channels)
        found = False
        for values, places in self._parts(kind, share):
            inside = places >= 0
            np.add.at(totals, places[inside], values[inside])
            found = True
        if not found:
            raise InfeasiblePlan(f"channel group {share.group.name!r}: nothing to take {kind!r} from; choose l1 or l2")
        mean = totals.mean()
        return tuple((totals / mean if mean > 0 else totals).tolist())

    def _parts(self, kind: Importance, share: Share) -> Iterator[tuple[Array, Array]]:
        """Pairs (value of every entry along a dimension, its channel or -1)."""
        for name, dim, places in share.places:
            tensor = self._state.get(name)
            if not isinstance(tensor, nn.Parameter):
                continue
            if kind in ("l1", "l2") and tensor.dim() > 1:
                yield _along(tensor.abs() if kind == "l1" else tensor.square(), dim), places
            elif kind == "bn_scale" and self._is_scale(name):
                yield _along(tensor.abs(), dim), places
            elif kind == "taylor":
                yield _along((tensor * self._gradients[name]).abs(), dim), places
            elif kind == "activation" and (name, dim) in share.computed:
                values = self._activations(name.rpartition(".")[0], len(places))
                if values is not None:
                    yield values, places

    def _is_scale(self, name: str) -> bool:
        owner, _, attribute = name.rpartition(".")
        return attribute == "weight" and isinstance(self._model.get_submodule(owner), nn.modules.batchnorm._BatchNorm)

    def _batches(self) -> Iterator[Batch]:
        if self._calibration is None:
            raise InfeasiblePlan("this importance needs calibration samples; choose l1 or l2")
        for number, batch in enumerate(self._calibration.batches(BATCH)):
            if number == BATCHES:
                return
            yield batch

    @cached_property
    def _gradients(self) -> dict[str, Tensor]:
        """The gradient of the loss by parameter, summed over the batches."""
        model = copy.deepcopy(self._model).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        with torch.enable_grad():
            for batch in self._batches():
                outputs = model(*inputs_of(model, batch.inputs))
                targets = inputs_of(model, (np.asarray(batch.targets),))[0]
                self._loss_of(outputs, targets).backward()  # type: ignore[no-untyped-call]
        named = model.named_parameters(remove_duplicate=False)
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named}

    def _loss_of(self, outputs: Any, targets: Tensor) -> Tensor:
        if self._loss is not None:
            return self._loss(outputs, targets)
        if targets.is_floating_point():
            return nn.functional.mse_loss(outputs, targets.reshape(outputs.shape))
        return nn.functional.cross_entropy(outputs, targets.long())

    @cached_property
    def _outputs(self) -> dict[str, Array]:
        """Mean |a| by layer and output channel."""
        sums: dict[str, Tensor] = {}
        batches = 0
        handles = []
        for name, module in self._model.named_modules():
            dim = 1 if isinstance(module, nn.modules.conv._ConvNd) else -1
            if isinstance(getattr(module, "weight", None), Tensor):
                handles.append(module.register_forward_hook(_recorder(sums, name, dim)))
        try:
            with inference(self._model):
                for batch in self._batches():
                    batches += 1
                    self._model(*inputs_of(self._model, batch.inputs))
        finally:
            for handle in handles:
                handle.remove()
        return {name: (value / max(1, batches)).cpu().numpy() for name, value in sums.items()}

    def _activations(self, layer: str, entries: int) -> Array | None:
        values = self._outputs.get(layer.partition(".parametrizations")[0])
        return values if values is not None and len(values) == entries else None


def _recorder(sums: dict[str, Tensor], name: str, dim: int) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() > 1:
            mean = output.abs().movedim(dim, 0).flatten(1).mean(1)
            sums[name] = sums[name] + mean if name in sums else mean

    return hook


def _along(values: Tensor, dim: int) -> Array:
    """Summed over all dimensions but one."""
    result: Array = values.detach().movedim(dim, 0).reshape(values.shape[dim], -1).sum(1).double().cpu().numpy()
    return result
