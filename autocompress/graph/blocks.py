"""Residual blocks: modules that add something to their input, found by following gradients, and dropped.

A block is what can be taken out of a model so that what flowed in flows on. A module is one if its output is its first
input plus something computed from it; additions, activations and normalizations may follow, nothing else may lie on
the way of the input.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.data import Array
from autocompress.errors import InfeasiblePlan, did_you_mean
from autocompress.graph.inspect import replace, used_layers
from autocompress.graph.running import inputs_of, output_shapes
from autocompress.graph.view import Block

ADDITION = "AddBackward"
PASSED = (
    *(ADDITION, "Alias", "Clone", "ToCopy", "View", "UnsafeView", "ReshapeAlias", "NativeDropout"),
    *("Relu", "LeakyRelu", "PreluKernel", "Hardtanh", "Hardswish", "Elu", "Gelu", "Silu", "Mish"),
    *("NativeBatchNorm", "CudnnBatchNorm", "NativeGroupNorm", "NativeLayerNorm", "FusedRmsNorm"),
)
"""Beginnings of the names of autograd nodes that may lie between a shortcut and the output."""


@dataclass(frozen=True)
class _Call:
    """How a block is called.

    Args:
        keyword: Name under which it gets what it adds to; None if that is its first argument.
        others: What it returns behind the sum, with no tensor among it; None if it returns the sum alone.
    """

    keyword: str | None
    others: tuple[Any, ...] | list[Any] | None


class Dropped(nn.Module):
    """The place of a dropped block: gives its input on, in the form in which the block gave its output.

    What the block told about itself can still be read, since models ask their blocks for head counts and the like;
    only its weights are gone.
    """

    def __init__(self, block: nn.Module, keyword: str | None, others: tuple[Any, ...] | list[Any] | None) -> None:
        super().__init__()
        self._keyword, self._others = keyword, others
        self._told = (_without_weights(block),)  # in a tuple, so that it is no submodule

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first input."""
        value = args[0] if args else kwargs[str(self._keyword)]
        return value if self._others is None else type(self._others)((value, *self._others))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            told = self.__dict__.get("_told")
            if told is None or name.startswith("__"):
                raise
            return getattr(told[0], name)


def residual_blocks(model: nn.Module, examples: tuple[Array, ...]) -> tuple[Block, ...]:
    """The blocks that can be dropped, in the order of the model and none inside another.

    A module that is nothing but a chain of blocks is none itself; its blocks are. Modules that are called twice are
    left out, as are those that return other tensors beside the sum.

    Args:
        model: Left as it is.
        examples: Inputs of one inference, arrays (batch, …).

    Raises:
        InfeasiblePlan: If no gradients can be followed through the model; the message says why.
    """
    calls = _calls(model, examples)
    layers = used_layers(model, examples)
    found = []
    for name in _droppable(model, examples, _outermost(calls, [layer.name for layer in layers]), calls):
        inside = [layer for layer in layers if _is_within(layer.name, name)]
        parameters = sum(parameter.numel() for parameter in model.get_submodule(name).parameters())
        macs = sum(layer.macs for layer in inside)
        found.append(Block(name, parameters, macs, tuple(layer.name for layer in inside)))
    return tuple(found)


def drop_blocks(model: nn.Module, examples: tuple[Array, ...], names: Collection[str]) -> None:
    """Replace residual blocks by their shortcut, in place.

    Args:
        model: Loses the blocks.
        examples: Inputs of one inference, arrays (batch, …).
        names: Of blocks that `residual_blocks` finds, not all of them.

    Raises:
        InfeasiblePlan: If a name is no residual block, or no block would be left.
    """
    known = [block.name for block in residual_blocks(model, examples)]
    for name in names:
        if name not in known:
            raise InfeasiblePlan(f"no residual block {name!r}; {did_you_mean(name, known)}")
    if set(names) == set(known):
        raise InfeasiblePlan(f"dropping all of the residual blocks ({', '.join(known)}) leaves none; keep at least one")
    _drop(model, names, _calls(model, examples))


def _drop(model: nn.Module, names: Collection[str], calls: Mapping[str, _Call]) -> None:
    """Replace blocks under all of their names."""
    for name in names:
        block, call = model.get_submodule(name), calls[name]
        for alias in [other for other, module in model.named_modules(remove_duplicate=False) if module is block]:
            replace(model, alias, Dropped(block, call.keyword, call.others))


