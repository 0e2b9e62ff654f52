"""What weights must obey while they are trained: masks, codebooks, rounding.

A constraint is a parametrization of torch, so the model's own code sees obeying weights and the optimizer free ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.utils import parametrize


class Constraint(nn.Module):
    """Turns the free weight of a layer into one that obeys; several on one weight act in the order they were put on."""

    survives_scaling: ClassVar[bool] = False
    """True if a weight that obeys still does when its output channels are scaled, as when a batch norm is folded."""

    def __init__(self) -> None:
        super().__init__()
        self.settled = False
        """True once the schedule is over, whatever training follows."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that obeys, of the same shape; gradients flow to the free one."""
        raise NotImplementedError

    def advance(self, progress: float) -> None:
        """Follow a schedule; called before every training step until the constraint is settled.

        A constraint begins in its final form, so a model that is never trained obeys fully.

        Args:
            progress: Share of the training that is done, in [0, 1]. Constraints are final from one half on, since
                only epochs after that are kept.
        """


def constrain(module: nn.Module, constraint: Constraint, parameter: str = "weight") -> None:
    """Make a weight of a layer obey from now on."""
    constraint.train(module.training)
    parametrize.register_parametrization(module, parameter, constraint, unsafe=True)


def free_weight(module: nn.Module, parameter: str = "weight") -> nn.Parameter:
    """What the optimizer changes: the weight before its constraints, or the weight itself if it has none."""
    if parametrize.is_parametrized(module, parameter):
        free: nn.Parameter = module.parametrizations[parameter].original  # type: ignore[index,union-attr]
        return free
    return module.get_parameter(parameter)


def constraints(model: nn.Module) -> Iterator[Constraint]:
    """Every constraint on a weight of a model."""
    return (module for module in model.modules() if isinstance(module, Constraint))


def release(model: nn.Module) -> nn.Module:
    """Make the obeying weights plain parameters again, in place; returns the model."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return model
