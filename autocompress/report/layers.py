"""The layers of a model in its own order, as far as plans tell it."""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from autocompress.plan import Plan


def layer_order(plans: Iterable[Plan]) -> list[str]:
    """The layers that some plan touches, in the order of the model as far as the steps tell it."""
    orders = [list(step.settings) for plan in plans for step in plan.steps]
    sorter = TopologicalSorter[str]({layer: () for order in orders for layer in order})
    for order in orders:
        for before, after in pairwise(order):
            sorter.add(after, before)
    try:
        return list(sorter.static_order())
    except CycleError:
        return sorted({layer for order in orders for layer in order})
