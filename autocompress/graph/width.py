"""Students made from the original: the same architecture with fewer channels and fresh weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from autocompress.data import Array
from autocompress.errors import InfeasiblePlan, InvalidInput
from autocompress.graph.channel_groups import channel_groups, kept_of_group, remove_channels

if TYPE_CHECKING:
    from torch import nn


def scaled_copy(model: nn.Module, examples: tuple[Array, ...], width: float, multiple: int) -> nn.Module:
    """A student with a share of the channels, and of the heads, in every group and fresh weights.

    Args:
        model: Left as it is.
        examples: Inputs of one inference, arrays (batch, …).
        width: Share of the channels to keep, in (0, 1).
        multiple: What channel counts are rounded to where there are enough, head counts never; see `kept_channels`.

    Returns:
        A trainable model, initialized by the `reset_parameters` of its modules with torch's random numbers. Parameters
        that belong to no such module keep the values of the original.

    Raises:
        InvalidInput: If the width is not in (0, 1).
        InfeasiblePlan: If no group can shrink.
    """
    if not 0 < width < 1:
        raise InvalidInput(f"width {width}: expected a number between 0 and 1")
    victims = {}
    for group in channel_groups(model, examples):
        kept = kept_of_group(group, 1 - width, multiple)
        if kept < group.channels:
            victims[group.name] = range(kept, group.channels)
    if not victims:
        raise InfeasiblePlan(f"width {width:g}: no channel group of this model can shrink; choose a smaller width")
    student = copy.deepcopy(model)
    remove_channels(student, examples, victims)
    reset(student)
    return student


def reset(model: nn.Module) -> None:
    """Fresh weights in every module that can make them, running statistics included; all become trainable."""
    for module in model.modules():
        for name in ("reset_parameters", "_reset_parameters"):  # attention has only the second
            if callable(getattr(module, name, None)):
                getattr(module, name)()
                break
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
