"""Channels that can only be removed together, found and removed with Torch-Pruning and held against the model.

Torch-Pruning follows the autograd graph and guesses at operators it does not know, so nothing it says is believed:
with the weights that read some channels set to zero, the model must give the same outputs as the model without these
channels. A group for which it does not is left out.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from autocompress.data import Array
from autocompress.errors import InfeasiblePlan, did_you_mean
from autocompress.graph.view import ChannelGroup

if TYPE_CHECKING:
    from torch import Tensor, nn

Importance = Literal["l1", "l2", "bn_scale"]
TOLERANCE = 1e-3
"""Largest difference of outputs relative to their largest value that counts as rounding."""


def channel_groups(model: nn.Module, examples: tuple[Array, ...]) -> tuple[ChannelGroup, ...]:
    """The groups of channels whose removal leaves the shape of the outputs and the other channels alone.

    Args:
        model: Left as it is.
        examples: Inputs of one inference, arrays (batch, …).

    Raises:
        InfeasiblePlan: If the model can't be traced; the message says why.

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", 2023.
    """
    traced = _Traced(copy.deepcopy(model), examples)
    rng = np.random.default_rng(0)  # grouped convolutions can lose every other channel, but not any half
    halves = {
        group.name: sorted(rng.permutation(group.channels)[: group.channels // 2].tolist())
        for group in traced.groups
        if group.channels > 1
    }
    sound = _sound(model, examples, halves)
    return tuple(group for group in traced.groups if group.name in sound)


def remove_channels(model: nn.Module, examples: tuple[Array, ...], victims: Mapping[str, Sequence[int]]) -> None:
    """Remove channels of groups, in place, with everything that computes or reads them.

    Args:
        model: Loses the channels; modes and frozen parameters stay as they are.
        examples: Inputs of one inference, arrays (batch, …).
        victims: Group name to the channels to remove, not all of the group.

    Raises:
        InfeasiblePlan: If the model has no such group, or the result is not the model without these channels.
    """
    silenced, traced = _Traced(copy.deepcopy(model), examples), _Traced(model, examples)
    norms = traced.layer_norms(victims)
    silenced.silence(victims)
    traced.prune(victims)
    wanted, got = (_outputs_without_statistics(t.model, _probe(examples), norms) for t in (silenced, traced))
    if not _agree(wanted, got):
        raise InfeasiblePlan(
            f"removing channels of {', '.join(victims)} does not give the model without these channels; exclude the "
            "layers from channel pruning"
        )


def importances(
    model: nn.Module, examples: tuple[Array, ...], names: Mapping[str, Importance]
) -> dict[str, tuple[float, ...]]:
    """How much each channel of some groups matters, one number a channel.

    Args:
        model: Left as it is.
        examples: Inputs of one inference, arrays (batch, …).
        names: Group name to the kind of importance. "l1" and "l2" sum |w| or w² over all weights of the group that
            compute or read the channel; "bn_scale" takes the scale of its batch normalization (Liu et al., "Learning
            Efficient Convolutional Networks through Network Slimming", 2017).

    Raises:
        InfeasiblePlan: If the model has no such group, or a group has no batch normalization to ask.
    """
    traced = _Traced(copy.deepcopy(model), examples)
    return {name: traced.importance(name, kind) for name, kind in names.items()}


def kept_channels(channels: int, pruning_ratio: float, multiple: int) -> int:
    """How many channels are left, rounded to what the machine computes without waste.

    Groups below twice the multiple are rounded to 4, those below 8 channels to whole channels; at least one multiple
    stays.

    >>> [kept_channels(64, ratio, 16) for ratio in (0, 0.25, 0.4, 0.95)]
    [64, 48, 32, 16]
    >>> kept_channels(16, 0.5, 16), kept_channels(6, 0.5, 16)
    (8, 3)
    """
    step = multiple if channels >= 2 * multiple else min(multiple, 4) if channels >= 8 else 1
    kept = int(channels * (1 - pruning_ratio) / step + 0.5) * step
    return min(channels, max(kept, step)) if pruning_ratio > 0 else channels


class _Traced:
    """A model with its dependency graph; changes the model it is given.

    Raises:
        InfeasiblePlan: If the model can't be traced.
    """

    def __init__(self, model: nn.Module, examples: tuple[Array, ...]) -> None:
        import torch
        import torch_pruning

        self._tp: Any = torch_pruning
        self.model = model
        self._inputs = tuple(torch.from_numpy(array.copy()) for array in examples)
        try:
            with _trainable(model), torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._graph = torch_pruning.DependencyGraph().build_dependency(
                    model, self._inputs, unwrapped_parameters=[], verbose=False
                )
        except Exception as error:  # whatever an operator unknown to Torch-Pruning leads to
            raise InfeasiblePlan(
                f"the channels of this model can't be traced: {type(error).__name__}: {error}; leave channel pruning "
                "out"
            ) from error
        self._modules = dict(model.named_modules())
        self._names = {module: name for name, module in self._modules.items()}
        if not any(self._is_layer(module) for module in self._modules.values()):
            raise InfeasiblePlan(
                "the channels of this model can't be traced: no gradient flows from its output to a convolution or "
                "linear layer; leave channel pruning out"
            )
        self.groups = tuple(self._find_groups())

    def _find_groups(self) -> Iterator[ChannelGroup]:
        """Groups by their first layer in the order of the model; those that reach the output are left out."""
        seen: set[str] = set()
        for name, module in self._modules.items():
            if name in seen or not self._is_layer(module):
                continue
            members = list(self._group(name))
            layers = {self._names[dep.target.module] for dep, _ in members if self._computes(dep)}
            seen |= layers
            if all(self._is_followed(dep.target) for dep, _ in members) and any(self._reads(dep) for dep, _ in members):
                ordered = tuple(layer for layer in self._modules if layer in layers)
                yield ChannelGroup(name, ordered, self._graph.get_out_channels(module))

    def _is_layer(self, module: nn.Module) -> bool:
        from torch import nn

        return isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and module in self._graph.module2node

    def _computes(self, dep: Any) -> bool:
        """True for a layer that computes the channels."""
        return self._is_layer(dep.target.module) and self._graph.is_out_channel_pruning_fn(dep.handler)

    def _reads(self, dep: Any) -> bool:
        """True for a layer that reads the channels; without one they are the output of the model."""
        return dep.handler in (self._tp.prune_conv_in_channels, self._tp.prune_linear_in_channels)

    def _is_followed(self, node: Any) -> bool:
        kinds = self._tp.ops.OPTYPE
        return node.type not in (kinds.OUTPUT, kinds.MHA, kinds.LSTM, kinds.GN)

    def _group(self, name: str, channels: Sequence[int] | None = None) -> Any:
        """What has to change if output channels of a layer go; by default all of them."""
        module = self._modules[name]
        pruner = self._graph.get_pruner_of_module(module)
        idxs = list(range(pruner.get_out_channels(module)) if channels is None else channels)
        return self._graph.get_pruning_group(module, pruner.prune_out_channels, idxs)

    def _require(self, names: Iterable[str]) -> None:
        known = [group.name for group in self.groups]
        for name in names:
            if name not in known:
                raise InfeasiblePlan(f"no channel group {name!r}; {did_you_mean(name, known)}")

    def prune(self, victims: Mapping[str, Sequence[int]]) -> None:
        """Remove channels in place."""
        self._require(victims)
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        for name, channels in victims.items():
            group = self._group(name, channels)
            if not self._graph.check_pruning_group(group):
                raise InfeasiblePlan(f"channel group {name!r}: {len(channels)} channels to remove would leave none")
            group.prune()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in frozen)

    def silence(self, victims: Mapping[str, Sequence[int]]) -> None:
        """Set the weights that read the channels to zero, so that nothing downstream sees them."""
        import torch

        with torch.no_grad():
            for name, channels in victims.items():
                for dep, idxs in self._group(name, channels):
                    if self._reads(dep):
                        axis = 0 if getattr(dep.target.module, "transposed", False) else 1
                        dep.target.module.weight.index_fill_(axis, torch.tensor(idxs), 0.0)

    def layer_norms(self, names: Iterable[str]) -> tuple[str, ...]:
        """The layer norms over channels of some groups."""
        self._require(names)
        members = (dep.target for name in names for dep, _ in self._group(name))
        found = {self._names[node.module] for node in members if node.type == self._tp.ops.OPTYPE.LN}
        return tuple(name for name in self._modules if name in found)

    def importance(self, name: str, kind: Importance) -> tuple[float, ...]:
        """One number a channel, summed over the group."""
        self._require([name])
        score = {
            "l1": self._tp.importance.GroupMagnitudeImportance(p=1),
            "l2": self._tp.importance.GroupMagnitudeImportance(p=2),
            "bn_scale": self._tp.importance.BNScaleImportance(),
        }[kind]
        values = score(self._group(name))
        if values is None or not len(values):
            raise InfeasiblePlan(f"channel group {name!r}: no weights for the importance {kind!r}; choose l1 or l2")
        return tuple(float(value) for value in values)


def _sound(model: nn.Module, examples: tuple[Array, ...], victims: Mapping[str, Sequence[int]]) -> set[str]:
    """The groups that can be removed as planned: all at once if that goes well, else by halves."""
    if not victims:
        return set()
    if _removable(model, examples, victims):
        return set(victims)
    if len(victims) == 1:
        return set()
    names = list(victims)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    return set().union(*(_sound(model, examples, {name: victims[name] for name in half}) for half in halves))


def _removable(model: nn.Module, examples: tuple[Array, ...], victims: Mapping[str, Sequence[int]]) -> bool:
    """True if the channels can be removed from a copy of the model."""
    try:
        remove_channels(copy.deepcopy(model), examples, victims)
    except Exception:  # a wrong group shows as an error of Torch-Pruning, of torch or of the model's own code
        return False
    return True


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Let autograd see frozen parameters and keep the mode, which tracing changes."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    modes = {module: module.training for module in model.modules()}
    for parameter in frozen:
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, mode in modes.items():
            module.training = mode


def _outputs_without_statistics(
    model: nn.Module, examples: tuple[Array, ...], norms: Iterable[str]
) -> tuple[Tensor, ...]:
    """Outputs with some layer norms that only scale and shift: their statistics run over the channels removed."""
    from autocompress.graph.running import outputs

    hooks = [model.get_submodule(name).register_forward_hook(_scale_and_shift) for name in norms]
    try:
        return outputs(model, examples)
    finally:
        for hook in hooks:
            hook.remove()


def _scale_and_shift(norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    scaled = inputs[0] if norm.weight is None else inputs[0] * norm.weight
    return scaled if norm.bias is None else scaled + norm.bias


def _probe(examples: tuple[Array, ...]) -> tuple[Array, ...]:
    """The examples with noise, so that an example of zeros tells channels apart too."""
    rng = np.random.default_rng(0)
    return tuple(
        (array + rng.standard_normal(array.shape) * (array.std() or 1.0)).astype(array.dtype)
        if np.issubdtype(array.dtype, np.floating)
        else array
        for array in examples
    )


def _agree(wanted: tuple[Tensor, ...], got: tuple[Tensor, ...]) -> bool:
    if [value.shape for value in wanted] != [value.shape for value in got]:
        return False
    return all(
        bool((a - b).abs().max() <= TOLERANCE * a.abs().max()) for a, b in zip(wanted, got, strict=True) if a.numel()
    )
