"""A live model measured: its layers with their MACs, its submodules by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from autocompress.data import Array
from autocompress.errors import InfeasiblePlan
from autocompress.graph.channel_groups import channel_groups
from autocompress.graph.running import outputs
from autocompress.graph.view import Layer, LayerKind, LayerView
from autocompress.plan import ORIGINAL

if TYPE_CHECKING:
    from torch import nn


T = TypeVar("T")


def layer_view(model: nn.Module, examples: tuple[Array, ...], architecture: str = ORIGINAL) -> LayerView:
    """The model as layers, channel groups and residual blocks.

    Args:
        model: Left as it is.
        examples: Inputs of one inference, arrays (batch, …).
        architecture: Name of the model.

    Returns:
        The layers that the forward pass uses, in the order of the model, and the channel groups that can be pruned:
        none if the model can't be traced, for which `channel_groups` gives the reason; likewise the residual blocks.
    """
    from autocompress.graph.blocks import residual_blocks  # holds a module of torch

    groups = _found(channel_groups, model, examples)
    return LayerView(
        architecture, used_layers(model, examples), groups, blocks=_found(residual_blocks, model, examples)
    )


def _found(find: Callable[..., tuple[T, ...]], model: nn.Module, examples: tuple[Array, ...]) -> tuple[T, ...]:
    try:
        return find(model, examples)
    except InfeasiblePlan:
        return ()


def used_layers(model: nn.Module, examples: tuple[Array, ...]) -> tuple[Layer, ...]:
    """The layers with weights that the forward pass uses, in the order of the model.

    MACs are those of the products with weights and, in attention, of queries with keys and of scores with values. A
    layer that is called twice counts twice.
    """
    from autocompress.graph.constraints import free_weight, tied_modules

    macs: dict[str, int] = {}
    kinds = {name: (module, kind) for name, module, kind in _candidates(model)}

    def count(name: str, kind: LayerKind) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            macs[name] = macs.get(name, 0) + _COUNTERS[kind](module, args, kwargs, output)

        return hook

    hooks = [
        module.register_forward_hook(count(name, kind), with_kwargs=True) for name, (module, kind) in kinds.items()
    ]
    try:
        outputs(model, examples)
    finally:
        for handle in hooks:
            handle.remove()
    used = {name: found for name, found in kinds.items() if name in macs}
    tied = tied_modules(model)
    first: dict[int, str] = {}
    owners = {
        name: first.setdefault(id(free_weight(module)), name) for name, (module, _) in used.items() if module in tied
    }
    return tuple(_layer(name, module, kind, macs[name], owners.get(name)) for name, (module, kind) in used.items())


def _layer(name: str, module: nn.Module, kind: LayerKind, macs: int, owner: str | None) -> Layer:
    from autocompress.graph.factorization import is_plain

    weight = getattr(module, "weight", None)
    return Layer(
        name,
        kind,
        sum(parameter.numel() for parameter in module.parameters()),
        macs,
        tuple(weight.shape) if weight is not None else (),
        int(getattr(module, "groups", 1)),
        bool(getattr(module, "transposed", False)),
        kind not in ("conv", "linear") or (is_plain(module) and owner is None),
        owner if owner is not None and owner != name else "",
    )


def weighted_modules(model: nn.Module, name: str) -> tuple[tuple[str, nn.Module], ...]:
    """The convolutions, linear layers and embeddings at a name and beneath it, by their own names.

    Methods that act on weights find them by this, also where an earlier method has put several modules in the place of
    the user's layer.
    """
    from torch import nn

    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)
    found = model.get_submodule(name).named_modules()
    return tuple((f"{name}.{inner}".strip("."), module) for inner, module in found if isinstance(module, kinds))


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the submodule `name`, in the same mode."""
    parent, _, attribute = name.rpartition(".")
    module.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), attribute, module)


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, LayerKind]]:
    """Modules with weights; those inside an attention or recurrent layer belong to it."""
    taken: tuple[str, ...] = ()
    for name, module in model.named_modules():
        kind = _kind(module)
        if kind is None or any(name.startswith(f"{outer}.") for outer in taken):
            continue
        if kind in ("attention", "recurrent"):
            taken = (*taken, name)
        yield name, module, kind


def _kind(module: nn.Module) -> LayerKind | None:
    from torch import nn

    kinds: tuple[tuple[tuple[type, ...], LayerKind], ...] = (
        ((nn.modules.conv._ConvNd,), "conv"),
        ((nn.Linear,), "linear"),
        ((nn.Embedding,), "embedding"),
        ((nn.MultiheadAttention,), "attention"),
        ((nn.RNNBase, nn.RNNCellBase), "recurrent"),
    )
    return next((kind for types, kind in kinds if isinstance(module, types)), None)


def _conv_macs(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Each input position of a transposed convolution meets the whole kernel, each output position of others."""
    positions = _first(args, kwargs) if module.transposed else output
    return int(positions.numel() * module.weight[0].numel())


def _linear_macs(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    return int(output.numel() * module.in_features)


def _attention_macs(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    query, key, value = bound["query"], bound["key"], bound["value"]
    width, keys = module.embed_dim, key.shape[1 if module.batch_first and key.dim() == 3 else 0]
    queries = query.numel() // query.shape[-1]
    projections = 2 * query.numel() * width + (key.numel() + value.numel()) * width
    return int(projections + 2 * queries * keys * width)


def _recurrent_macs(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Every weight matrix once for each step of each sequence."""
    steps = _first(args, kwargs)
    steps = getattr(steps, "data", steps)  # a packed sequence holds (steps, features)
    matrices = sum(weight.numel() for name, weight in module.named_parameters() if name.startswith("weight"))
    return int(steps.numel() // steps.shape[-1] * matrices)


_COUNTERS: dict[LayerKind, Callable[..., int]] = {
    "conv": _conv_macs,
    "linear": _linear_macs,
    "embedding": lambda *_: 0,
    "attention": _attention_macs,
    "recurrent": _recurrent_macs,
}


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))
