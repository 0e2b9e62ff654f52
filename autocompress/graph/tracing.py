"""One inference traced: the axes of all parameters, what silences a channel, and where the model's own code counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from autocompress.errors import InfeasiblePlan
from autocompress.graph.axes import Axis, find, freeze, leaves, split
from autocompress.graph.operators import Axes, Call, apply_rule, fixed_axes, free_axes
from autocompress.graph.running import inference

Path = tuple[Any, ...]
"""Where a value lies in the arguments of a call: position or keyword first, then indices and slice bounds."""


@dataclass(frozen=True)
class Reading:
    """Entries along an axis of an operator's argument that flow into a sum, or into statistics over the axis."""

    argument: int
    dim: int
    axis: Axis
    averaged: bool


@dataclass(frozen=True)
class Counting:
    """A call of torch's Python interface in which the model's own code says sizes.

    Args:
        name: Of the function.
        sizes: Path to (sign, axes): the number there is the sign times the sum of their sizes.
        modules: Names of the modules whose forward passes are under way, outermost first.
    """

    name: str
    sizes: dict[Path, tuple[int, tuple[Axis, ...]]]
    modules: tuple[str, ...]


@dataclass
class Trace:
    """What one inference tells about a model.

    Args:
        tensors: Name of every parameter and buffer to its axes.
        reads: (name, dimension) of parameters along which they are multiplied with activations and summed.
        operators: Names of the ATen operators in order.
        readings: Number of the operator to what it reads.
        countings: Calls in order.
        groups: Name of a weight or norm parameter to the axis that counts the groups it works in.
    """

    tensors: dict[str, Axes] = field(default_factory=dict)
    reads: set[tuple[str, int]] = field(default_factory=set)
    operators: list[str] = field(default_factory=list)
    readings: dict[int, list[Reading]] = field(default_factory=dict)
    countings: list[Counting] = field(default_factory=list)
    groups: dict[str, Axis] = field(default_factory=dict)


def trace(model: nn.Module, inputs: Sequence[Tensor], *, limit_s: float) -> Trace:
    """Follow one inference; the model is left as it is.

    Raises:
        InfeasiblePlan: If it takes longer than the limit.
        Exception: Whatever the model raises.
    """
    tracer = _Tracer(model, time.monotonic() + limit_s)
    for tensor in inputs:
        tracer.known[tensor] = fixed_axes(tensor.shape)
    with inference(model), scope_stack(model) as stack, _Functions(tracer, stack), tracer:
        result = model(*inputs)
    for tensor in tensors_in(result):
        freeze(*tracer.of(tensor))
    _fix_fused_modules(model, tracer.found)
    return tracer.found


