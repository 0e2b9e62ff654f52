"""What weights must obey while they are trained: masks, codebooks, rounding.

A constraint is a parametrization of torch, so the model's own code sees obeying weights and the optimizer free ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Constraint(nn.Module):
    """Turns the free weight of a layer into one that obeys; several on one weight act in the order they were put on.

    The first one may keep a free weight of another shape, which its method `right_inverse` makes of the layer's.
    """

    survives_scaling: ClassVar[bool] = False
    """True if a weight that obeys still does when its output channels are scaled, as when a batch norm is folded."""

    trains_free_weight: bool = True
    """False if the free weight is to stay as it is, since only the constraint's own parameters are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.settled = False
        """True once the schedule is over, whatever training follows."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that obeys, of the shape that the layer needs; gradients flow to the free one."""
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


def hold(model: nn.Module, module: nn.Module, constraint: Constraint, parameter: str = "weight") -> None:
    """Make a weight obey from now on wherever a model uses it, so that tied weights stay tied."""
    for user, name in users(model, module, parameter):
        constrain(user, constraint, name)


def is_free(module: nn.Module, parameter: str = "weight") -> bool:
    """True if a weight is a parameter with nothing but our constraints on it; not so with weight norm and the like."""
    if parametrize.is_parametrized(module, parameter):
        return all(isinstance(one, Constraint) for one in parametrizations_of(module, parameter))
    return parameter in dict(module.named_parameters(recurse=False, remove_duplicate=False))


def parametrizations_of(module: nn.Module, parameter: str = "weight") -> tuple[nn.Module, ...]:
    """What the free weight goes through on its way to the layer, constraints and the user's own, in their order."""
    if not parametrize.is_parametrized(module, parameter):
        return ()
    return tuple(module.parametrizations[parameter])  # type: ignore[index]


def free_weight(module: nn.Module, parameter: str = "weight") -> nn.Parameter:
    """What the optimizer changes: the weight before its constraints, or the weight itself if it has none."""
    if parametrize.is_parametrized(module, parameter):
        free: nn.Parameter = module.parametrizations[parameter].original  # type: ignore[index,union-attr]
        return free
    return module.get_parameter(parameter)


def constraints(model: nn.Module) -> Iterator[Constraint]:
    """Every constraint on a weight of a model."""
    return (module for module in model.modules() if isinstance(module, Constraint))


def users(model: nn.Module, module: nn.Module, parameter: str = "weight") -> tuple[tuple[nn.Module, str], ...]:
    """The modules of a model that use the free weight of one of them, with its name there; several if it is tied."""
    if not _has_one_tensor(module, parameter):
        return ((module, parameter),)
    weight = free_weight(module, parameter)
    return tuple((other, name) for other, name in _weights(model) if free_weight(other, name) is weight)


def tied_modules(model: nn.Module) -> set[nn.Module]:
    """The modules of a model whose free weight is used elsewhere too."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module, name in _weights(model):
        found.setdefault(id(free_weight(module, name)), []).append((module, name))
    return {module for uses in found.values() if len(uses) > 1 for module, name in uses if name == "weight"}


def release(model: nn.Module) -> nn.Module:
    """Make the obeying weights plain parameters again, in place; returns the model."""
    release_weights([(module, name) for module in model.modules() for name in _weight_names(module)])
    return model


def release_weights(held: Iterable[tuple[nn.Module, str]]) -> None:
    """Make some obeying weights plain parameters again, in place; of tied ones all have to be given."""
    held = [(module, name) for module, name in held if parametrize.is_parametrized(module, name)]
    obeying = [getattr(module, name).detach().clone() for module, name in held]  # before a tied one is changed
    for (module, name), weight in zip(held, obeying, strict=True):
        several = not _has_one_tensor(module, name)
        shared = type(module)  # torch takes the weight off the class, which copies of a parametrized module share
        module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        parametrize.remove_parametrizations(module, name, leave_parametrized=several)
        if not isinstance(getattr(module, name), nn.Parameter):  # torch leaves a plain tensor of several frozen ones
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        with torch.no_grad():
            free_weight(module, name).set_(weight)
        free_weight(module, name).grad = None


def _weights(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every module with the names of its parameters that have one free tensor."""
    for module in model.modules():
        if not isinstance(module, parametrize.ParametrizationList):
            yield from ((module, name) for name in _weight_names(module) if _has_one_tensor(module, name))


def _weight_names(module: nn.Module) -> list[str]:
    names = {name for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)}
    if parametrize.is_parametrized(module):
        names |= set(module.parametrizations)  # type: ignore[arg-type]
    return sorted(names)


def _has_one_tensor(module: nn.Module, parameter: str) -> bool:
    """False for parametrizations of the user's own with several free tensors, such as weight norm."""
    if not parametrize.is_parametrized(module, parameter):
        return True
    return bool(module.parametrizations[parameter].is_tensor)  # type: ignore[index,union-attr]
