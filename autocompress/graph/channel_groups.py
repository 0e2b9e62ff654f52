"""Channels that can only be removed together, found by a trace of one inference and held against the model.

The trace knows what every operator does to the axes of its inputs, and fixes what it does not know. What it says is
not believed but tried: with some channels silenced, so that nothing reads them, the model must give the same outputs
as the model without these channels. A group for which it does not is left out.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from autocompress.data import Array, Split
from autocompress.errors import InfeasiblePlan, did_you_mean, one_line
from autocompress.graph.axes import Axis, factors, find, is_squared, leaves, positions, terms
from autocompress.graph.view import ChannelGroup, Importance

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autocompress.graph.tracing import Trace

TOLERANCE = {"torch.float64": 2e-5, "torch.float32": 1e-3}
"""Largest difference of outputs relative to their largest value that counts as rounding, by the numbers computed in;
models that compute in doubles may still contain steps in single precision."""

TRACE_LIMIT_S = 60.0
VERIFICATION_LIMIT_S = 120.0
"""After this time the groups not yet verified are left out."""


def channel_groups(model: nn.Module, examples: tuple[Array, ...]) -> tuple[ChannelGroup, ...]:
    """The groups of channels whose removal leaves the shape of the outputs and the other channels alone.

    Norms over channels take their statistics from those that remain.

    Args:
        model: Left as it is.
        examples: Inputs of one inference, arrays (batch, …).

    Raises:
        InfeasiblePlan: If the model can't be traced; the message says why.

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", 2023, for the idea of groups.
    """
    traced = _Traced(model, examples)
    traced.require_repeatable()
    rng = np.random.default_rng(0)
    victims = {}
    for name, group in traced.groups.items():  # different shares, so that no two sizes agree by chance
        count = min(group.channels - 1, max(1, round(group.channels * rng.uniform(0.3, 0.7))))
        victims[name] = sorted(rng.permutation(group.channels)[:count].tolist())
    sound = traced.sound(victims, time.monotonic() + VERIFICATION_LIMIT_S)
    return tuple(group for name, group in traced.groups.items() if name in sound)


def find_groups(model: nn.Module, examples: tuple[Array, ...]) -> tuple[ChannelGroup, ...]:
    """The groups that a trace finds, not yet held against the model as those of `channel_groups` are; faster.

    Raises:
        InfeasiblePlan: If the model can't be traced; the message says why.
    """
    return tuple(_Traced(model, examples).groups.values())


def remove_channels(model: nn.Module, examples: tuple[Array, ...], victims: Mapping[str, Sequence[int]]) -> None:
    """Remove channels of groups, in place, with everything that computes or reads them.

    Args:
        model: Loses the channels; modes and frozen parameters stay as they are. Nothing changes if this fails.
        examples: Inputs of one inference, arrays (batch, …).
        victims: Group name to the channels to remove, not all of the group.

    Raises:
        InfeasiblePlan: If the model has no such group, or the result is not the model without these channels.
    """
    traced = _Traced(model, examples)
    traced.require(victims)
    for name, channels in victims.items():
        if len(set(channels)) >= traced.groups[name].channels:
            raise InfeasiblePlan(f"channel group {name!r}: {len(set(channels))} channels to remove would leave none")
    traced.remove(victims)


def importances(
    model: nn.Module,
    examples: tuple[Array, ...],
    names: Mapping[str, Importance],
    *,
    calibration: Split | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, tuple[float, ...]]:
    """How much each channel of some groups matters, one number a channel; 1 is the mean of the group.

    Args:
        model: Left as it is.
        examples: Inputs of one inference, arrays (batch, …).
        names: Group name to the kind of importance. "l1" and "l2" sum |w| or w² over all weights of the group that
            compute or read the channel; "bn_scale" takes the scale of its batch normalization (Liu et al., "Learning
            Efficient Convolutional Networks through Network Slimming", 2017); "taylor" sums |w ∂L/∂w| over the group
            (Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019); "activation" is the mean of
            |a| where the channel is computed.
        calibration: Samples with targets, for the last two.
        loss: Of outputs and targets, for "taylor"; by default cross-entropy for integer targets, else the mean square
            of the difference.

    Raises:
        InfeasiblePlan: If the model has no such group, a group has no batch normalization to ask, or there are no
            samples where they are needed.
    """
    from autocompress.graph.importance import Scores

    traced = _Traced(model, examples)
    traced.require(names)
    scores = Scores(model, calibration, loss)
    return {name: scores.of(kind, traced.share(name)) for name, kind in names.items()}


def kept_channels(channels: int, pruning_ratio: float, multiple: int) -> int:
    """How many channels are left, rounded to what the machine computes without waste.

    Groups below twice the multiple are rounded to 4, those below 8 channels to whole channels; at least one multiple
    stays.

    >>> [kept_channels(64, ratio, 16) for ratio in (0, 0.25, 0.4, 0.95)]
    [64, 48, 32, 16]
    >>> kept_channels(16, 0.5, 16), kept_channels(6, 0.5, 16)
    (8, 3)
    """
    step = rounding_step(channels, multiple)
    kept = int(channels * (1 - pruning_ratio) / step + 0.5) * step
    return min(channels, max(kept, step)) if pruning_ratio > 0 else channels


def rounding_step(full: int, multiple: int) -> int:
    """What channels and ranks are rounded to: the machine's multiple if there are twice as many, else 4, else 1."""
    return multiple if full >= 2 * multiple else min(multiple, 4) if full >= 8 else 1


def kept_of_group(group: ChannelGroup, pruning_ratio: float, multiple: int) -> int:
    """How many channels or heads of a group are left; heads, which are no lanes of a kernel, are whole numbers."""
    return kept_channels(group.channels, pruning_ratio, 1 if group.kind == "heads" else multiple)


def resolve_group(name: str, groups: Iterable[ChannelGroup]) -> ChannelGroup:
    """The group of a name, or the one that a layer belongs to.

    Raises:
        InfeasiblePlan: If there is none.
    """
    known = {group.name: group for group in groups}
    if name in known:
        return known[name]
    layer, _, part = name.partition(":")
    for group in known.values():
        if layer in group.layers and group.name.partition(":")[2] == part:
            return group
    raise InfeasiblePlan(f"no channel group {name!r}; {did_you_mean(name, list(known))}")


@dataclass(frozen=True)
class Share:
    """Where the channels of a group lie: (tensor, dimension, channel of every entry or -1)."""

    group: ChannelGroup
    places: tuple[tuple[str, int, Any], ...]
    computed: frozenset[tuple[str, int]]


class _Traced:
    """A model with its trace; the model given is left as it is until `remove`.

    Raises:
        InfeasiblePlan: If the model can't be traced.
    """

    def __init__(self, model: nn.Module, examples: tuple[Array, ...]) -> None:
        from autocompress.graph.constraints import tied_modules
        from autocompress.graph.surgery import places_of

        self.model = model
        try:
            self._probe, self._inputs, self._trace = _trace_probe(model, examples)
        except Exception as error:  # whatever the model or its operators raise
            raise InfeasiblePlan(
                f"the channels of this model can't be traced: {type(error).__name__}: {one_line(error)}; leave "
                "channel pruning out"
            ) from error
        self._modules = dict(model.named_modules())
        self._tied = tied_modules(model)
        self._places = places_of(self._trace)
        named = list(self._find_groups())
        self.groups = {group.name: group for group, _ in named}
        self._leaves = {group.name: leaf for group, leaf in named}
        if not named and not self._trace.reads:
            raise InfeasiblePlan(
                "the channels of this model can't be traced: it multiplies nothing with its parameters; leave channel "
                "pruning out"
            )

    def _find_groups(self) -> Iterator[tuple[ChannelGroup, Axis]]:
        """Groups in the order of their first layers."""
        order = {name: number for number, name in enumerate(self._modules)}
        read = {
            leaf for readings in self._trace.readings.values() for reading in readings for leaf in leaves(reading.axis)
        }
        found: list[tuple[tuple[str, ...], tuple[str, Literal["channels", "heads"]], Axis]] = []
        for leaf, places in self._places.items():
            if leaf not in read or any(is_squared(self._axis(*place), leaf) for place in places):
                continue
            layers = {self._giver(name, dim): self._axis(name, dim) for name, dim in self._computing(places)}
            if layers:
                names = tuple(sorted(layers, key=lambda name: order.get(name, len(order))))
                found.append((names, _suffix(layers[names[0]], leaf), leaf))
        taken: dict[str, int] = {}
        for layers_of, (suffix, kind), leaf in sorted(found, key=lambda item: order.get(item[0][0], 0)):
            name = layers_of[0] + suffix
            taken[name] = taken.get(name, 0) + 1
            if taken[name] > 1:
                name += f"_{taken[name]}" if suffix else f":part_{taken[name]}"
            yield self._group(name, layers_of, kind, leaf), leaf

    def _group(
        self, name: str, layers: tuple[str, ...], kind: Literal["channels", "heads"], leaf: Axis
    ) -> ChannelGroup:
        places = self._places[leaf]
        given = {self._giver(tensor, dim): self._part(tensor, dim, leaf) for tensor, dim in self._computing(places)}
        read = {
            _layer(tensor): self._part(tensor, dim, leaf)
            for tensor, dim in places
            if (tensor, dim) in self._trace.reads and _layer(tensor) in self._modules
        }
        return ChannelGroup(
            name,
            layers,
            leaf.size,
            kind,
            tuple(self._importances(places)),
            tuple(given[layer] for layer in layers),
            tuple(read),
            tuple(read.values()),
        )

    def _part(self, tensor: str, dim: int, leaf: Axis) -> float:
        """The share of a dimension of a tensor that is channels of a group."""
        return float(np.mean(np.asarray(positions(self._axis(tensor, dim), leaf)) >= 0))

    def _giver(self, name: str, dim: int) -> str:
        """The layer whose outputs lie along a dimension of a weight, which of tied layers is one alone."""
        from autocompress.graph.constraints import users

        layer = _layer(name)
        if self._modules[layer] not in self._tied:
            return layer
        names = {module: other for other, module in self._modules.items()}
        others = [names[user] for user, _ in users(self.model, self._modules[layer])]
        return next((other for other in others if _output_dim(self._modules[other]) == dim), layer)

    def _importances(self, places: Collection[tuple[str, int]]) -> Iterator[Importance]:
        """The importances that `Scores` finds something of in a group."""
        from torch.nn.modules.batchnorm import _BatchNorm

        owners = {name.rpartition(".")[0] for name, _ in places if name.endswith(".weight")}
        yield from ("l1", "l2")
        if any(isinstance(self._modules.get(owner), _BatchNorm) for owner in owners):
            yield "bn_scale"
        yield "taylor"
        if any(
            _outputs(self._modules[_layer(name)]) == self._axis(name, dim).size for name, dim in self._computing(places)
        ):
            yield "activation"

    def _axis(self, name: str, dim: int) -> Axis:
        return find(self._trace.tensors[name][dim])

    def _computing(self, places: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
        """Matrices and kernels whose entries compute the channels."""
        for name, dim in places:
            is_weight = _layer(name) != name and len(self._trace.tensors[name]) > 1 and _layer(name) in self._modules
            if is_weight and (name, dim) not in self._trace.reads:
                yield name, dim

    def require(self, names: Iterable[str]) -> None:
        """Refuse names that are no group."""
        for name in names:
            if name not in self.groups:
                raise InfeasiblePlan(f"no channel group {name!r}; {did_you_mean(name, list(self.groups))}")

    def require_repeatable(self) -> None:
        """Refuse a model whose second inference differs from its first, so that nothing could be verified.

        Raises:
            InfeasiblePlan: If operators or outputs differ.
        """
        from autocompress.graph.surgery import CanNotFollow, silenced_outputs

        try:
            same = _agree(*(silenced_outputs(self._probe, self._inputs, self._trace, {}) for _ in range(2)))
        except CanNotFollow as error:
            raise InfeasiblePlan(
                f"the channels of this model can't be traced: {error}; leave channel pruning out"
            ) from error
        if not same:
            raise InfeasiblePlan(
                "the channels of this model can't be traced: its outputs on the example inputs are random or not "
                "finite; leave channel pruning out"
            )

    def share(self, name: str) -> Share:
        """Where the channels of a group lie in the tensors of the model."""
        leaf = self._leaves[name]
        places = self._places[leaf]
        found = tuple((tensor, dim, positions(self._axis(tensor, dim), leaf)) for tensor, dim in places)
        return Share(self.groups[name], found, frozenset(self._computing(places)))

    def _kept(self, victims: Mapping[str, Sequence[int]]) -> dict[Axis, Any]:
        kept = {}
        for name, channels in victims.items():
            kept[self._leaves[name]] = np.ones(self.groups[name].channels, np.bool_)
            kept[self._leaves[name]][list(channels)] = False
        return kept

    def _tried(self, victims: Mapping[str, Sequence[int]]) -> list[Any]:
        """What has to be changed in attributes, after it was seen to work on the probe.

        Raises:
            CanNotFollow: If the model's code is in the way.
        """
        from autocompress.graph.running import inference
        from autocompress.graph.surgery import CanNotFollow, cut, mend, silenced_outputs
        from autocompress.graph.tracing import tensors_in

        kept = self._kept(victims)
        wanted = silenced_outputs(self._probe, self._inputs, self._trace, kept)
        narrow = copy.deepcopy(self._probe)
        cut(narrow, self._trace, kept)
        edits = mend(narrow, self._inputs, self._trace, kept)
        with inference(narrow):
            got = tuple(tensors_in(narrow(*self._inputs)))
        if not _agree(wanted, got):
            raise CanNotFollow("its outputs are not those of the model without these channels")
        return edits

    def remove(self, victims: Mapping[str, Sequence[int]]) -> None:
        """Remove channels of the model in place, if that was seen to work on the probe."""
        from autocompress.graph.surgery import apply_edits, cut

        try:
            edits = self._tried(victims)
        except Exception as error:  # the model's own code may raise anything if it is cut in the wrong place
            raise InfeasiblePlan(
                f"removing channels of {', '.join(victims)} does not give the model without these channels "
                f"({one_line(error)}); exclude the layers from channel pruning"
            ) from error
        cut(self.model, self._trace, self._kept(victims))
        apply_edits(self.model, edits)

    def sound(self, victims: Mapping[str, Sequence[int]], deadline: float) -> set[str]:
        """The groups that can be removed as planned: all at once if that goes well, else by halves."""
        from autocompress.graph.surgery import CanNotFollow

        if not victims or time.monotonic() > deadline:
            return set()
        blamed: set[str] = set()
        try:
            self._tried(victims)
            return set(victims)
        except CanNotFollow as error:
            blamed = {name for name in victims if self._leaves[name] in error.leaves}
        except Exception:  # the model's own code, cut in the wrong place, may raise anything
            pass
        if blamed:
            return self._sound_without(blamed, victims, deadline)
        if len(victims) == 1:
            return set()
        names = list(victims)
        halves = (names[: len(names) // 2], names[len(names) // 2 :])
        return set().union(*(self.sound({name: victims[name] for name in half}, deadline) for half in halves))

    def _sound_without(self, blamed: set[str], victims: Mapping[str, Sequence[int]], deadline: float) -> set[str]:
        """Leave out what is to blame, and first also its like in other blocks, which most likely is to blame too."""
        patterns = {_pattern(name) for name in blamed}
        alike = {name for name in victims if _pattern(name) in patterns} - blamed
        rest = {name: chosen for name, chosen in victims.items() if name not in alike | blamed}
        found = self.sound(rest, deadline)
        if alike and time.monotonic() < deadline:
            try:
                self._tried({name: victims[name] for name in alike})
                found |= alike
            except Exception:  # as expected
                pass
        return found


def _pattern(name: str) -> str:
    """A name without its numbers."""
    return re.sub(r"\d+", "#", name)


def _trace_probe(model: nn.Module, examples: tuple[Array, ...]) -> tuple[nn.Module, tuple[Tensor, ...], Trace]:
    """A copy of the model with weights that hide nothing, its inputs, and its trace.

    The copy computes in doubles, so that a wrong channel shows even where its effect is small, or in single precision
    if the model's code insists on it.
    """

    from autocompress.graph.running import inference, inputs_of
    from autocompress.graph.tracing import trace

    single = inputs_of(model, _noisy(examples))
    double = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in single)
    probe = _lively(copy.deepcopy(model))
    for candidate, inputs in ((copy.deepcopy(probe).double(), double), (probe, single)):
        try:
            with inference(candidate):
                candidate(*inputs)  # fills caches, which would make a second inference differ from the first
            break
        except Exception:
            if candidate is probe:
                raise
    return candidate, inputs, trace(candidate, inputs, limit_s=TRACE_LIMIT_S)


def _layer(tensor: str) -> str:
    """The layer whose weight a tensor is; the tensor's own name if it is none."""
    owner, _, attribute = tensor.rpartition(".")
    if ".parametrizations.weight" in f".{owner}":
        return f".{owner}".partition(".parametrizations.weight")[0][1:]
    return owner if attribute in ("weight", "weight_v") and owner else tensor


def _output_dim(module: nn.Module) -> int:
    """The dimension of a layer's weight along which its outputs lie."""
    from torch import nn

    return 1 if isinstance(module, nn.Embedding) or getattr(module, "transposed", False) else 0


def _outputs(module: nn.Module) -> int | None:
    """How many channels a layer gives."""
    names = ("out_channels", "out_features", "embedding_dim")
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def _suffix(axis: Axis, leaf: Axis) -> tuple[str, Literal["channels", "heads"]]:
    """What tells several groups of one layer apart, and whether one of its channels is many of the layer's."""
    if find(axis) is leaf:
        return "", "channels"
    part = next(term for term in terms(axis) if any(found is leaf for found in leaves(term)))
    if part is leaf:
        return ":part", "channels"
    inside = factors(part)
    at = next(number for number, factor in enumerate(inside) if any(found is leaf for found in leaves(factor)))
    last = max(number for number, factor in enumerate(inside) if factor.size > 1)
    return (":width", "channels") if at == last else (":heads", "heads")


def _lively(model: nn.Module) -> nn.Module:
    """Random weights in place of those that are equal, zero or tiny, which would hide a wrong channel."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(0)

    def uniform(tensor: Tensor) -> Tensor:
        return (torch.rand(tensor.shape, generator=generator) + 0.5).to(tensor.device, tensor.dtype)

    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or parameter.numel() < 2:
                continue
            if parameter.abs().max() < 1e-2:
                fresh = torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
                parameter.copy_(fresh if parameter.dim() > 1 else uniform(parameter) - 0.3)
            else:
                parameter.mul_(uniform(parameter))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                assert module.running_var is not None, "batch norms track both or none"
                module.running_mean.add_(0.2 * (uniform(module.running_mean) - 1))
                module.running_var.mul_(uniform(module.running_var))
    return model


def _noisy(examples: tuple[Array, ...]) -> tuple[Array, ...]:
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
        bool((a - b).abs().max() <= TOLERANCE.get(str(a.dtype), 1e-3) * a.abs().max())
        for a, b in zip(wanted, got, strict=True)
        if a.numel() and a.is_floating_point()
    )