@contextmanager
def scope_stack(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules whose forward passes are under way."""
    stack: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    def leave(*_: Any) -> None:
        stack.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dict__"):  # a cache, a dataclass
        for item in vars(value).values():
            if isinstance(item, Tensor | list | tuple | dict):
                yield from tensors_in(item)


def _fix_fused_modules(model: nn.Module, found: Trace) -> None:
    """Recurrent layers and torch's own attention read their sizes in ways that can't be mended."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
            for parameter, _ in module.named_parameters(prefix=name):
                freeze(*found.tensors.get(parameter, ()))


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies the rule of every operator as it is called."""

    def __init__(self, model: nn.Module, deadline: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = Trace()
        self.known: Any = WeakTensorKeyDictionary()
        self.last: Call | None = None
        self._deadline = deadline
        self._sources: Any = WeakTensorKeyDictionary()
        self._stored: dict[tuple[int, torch.Size], Tensor] = {}
        for name, tensor in _named_tensors(model):
            if tensor not in self.known:
                self.known[tensor] = free_axes(tensor.shape)
                self._sources[tensor] = (name, tuple(range(tensor.dim())))
                self._stored[tensor.data_ptr(), tensor.shape] = tensor
            self.found.tensors[name] = self.known[tensor]

    def of(self, tensor: Tensor) -> Axes:
        """The axes of a tensor; those of an unknown one are fixed."""
        if tensor not in self.known:
            alias = self._stored.get((tensor.data_ptr(), tensor.shape)) if tensor.numel() else None
            self.known[tensor] = fixed_axes(tensor.shape) if alias is None else self.known[alias]
            if alias is not None:
                self._sources[tensor] = self._sources[alias]
        return [find(axis) for axis in self.known[tensor]]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.monotonic() > self._deadline:
            raise InfeasiblePlan("tracing the channels took too long")
        result = func(*args, **(kwargs or {}))
        name = operator_name(func)
        if name not in UNCOUNTED:
            self.found.operators.append(name)
        outputs = [result] if isinstance(result, Tensor) else [v for v in _list(result) if isinstance(v, Tensor)]
        if not outputs:
            return result
        call = Call(name, complete(func, args, kwargs), outputs, self.of)
        for output, axes in zip(outputs, apply_rule(call, pointwise=torch.Tag.pointwise in func.tags), strict=True):
            self.known[output] = axes
        self._note(call)
        return result

    def _note(self, call: Call) -> None:
        self.last = call
        readings = [Reading(*place, False) for place in call.silenced] + [Reading(*at, True) for at in call.averaged]
        if readings:
            self.found.readings[len(self.found.operators) - 1] = readings
        for argument, dim, _ in call.silenced:
            source = self._sources.get(call.args[argument])
            if source is not None:
                self.found.reads.add((source[0], source[1][dim]))
        if call.groups is not None:
            for tensor in call.tensors[1:]:
                if tensor in self._sources:
                    self.found.groups[self._sources[tensor][0]] = call.groups
        self._follow(call)

    def _follow(self, call: Call) -> None:
        """A parameter with its dimensions in another order is still that parameter."""
        orders = {"t": [1, 0], "permute": call.arg(1), "alias": None, "detach": None, "_to_copy": None, "clone": None}
        if (call.name not in orders and call.name != "transpose") or call.args[0] not in self._sources:
            return
        name, dims = self._sources[call.args[0]]
        order = list(range(len(dims)))
        if call.name == "transpose":
            order[call.args[1]], order[call.args[2]] = order[call.args[2]], order[call.args[1]]
        elif orders[call.name] is not None and len(dims) > 1:
            order = orders[call.name]
        self._sources[call.outputs[0]] = (name, tuple(dims[dim] for dim in order))


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, shared ones by each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def operator_name(func: Any) -> str:
    """The name of an ATen operator, in-place ones as their counterparts."""
    name: str = func._schema.name.rpartition("::")[2]
    return name.rstrip("_") or name


def complete(func: Any, args: Sequence[Any], kwargs: Any) -> list[Any]:
    """Positional arguments with those given by keyword put in their places."""
    if not kwargs:
        return list(args)
    schema = func._schema.arguments
    return list(args) + [kwargs.get(item.name, item.default_value) for item in schema[len(args) :]]


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


UNCOUNTED = frozenset({"detach", "alias", "lift_fresh", "lift"})
"""Operators that torch slips in or not as modes are active."""

FACTORIES = frozenset({"zeros", "ones", "full", "empty", "rand", "randn"})
SHAPED = frozenset({"view", "reshape", "expand", "broadcast_to", "new_zeros", "new_ones", "new_full", "new_empty"})
CONVOLUTIONS = frozenset({f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3)})
OTHERS = frozenset(
    {"unflatten", "split", "split_with_sizes", "narrow", "__getitem__", "layer_norm", "rms_norm", "group_norm"}
)
COUNTED = FACTORIES | SHAPED | CONVOLUTIONS | OTHERS
"""Functions whose arguments may hold sizes of axes."""


class _Functions(TorchFunctionMode):
    """Records the calls in which sizes are said."""

    def __init__(self, tracer: _Tracer, stack: list[str]) -> None:
        super().__init__()
        self._tracer, self._stack = tracer, stack

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in COUNTED:
            sizes = _sizes(name, args, kwargs or {}, result, self._tracer)
            self._tracer.found.countings.append(Counting(name, sizes, tuple(self._stack)))
        return result


def integers(value: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    """All integers in nested arguments with their paths."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield path, int(value)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from integers(item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from integers(item, (*path, key))
    elif isinstance(value, slice):
        yield from integers({"start": value.start, "stop": value.stop}, path)


def substitute(value: Any, path: Path, number: int) -> Any:
    """Nested arguments with one integer replaced."""
    if not path:
        return number
    key, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {**value, key: substitute(value[key], rest, number)}
    if isinstance(value, slice):
        bounds = {"start": value.start, "stop": value.stop, key: number}
        return slice(bounds["start"], bounds["stop"], value.step)
    items = list(value)
    items[key] = substitute(items[key], rest, number)
    return items if isinstance(value, list) else tuple(items)


Sizes = dict[Path, tuple[int, tuple[Axis, ...]]]


def _sizes(name: str, args: Any, kwargs: Any, result: Any, tracer: _Tracer) -> Sizes:
    """The integers among the arguments that are sizes, with the axes they count."""
    said = [*integers(args, ("args",)), *integers(kwargs, ("kwargs",))]
    if not said and name not in OTHERS:
        return {}
    if name in FACTORIES or name in SHAPED:
        axes = tracer.of(result)
        shown = [item for item in said if "dtype" not in item[0]][: len(axes)]
        return {path: (1, (axis,)) for (path, size), axis in zip(shown, axes, strict=False) if size == axis.size}
    if name in CONVOLUTIONS or name == "group_norm":
        return _group_sizes(name, said, tracer)
    if name == "__getitem__":
        return _slice_sizes(args, tracer)
    return _other_sizes(name, (args, kwargs), said, result, tracer)


def _group_sizes(name: str, said: list[tuple[Path, int]], tracer: _Tracer) -> Sizes:
    groups = tracer.last.groups if tracer.last is not None else None
    places = (("args", 1 if name == "group_norm" else 6), ("kwargs", "num_groups"), ("kwargs", "groups"))
    return {} if groups is None else {path: (1, (groups,)) for path, _ in said if path in places}


def _other_sizes(
    name: str, given: tuple[Any, dict[str, Any]], said: list[tuple[Path, int]], result: Any, tracer: _Tracer
) -> Sizes:
    args, kwargs = given
    axes = tracer.of(args[0]) if args and isinstance(args[0], Tensor) else []
    if not axes:
        return {}
    if name in ("layer_norm", "rms_norm"):
        inside = [path for path, _ in said if path[:2] in (("args", 1), ("kwargs", "normalized_shape"))]
        return {path: (1, (axis,)) for path, axis in zip(inside, axes[-len(inside) :], strict=True)} if inside else {}
    if name == "unflatten":
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        inside = [path for path, _ in said if path[:2] in (("args", 2), ("kwargs", "sizes"))]
        return {path: (1, (axis,)) for path, axis in zip(inside, tracer.of(result)[dim % len(axes) :], strict=False)}
    if name == "narrow":
        dim, start = args[1], args[2]
        before, piece, _ = _cut(axes[dim], start, result.shape[dim])
        return {("args", 2): (1, (before,)), ("args", 3): (1, (piece,))} if isinstance(start, int) else {}
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    inside = [path for path, _ in said if path[:2] == ("args", 1) or path[1] == "split_size_or_sections"]
    pieces = [tracer.of(piece)[dim] for piece in result]
    return {path: (1, (piece,)) for path, piece in zip(inside, pieces, strict=False)}


def _cut(axis: Axis, start: int, length: int) -> list[Axis]:
    return split(axis, [start, length, axis.size - start - length])


def _slice_sizes(args: Any, tracer: _Tracer) -> Sizes:
    """Bounds of plain slices; what follows an index tensor is left out."""
    axes, index = tracer.of(args[0]), args[1]
    places: list[tuple[Path, Any]] = [(("args", 1), index)]
    if isinstance(index, tuple):
        places = [(("args", 1, at), item) for at, item in enumerate(index)]
    sizes: Sizes = {}
    dim = 0
    for path, item in places:
        if item is Ellipsis:
            dim = len(axes) - sum(other is not None and other is not Ellipsis for _, other in places) + dim
        elif isinstance(item, slice):
            sizes |= _bounds(path, item, axes[dim])
            dim += 1
        elif isinstance(item, int):
            dim += 1
        elif item is not None:
            break
    return sizes


def _bounds(path: Path, item: slice, axis: Axis) -> Sizes:
    start, stop, step = item.indices(axis.size) if item.step in (None, 1) else (0, 0, 0)
    if step != 1 or stop <= start or not any(not leaf.fixed for leaf in leaves(axis)):
        return {}
    before, piece, after = _cut(axis, start, stop - start)
    sizes: Sizes = {}
    if isinstance(item.start, int) and item.start:
        sizes[*path, "start"] = (1, (before,)) if item.start > 0 else (-1, (piece, after))
    if isinstance(item.stop, int) and abs(item.stop) < axis.size:
        sizes[*path, "stop"] = (1, (before, piece)) if item.stop > 0 else (-1, (after,))
    return sizes
