"""Channel pruning: whole channels are removed, so the model is smaller and faster on any runtime."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, get_args

from autocompress.errors import InfeasiblePlan
from autocompress.graph.channel_groups import (
    find_groups,
    importances,
    kept_channels,
    kept_of_group,
    remove_channels,
    resolve_group,
)
from autocompress.graph.view import ChannelGroup, Importance, Layer, LayerView
from autocompress.methods._base import METHODS, CompressionMethod, Context, asked, said, values_of
from autocompress.plan import Scalar, Settings, Stage
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, MethodSpace, Suggest

if TYPE_CHECKING:
    from torch import nn

RATIOS = (0.0, 0.25, 0.5, 0.75)
DEFAULT_IMPORTANCE: Importance = "l2"


@METHODS.register
class ChannelPruning(CompressionMethod):
    """Removes the least important channels or attention heads from groups of layers that share them.

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", 2023.
        Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019.
    """

    name = "channel_pruning"
    stage = Stage.STRUCTURE
    parameters: ClassVar[Mapping[str, str]] = {
        "pruning_ratio": "share of the group's channels to remove, in (0, 1), rounded to the machine's multiple",
        "importance": "what the channels to keep have most of: l1, l2 (default), bn_scale, taylor or activation",
    }

    def propose(self, model: LayerView, suggest: Suggest, space: MethodSpace, profile: HardwareProfile) -> Settings:
        """A ratio for each channel group; ratios that leave the same channels are one choice."""
        settings: dict[str, dict[str, Scalar]] = {}
        for group in model.channel_groups:
            multiple = 1 if group.kind == "heads" else profile.channel_multiple
            options = distinct_ratios(group.channels, values_of(space, "pruning_ratio", RATIOS), multiple)
            if len(options) == 1 or not space.admits_part(group.name, group.layers):
                continue
            ratio = suggest(f"{self.name}/{group.name}/pruning_ratio", Choice(options))
            if ratio:
                fitting = [one for one in values_of(space, "importance", ()) if one in group.importances]
                settings[group.name] = {
                    "pruning_ratio": ratio,
                    **asked("importance", fitting, suggest, method=self.name, layer=group.name),
                }
        return settings

    def leaves(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> LayerView:
        """The layers with fewer outputs and inputs; layers that share a weight share what is gone of it."""
        given: dict[str, float] = {}
        read: dict[str, float] = {}
        shared = {layer.tied_to for layer in model.layers}
        for group in model.channel_groups:
            if group.name in settings:
                ratio = float(settings[group.name]["pruning_ratio"])
                gone = 1 - kept_of_group(group, ratio, profile.channel_multiple) / group.channels
                for layer, share in zip(group.layers, group.shares or (1.0,) * len(group.layers), strict=True):
                    given[layer] = given.get(layer, 0.0) + share * gone
                for layer, share in zip(group.readers, group.read_shares, strict=True):
                    if not (layer in shared and layer in group.layers):  # the same axis, read by a layer that is tied
                        read[layer] = read.get(layer, 0.0) + share * gone

        outputs, inputs = _gone_of_weights(given, model), _gone_of_weights(read, model)
        narrowed = (_narrowed(layer, 1 - outputs[layer.name], 1 - inputs[layer.name]) for layer in model.layers)
        return replace(model, layers=tuple(narrowed))

    def takes(self, parameter: str, value: Scalar) -> bool:
        """True for ratios in [0, 1) and the known importances."""
        if parameter == "importance":
            return value in get_args(Importance)
        return isinstance(value, int | float) and 0 <= value < 1

    def check(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> None:
        """Refuse ratios and importances that are none."""
        for group, setting in settings.items():
            ratio, importance = setting.get("pruning_ratio"), _importance(setting)
            if isinstance(ratio, bool | str) or ratio is None or not 0 < ratio < 1:
                raise InfeasiblePlan(
                    f"{self.name}: group {group!r}: {said(setting, 'pruning_ratio')}; expected 0 < ratio < 1"
                )
            if importance not in get_args(Importance):
                raise InfeasiblePlan(
                    f"{self.name}: group {group!r}: importance {importance!r}; expected "
                    f"{', '.join(get_args(Importance)[:-1])} or {get_args(Importance)[-1]}"
                )

    def _check_settings(self, model: nn.Module, settings: Settings) -> None:
        """Groups go by the name of a layer, or by that and a part of its channels after a colon."""
        parameters: dict[str, dict[str, Scalar]] = {}
        for name, setting in settings.items():
            parameters.setdefault(name.partition(":")[0], {}).update(setting)
        super()._check_settings(model, parameters)

    def apply(self, model: nn.Module, settings: Settings, context: Context) -> nn.Module:
        """Remove the least important channels of each group.

        Raises:
            InfeasiblePlan: If a name is no channel group, a ratio rounds to removing nothing, or the model without
                the channels does not work as expected.
        """
        from autocompress.graph.inspect import used_layers

        groups = self._groups(model, settings, context)
        wanted = {groups[name].name: _importance(setting) for name, setting in settings.items()}
        scores = importances(model, context.examples, wanted, calibration=context.calibration, loss=context.loss)
        victims = {}
        for name, setting in settings.items():
            group, ratio = groups[name], float(setting["pruning_ratio"])
            victims[group.name] = self._least_important(
                group, scores[group.name], ratio, context.profile.channel_multiple
            )
        before = {layer.name: layer.outputs for layer in used_layers(model, context.examples)}
        remove_channels(model, context.examples, victims)
        after = {layer.name: layer.outputs for layer in used_layers(model, context.examples)}
        for layer, count in _removed_alone(groups.values(), victims).items():
            if layer not in before:  # a product of the user's own, of which no view knows the outputs
                continue
            gone = before[layer] - after[layer]
            if gone <= 0 or gone % count:  # a head is many channels of a layer
                raise InfeasiblePlan(
                    f"{self.name}: layer {layer!r} has {after[layer]} of {before[layer]} channels left; expected "
                    f"{count} {'or a multiple of that ' if count > 1 else ''}to be gone"
                )
        return model

    def _groups(self, model: nn.Module, settings: Settings, context: Context) -> dict[str, ChannelGroup]:
        """The group of every setting."""
        known = find_groups(model, context.examples)
        found: dict[str, ChannelGroup] = {}
        for name in settings:
            group = resolve_group(name, known)
            other = next((earlier for earlier, taken in found.items() if taken == group), None)
            if other is not None:
                raise InfeasiblePlan(
                    f"{self.name}: {name!r} and {other!r} are layers of one channel group; leave one of them out"
                )
            found[name] = group
        return found

    def _least_important(
        self, group: ChannelGroup, scores: tuple[float, ...], ratio: float, multiple: int
    ) -> list[int]:
        count = len(scores) - kept_of_group(group, ratio, multiple)
        if not count:
            raise InfeasiblePlan(
                f"{self.name}: group {group.name!r}: pruning_ratio {ratio:g} of {len(scores)} {group.kind} rounds to "
                f"none at multiples of {multiple}; choose a larger ratio or leave the group out"
            )
        return sorted(sorted(range(len(scores)), key=lambda channel: scores[channel])[:count])


def distinct_ratios(channels: int, ratios: tuple[Scalar, ...], multiple: int) -> tuple[float, ...]:
    """The ratios that leave different numbers of channels, 0 first; of equal ones that nearest to what it does.

    >>> distinct_ratios(32, (0, 0.25, 0.5, 0.75), 16)
    (0.0, 0.5)
    """
    best: dict[int, float] = {}
    for ratio in sorted(float(ratio) for ratio in ratios):
        kept = kept_channels(channels, ratio, multiple)
        removed = 1 - kept / channels
        if kept not in best or abs(ratio - removed) < abs(best[kept] - removed):
            best[kept] = ratio
    best.pop(channels, None)
    return (0.0, *sorted(best.values()))


def _narrowed(layer: Layer, outputs: float, inputs: float) -> Layer:
    """A layer with these shares of its outputs and inputs left."""
    if outputs == inputs == 1:
        return layer
    left = outputs * inputs
    shape = list(layer.shape)
    if len(shape) > 1:
        first, second = (inputs, outputs) if layer.transposed or layer.kind == "embedding" else (outputs, inputs)
        shape[:2] = [max(1, round(shape[0] * first)), max(1, round(shape[1] * second))]
    return replace(layer, parameters=round(layer.parameters * left), macs=round(layer.macs * left), shape=tuple(shape))


def _gone_of_weights(gone: Mapping[str, float], model: LayerView) -> dict[str, float]:
    """What is gone of each layer's weight, by its name; tied layers have theirs in common."""
    sums: dict[str, float] = {}
    for layer in model.layers:
        family = layer.tied_to or layer.name
        sums[family] = sums.get(family, 0.0) + gone.get(layer.name, 0.0)
    return {layer.name: sums[layer.tied_to or layer.name] for layer in model.layers}


def _removed_alone(groups: Collection[ChannelGroup], victims: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """How many channels or heads go from each layer that one group alone takes some from."""
    counts: dict[str, list[int]] = {}
    for group in groups:
        for layer in group.layers:
            counts.setdefault(layer, []).append(len(victims[group.name]))
    return {layer: found[0] for layer, found in counts.items() if len(found) == 1}


def _importance(setting: Mapping[str, Scalar]) -> Importance:
    importance: Importance = setting.get("importance", DEFAULT_IMPORTANCE)  # type: ignore[assignment]
    return importance