def _calls(model: nn.Module, examples: tuple[Array, ...]) -> dict[str, _Call]:
    """Every module inside the model that adds to its input, with how it is called."""
    traced = copy.deepcopy(model).eval()
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    inputs = inputs_of(traced, examples)
    watch = _Watch(traced)
    try:
        with torch.enable_grad():
            # a copy that is no leaf may be changed in place, as activations at the start of a block do
            traced(*(value.requires_grad_().clone() if value.is_floating_point() else value for value in inputs))
    except Exception as error:  # whatever the model's own code does that has no gradient
        raise InfeasiblePlan(
            f"the residual blocks of this model can't be found: {type(error).__name__}: {error}; leave layer drop out"
        ) from error
    return watch.found()


class _Watch:
    """Notes what each module of a model reads and gives."""

    def __init__(self, model: nn.Module) -> None:
        self._names = [name for name, module in model.named_modules() if name and _has_weights(module)]
        self._entered: dict[str, list[tuple[str | None, Any, torch.Size]]] = {}
        self._calls: dict[str, _Call] = {}
        for name in self._names:
            module = model.get_submodule(name)
            module.register_forward_pre_hook(self._before(name), with_kwargs=True)
            module.register_forward_hook(self._after(name), with_kwargs=True)

    def found(self) -> dict[str, _Call]:
        """The modules that were called once and add to their input, in the order of the model."""
        once = [name for name in self._names if len(self._entered.get(name, ())) == 1]
        return {name: self._calls[name] for name in once if name in self._calls}

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keyword, value = (None, args[0]) if args else next(iter(kwargs.items()), (None, None))
            if isinstance(value, Tensor):
                self._entered.setdefault(name, []).append((keyword, value.grad_fn, value.shape))

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value, others = (output[0], output[1:]) if type(output) in (tuple, list) and output else (output, None)
            if name not in self._entered or not isinstance(value, Tensor) or _holds_tensors(others):
                return
            keyword, entered, shape = self._entered[name][-1]
            has_gradients = entered is not None and value.grad_fn is not None
            if has_gradients and value.shape == shape and _adds(value.grad_fn, entered):
                self._calls[name] = _Call(keyword, others)

        return hook


def _adds(output: Any, entered: Any) -> bool:
    """True if some addition has the input on one side and something computed from it on the other."""
    for node in _behind(output, entered, PASSED):
        if node is entered or not node.name().startswith(ADDITION):
            continue
        sides = [side for side, _ in node.next_functions if side is not None]
        for side, other in (sides, sides[::-1]) if len(sides) == 2 else ():
            if _leads(side, entered, PASSED) and _leads(other, entered, ("",)):
                return True
    return False


def _leads(node: Any, target: Any, passed: tuple[str, ...]) -> bool:
    return any(found is target for found in _behind(node, target, passed))


def _behind(node: Any, target: Any, passed: tuple[str, ...]) -> Iterator[Any]:
    """The autograd nodes behind one, itself first, that are reached without going through others than those passed."""
    seen, waiting = {node}, [node]
    while waiting:
        node = waiting.pop()
        yield node
        if node is target or not node.name().startswith(passed):
            continue
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


def _outermost(names: Collection[str], layers: Collection[str]) -> list[str]:
    """The modules that are blocks: no chain of others, and not inside another."""
    chosen: list[str] = []
    for name in names:
        if not any(_is_within(name, outer) for outer in chosen) and not _is_chain(name, names, layers):
            chosen.append(name)
    return chosen


def _is_chain(name: str, names: Collection[str], layers: Collection[str]) -> bool:
    """True if all layers of a module lie in blocks inside it."""
    inner = [other for other in names if other != name and _is_within(other, name)]
    own = [layer for layer in layers if _is_within(layer, name)]
    return bool(inner) and all(any(_is_within(layer, other) for other in inner) for layer in own)


def _is_within(name: str, outer: str) -> bool:
    return f"{name}.".startswith(f"{outer}.")


def _droppable(
    model: nn.Module, examples: tuple[Array, ...], names: list[str], calls: Mapping[str, _Call]
) -> list[str]:
    """The blocks without which the model still works: all at once if it does, else by halves."""
    if not names or _works_without(model, examples, names, calls):
        return names
    if len(names) == 1:
        return []
    middle = len(names) // 2
    return [name for half in (names[:middle], names[middle:]) for name in _droppable(model, examples, half, calls)]


def _works_without(model: nn.Module, examples: tuple[Array, ...], names: list[str], calls: Mapping[str, _Call]) -> bool:
    candidate = copy.deepcopy(model)
    _drop(candidate, names, calls)
    try:
        return output_shapes(candidate, examples) == output_shapes(model, examples)
    except Exception:  # the model's own code may need what the block did
        return False


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_holds_tensors, value)))


def _without_weights(block: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes and no storage."""
    tensors = (*block.parameters(), *block.buffers())
    return copy.deepcopy(block, {id(tensor): _shape_of(tensor) for tensor in tensors})


def _shape_of(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
