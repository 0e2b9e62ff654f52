"""Channel pruning: whole channels are removed, so the model is smaller and faster on any runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, get_args

from autocompress.errors import InfeasiblePlan
from autocompress.graph.channel_groups import Importance, importances, kept_channels, remove_channels
from autocompress.graph.view import ChannelGroup, LayerView
from autocompress.methods._base import METHODS, CompressionMethod, Context, values_of
from autocompress.plan import Scalar, Settings, Stage
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, MethodSpace, Suggest

if TYPE_CHECKING:
    from torch import nn

RATIOS = (0.0, 0.25, 0.5, 0.75)
DEFAULT_IMPORTANCE: Importance = "l2"


@METHODS.register
class ChannelPruning(CompressionMethod):
    """Removes the channels with the smallest weights from groups of layers that share them.

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", 2023.
    """

    name = "channel_pruning"
    stage = Stage.STRUCTURE
    parameters: ClassVar[Mapping[str, str]] = {
        "pruning_ratio": "share of the group's channels to remove, in (0, 1), rounded to the machine's multiple",
        "importance": "what the channels to keep have most of: l1, l2 (default) or bn_scale",
    }

    def propose(self, model: LayerView, suggest: Suggest, space: MethodSpace, profile: HardwareProfile) -> Settings:
        """A ratio for each channel group; ratios that leave the same channels are one choice."""
        settings: dict[str, dict[str, Scalar]] = {}
        for group in model.channel_groups:
            options = distinct_ratios(
                group.channels, values_of(space, "pruning_ratio", RATIOS), profile.channel_multiple
            )
            if len(options) == 1 or not _admits(space, group):
                continue
            ratio = suggest(f"{self.name}/{group.name}/pruning_ratio", Choice(options))
            if ratio:
                settings[group.name] = {
                    "pruning_ratio": ratio,
                    **self._importance(group.name, suggest, space),
                }
        return settings

    def _importance(self, group: str, suggest: Suggest, space: MethodSpace) -> dict[str, Scalar]:
        options = values_of(space, "importance", ())
        return {"importance": suggest(f"{self.name}/{group}/importance", Choice(options))} if options else {}

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
                raise InfeasiblePlan(f"{self.name}: group {group!r}: pruning_ratio {ratio!r}; expected 0 < ratio < 1")
            if importance not in get_args(Importance):
                raise InfeasiblePlan(
                    f"{self.name}: group {group!r}: importance {importance!r}; expected l1, l2 or bn_scale"
                )

    def apply(self, model: nn.Module, settings: Settings, context: Context) -> nn.Module:
        """Remove the least important channels of each group.

        Raises:
            InfeasiblePlan: If a name is no channel group, a ratio rounds to removing nothing, or the model without
                the channels does not work as expected.
        """
        wanted = {group: _importance(setting) for group, setting in settings.items()}
        scores = importances(model, context.examples, wanted)
        victims = {}
        for group, setting in settings.items():
            ratio = float(setting["pruning_ratio"])
            victims[group] = self._least_important(group, scores[group], ratio, context.profile.channel_multiple)
        expected = {group: len(scores[group]) - len(victims[group]) for group in settings}
        remove_channels(model, context.examples, victims)
        for group, channels in expected.items():
            self._verify(model.get_submodule(group), group, channels)
        return model

    def _least_important(self, group: str, scores: tuple[float, ...], ratio: float, multiple: int) -> list[int]:
        count = len(scores) - kept_channels(len(scores), ratio, multiple)
        if not count:
            raise InfeasiblePlan(
                f"{self.name}: group {group!r}: pruning_ratio {ratio:g} of {len(scores)} channels rounds to none at "
                f"multiples of {multiple}; choose a larger ratio or leave the group out"
            )
        return sorted(sorted(range(len(scores)), key=lambda channel: scores[channel])[:count])

    def _verify(self, layer: nn.Module, group: str, channels: int) -> None:
        found = getattr(layer, "out_channels", None) or getattr(layer, "out_features", None)
        if found != channels:
            raise InfeasiblePlan(
                f"{self.name}: group {group!r} has {found} channels after pruning; expected {channels}"
            )


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


def _importance(setting: Mapping[str, Scalar]) -> Importance:
    importance: Importance = setting.get("importance", DEFAULT_IMPORTANCE)  # type: ignore[assignment]
    return importance


def _admits(space: MethodSpace, group: ChannelGroup) -> bool:
    """True if the group's name is wanted and none of its layers is excluded."""
    anywhere = replace(space, layers=("*",))
    return space.admits(group.name) and all(anywhere.admits(layer) for layer in group.layers)
