"""Layer drop: whole residual blocks are removed, so that what flowed in flows on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from autocompress.errors import InfeasiblePlan
from autocompress.graph.view import ChannelGroup, LayerView
from autocompress.methods._base import METHODS, CompressionMethod, Context, values_of
from autocompress.plan import Scalar, Settings, Stage
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, MethodSpace, Suggest

if TYPE_CHECKING:
    from torch import nn


@METHODS.register
class LayerDrop(CompressionMethod):
    """Replaces residual blocks by their shortcut; at least one block stays.

    It acts before other methods that change the structure, which then see the model without these blocks.

    References:
        Fan et al., "Reducing Transformer Depth on Demand with Structured Dropout", 2020; Huang et al., "Deep Networks
        with Stochastic Depth", 2016.
    """

    name = "layer_drop"
    stage = Stage.STRUCTURE
    order = -1
    parameters: ClassVar[Mapping[str, str]] = {"drop": "true to remove the residual block; false leaves it"}

    def propose(self, model: LayerView, suggest: Suggest, space: MethodSpace, profile: HardwareProfile) -> Settings:
        """Whether to drop each block; the last is not asked for once all others are gone."""
        settings: dict[str, dict[str, Scalar]] = {}
        if True not in values_of(space, "drop", (False, True)):
            return settings
        for block in model.blocks:
            if len(settings) == len(model.blocks) - 1:
                break
            admitted = space.admits_part(block.name, block.layers)
            if admitted and suggest(f"{self.name}/{block.name}/drop", Choice((False, True))):
                settings[block.name] = {"drop": True}
        return settings

    def takes(self, parameter: str, value: Scalar) -> bool:
        """True for true and false."""
        return isinstance(value, bool)

    def leaves(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> LayerView:
        """The view without the blocks and what is in them."""
        gone = frozenset(layer for block in model.blocks if block.name in settings for layer in block.layers)
        groups = (_without(group, gone) for group in model.channel_groups)
        return replace(
            model,
            layers=tuple(layer for layer in model.layers if layer.name not in gone),
            channel_groups=tuple(group for group in groups if group is not None),
            blocks=tuple(block for block in model.blocks if block.name not in settings),
        )

    def check(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> None:
        """Refuse settings that drop nothing, and those that drop every block where the view knows them."""
        for name, setting in settings.items():
            if setting.get("drop") is not True:
                raise InfeasiblePlan(
                    f"{self.name}: block {name!r}: drop {setting.get('drop')!r}; expected true, or leave the block out"
                )
        if model.blocks and all(block.name in settings for block in model.blocks):
            raise InfeasiblePlan(f"{self.name}: all {len(model.blocks)} residual blocks; keep at least one")

    def apply(self, model: nn.Module, settings: Settings, context: Context) -> nn.Module:
        """Replace the blocks.

        Raises:
            InfeasiblePlan: If a name is no residual block, or no block would be left.
        """
        from autocompress.graph.blocks import drop_blocks

        drop_blocks(model, context.examples, settings)
        return model

    def verify(self, model: nn.Module, settings: Settings) -> None:
        """Every block is gone."""
        from autocompress.graph.blocks import Dropped

        for name in settings:
            if not isinstance(found := model.get_submodule(name), Dropped):
                raise InfeasiblePlan(f"{self.name}: block {name!r} is still a {type(found).__name__}; expected none")


def _without(group: ChannelGroup, gone: frozenset[str]) -> ChannelGroup | None:
    """A channel group without some layers, named after the first of those left; None if none is."""
    if gone.isdisjoint(group.layers) and gone.isdisjoint(group.readers):
        return group
    left = tuple(layer for layer in group.layers if layer not in gone)
    if not left:
        return None
    part = group.name.removeprefix(group.layers[0])
    shares = tuple(share for layer, share in zip(group.layers, group.shares, strict=False) if layer not in gone)
    read = {layer: share for layer, share in zip(group.readers, group.read_shares, strict=True) if layer not in gone}
    return replace(
        group,
        name=left[0] + part,
        layers=left,
        shares=shares,
        readers=tuple(read),
        read_shares=tuple(read.values()),
    )
