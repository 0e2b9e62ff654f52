"""Students made from the original: the same architecture with fewer residual blocks and fresh weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from autocompress.data import Array
from autocompress.errors import InfeasiblePlan, InvalidInput
from autocompress.graph.width import reset

if TYPE_CHECKING:
    from torch import nn


def shallow_copy(model: nn.Module, examples: tuple[Array, ...], depth: float) -> nn.Module:
    """A student with a share of the residual blocks of every stage, evenly spread, and fresh weights.

    Blocks of one class beside one another make up a stage; its first block stays. Blocks that change the shape, and so
    can't be dropped, count as blocks of their stage.

    Args:
        model: Left as it is.
        examples: Inputs of one inference, arrays (batch, …).
        depth: Share of the blocks to keep, in (0, 1).

    Returns:
        A trainable model, initialized by the `reset_parameters` of its modules with torch's random numbers. Parameters
        that belong to no such module keep the values of the original.

    Raises:
        InvalidInput: If the depth is not in (0, 1).
        InfeasiblePlan: If no block can be left out.
    """
    from autocompress.graph.blocks import drop_blocks, residual_blocks

    if not 0 < depth < 1:
        raise InvalidInput(f"depth {depth}: expected a number between 0 and 1")
    names = [block.name for block in residual_blocks(model, examples)]
    if not names:
        raise InfeasiblePlan(
            f"depth {depth:g}: this model has no residual block that could be left out; leave depths out"
        )
    kept = {name for stage in _stages(model, names) for name in spread(stage, depth)}
    dropped = [name for name in names if name not in kept]
    if not dropped:
        raise InfeasiblePlan(
            f"depth {depth:g}: no residual block of this model ({', '.join(names)}) can be left out; choose a smaller "
            "depth, or leave depths out"
        )
    student = copy.deepcopy(model)
    drop_blocks(student, examples, dropped)
    reset(student)
    return student


def spread(stage: tuple[str, ...], depth: float) -> tuple[str, ...]:
    """A share of some blocks, the first among them and the others evenly apart.

    >>> spread(("a", "b", "c"), 0.5), spread(("a", "b", "c", "d"), 0.5), spread(("a", "b"), 0.1)
    (('a', 'b'), ('a', 'c'), ('a',))
    """
    count = max(1, int(depth * len(stage) + 0.5))
    return tuple(stage[index * len(stage) // count] for index in range(count))


def _stages(model: nn.Module, names: list[str]) -> list[tuple[str, ...]]:
    """The blocks with those beside them that are of the same class."""
    stages: dict[tuple[str, type], tuple[str, ...]] = {}
    for name in names:
        parent, _, _ = name.rpartition(".")
        kind = type(model.get_submodule(name))
        beside = model.get_submodule(parent).named_children()
        stages[parent, kind] = tuple(f"{parent}.{own}".strip(".") for own, child in beside if type(child) is kind)
    return list(stages.values())
