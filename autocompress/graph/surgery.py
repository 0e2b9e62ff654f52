"""A traced model run with channels silenced, and the same model cut and its sizes mended."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from autocompress.graph.axes import Axis, Kept, is_fixed, leaves, mask
from autocompress.graph.running import inference
from autocompress.graph.tracing import (
    COUNTED,
    UNCOUNTED,
    Path,
    Reading,
    Trace,
    complete,
    integers,
    operator_name,
    scope_stack,
    substitute,
    tensors_in,
)

PASSES = 8
"""How often a cut model is run to find attributes that hold sizes."""

NORMS = ("native_layer_norm", "_fused_rms_norm", "native_group_norm")


class CanNotFollow(Exception):
    """The model's own code counts channels in a way that can't be mended.

    Args:
        leaves: The axes to blame; empty if that is not known.
    """

    def __init__(self, message: str, leaves: Iterable[Axis] = ()) -> None:
        super().__init__(message)
        self.leaves = frozenset(leaves)


def silenced_outputs(model: nn.Module, inputs: Sequence[Tensor], trace: Trace, kept: Kept) -> tuple[Tensor, ...]:
    """The outputs of the model if nothing reads the channels that are not kept.

    They count as zero where they are summed with weights, and stay out of means and of the statistics of norms.

    Raises:
        CanNotFollow: If the inference goes another way than the one traced.
    """
    with inference(model), _Silencer(trace, kept):
        return tuple(tensors_in(model(*inputs)))


class _Silencer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, trace: Trace, kept: Kept) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace, self._kept, self._number = trace, kept, -1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator_name(func)
        if name in UNCOUNTED:
            return func(*args, **(kwargs or {}))
        self._number += 1
        if self._number >= len(self._trace.operators) or self._trace.operators[self._number] != name:
            raise CanNotFollow("a second inference runs other operators than the first")
        readings = [item for item in self._trace.readings.get(self._number, ()) if _loses(item.axis, self._kept)]
        if not readings:
            return func(*args, **(kwargs or {}))
        args = complete(func, args, kwargs)
        if name in NORMS:
            results = func(*args)
            results[0].copy_(_norm_of_kept(name, args, readings, self._kept))  # keeps the order in memory
            return results
        for reading in readings:
            args[reading.argument] = _silence(args[reading.argument], reading, self._kept)
        return func(*args) if not kwargs else func(*args[: len(func._schema.arguments)])


def _loses(axis: Axis, kept: Kept) -> bool:
    return any(leaf in kept for leaf in leaves(axis))


def _silence(tensor: Tensor, reading: Reading, kept: Kept) -> Tensor:
    stays = torch.from_numpy(mask(reading.axis, kept)).to(tensor.device)
    if reading.averaged:
        return tensor.index_select(reading.dim, stays.nonzero().flatten())
    return tensor * stays.to(tensor.dtype).reshape(-1, *(1 for _ in tensor.shape[reading.dim + 1 :]))


def _norm_of_kept(name: str, args: list[Any], readings: list[Reading], kept: Kept) -> Tensor:
    """A norm whose statistics run over what is kept; what is not kept gets any values."""
    value: Tensor = args[0]
    group = name == "native_group_norm"
    dims = list(range(1, value.dim())) if group else list(range(value.dim() - len(args[1]), value.dim()))
    few = value
    for reading in readings:
        few = _silence(few, reading, kept)
    weight, bias = (args[1], args[2]) if group else (args[2], None if name == "_fused_rms_norm" else args[3])
    if name == "_fused_rms_norm":
        eps = args[3] if args[3] is not None else torch.finfo(value.dtype).eps
        scaled = value * torch.rsqrt(few.square().mean(dims, keepdim=True) + eps)
    else:
        eps = args[7] if group else args[4]
        variance, mean = torch.var_mean(few, dims, correction=0, keepdim=True)
        scaled = (value - mean) * torch.rsqrt(variance + eps)
    shape = (-1, *(1 for _ in value.shape[2:])) if group else None
    if weight is not None:
        scaled = scaled * (weight.reshape(shape) if shape else weight)
    if bias is not None:
        scaled = scaled + (bias.reshape(shape) if shape else bias)
    return scaled


@dataclass(frozen=True)
class Edit:
    """An attribute of a module that holds a size, and the size it gets.

    Args:
        module: Its name.
        keys: Attribute, then index into a list or attribute of a settings object where there is one.
        value: The new size.
    """

    module: str
    keys: tuple[Any, ...]
    value: int


def cut(model: nn.Module, trace: Trace, kept: Kept) -> None:
    """Slice every parameter and buffer, in place, and tell torch's own modules their new sizes."""
    done: dict[int, Tensor] = {}
    touched = set()
    for name, axes in trace.tensors.items():
        if not any(_loses(axis, kept) for axis in axes):
            continue
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        tensor = getattr(module, attribute)
        if id(tensor) not in done:
            done[id(tensor)] = _sliced(tensor, axes, kept)
        store: dict[str, Any] = module._parameters if attribute in module._parameters else module._buffers
        store[attribute] = done[id(tensor)]
        touched.add(owner)
    for name, groups in trace.groups.items():
        owner = name.rpartition(".")[0]
        module = model.get_submodule(owner)
        if _loses(groups, kept):
            for attribute in ("groups", "num_groups"):
                if isinstance(getattr(module, attribute, None), int):
                    setattr(module, attribute, int(mask(groups, kept).sum()))
            touched.add(owner)
    for name in touched:
        _tell(model.get_submodule(name))


def _sliced(tensor: Tensor, axes: Sequence[Axis], kept: Kept) -> Tensor:
    data = tensor.detach()
    for dim, axis in enumerate(axes):
        if _loses(axis, kept):
            data = data.index_select(dim, torch.from_numpy(mask(axis, kept)).nonzero().flatten().to(data.device))
    data = data.clone(memory_format=torch.contiguous_format)
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _tell(module: Any) -> None:
    """The sizes that torch's own modules remember, read from their tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        first, second = module.weight.shape[:2]
        inputs, outputs = (first, second * module.groups) if module.transposed else (second * module.groups, first)
        module.in_channels, module.out_channels = inputs, outputs
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        known = (module.weight, module.running_mean)
        module.num_features = next(len(tensor) for tensor in known if tensor is not None)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def mend(model: nn.Module, inputs: Sequence[Tensor], trace: Trace, kept: Kept) -> list[Edit]:
    """Find the attributes of a cut model that hold old sizes and change them, in place.

    The model is run beside the trace: where its code says a size that is not the one expected, the attributes of the
    modules under way that hold this number are tried one after the other, until every call says what it should.

    Raises:
        CanNotFollow: If no attribute explains a wrong size, or the model raises.
    """
    mender = _Mender(model, trace, kept)
    for _ in range(PASSES):
        mender.begin()
        failure: Exception | None = None
        try:
            with inference(model), scope_stack(model) as stack, mender.following(stack):
                model(*inputs)
        except CanNotFollow:
            raise
        except Exception as error:  # the model's own code meets a size it does not expect
            failure = error
        if mender.exhausted:
            raise CanNotFollow("no attribute of its modules explains a size", mender.blamed)
        if not mender.changed and failure is None:
            return list(mender.edits.values())
        if not mender.changed:
            raise CanNotFollow(f"{type(failure).__name__}: {failure}") from failure
    raise CanNotFollow("sizes in its attributes contradict one another", mender.wrong)


class _Mender(TorchFunctionMode):
    """Corrects sizes as they are said, and the attributes they come from for the next time."""

    def __init__(self, model: nn.Module, trace: Trace, kept: Kept) -> None:
        super().__init__()
        self._modules = dict(model.named_modules())
        self._trace, self._kept = trace, kept
        self._places: dict[tuple[int, Path], Iterator[tuple[str, tuple[Any, ...], int]]] = {}
        self._tried: dict[tuple[int, Path], tuple[Edit, int]] = {}
        self._owned: set[int] = set()
        self._copies: list[Any] = []
        self.edits: dict[tuple[str, tuple[Any, ...]], Edit] = {}
        self.blamed: set[Axis] = set()
        self.exhausted = False
        self._stack: list[str] = []
        self.begin()

    def begin(self) -> None:
        """Start to follow an inference."""
        self._number = -1
        self.changed = False
        self.wrong: set[Axis] = set()
        self._recent: set[tuple[str, int, int]] = set()

    def following(self, stack: list[str]) -> _Mender:
        """Look for attributes in the modules whose forward passes are under way."""
        self._stack = stack
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in COUNTED:
            args, kwargs = self._corrected(func.__name__, args, kwargs)
        return func(*args, **kwargs)

    def _corrected(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        self._number += 1
        if self._number >= len(self._trace.countings) or self._trace.countings[self._number].name != name:
            raise CanNotFollow("without some channels its code takes another way")
        said = {"args": args, "kwargs": kwargs}
        numbers = dict(integers(said))
        for path, (sign, axes) in self._trace.countings[self._number].sizes.items():
            expected = sign * sum(int(mask(axis, self._kept).sum()) for axis in axes)
            actual = numbers.get(path)
            if actual is not None and actual not in {expected, -1}:
                self._explain(path, actual, expected, axes)
                said = substitute(said, path, expected)
        return said["args"], said["kwargs"]

    def _explain(self, path: Path, actual: int, expected: int, axes: Iterable[Axis]) -> None:
        """Change the next attribute that may be the source of a wrong size."""
        key = (self._number, path)
        self.changed = True
        self.wrong |= {leaf for axis in axes for leaf in leaves(axis) if leaf in self._kept}
        scope = self._stack[-1] if self._stack else ""
        if key not in self._tried and (scope, actual, expected) in self._recent:
            return  # said before the attribute was changed in this very pass
        if key in self._tried:
            self._revert(key)
        elif key not in self._places:
            self._places[key] = self._candidates(abs(actual), abs(expected))
        for module, keys, value in self._places[key]:
            if (module, keys) in self.edits:
                continue  # it is the source of another size
            old = self._get(module, keys)
            self._set(module, keys, value)
            edit = Edit(module, keys, value)
            self._tried[key] = (edit, old)
            self.edits[module, keys] = edit
            self._recent.add((scope, actual, expected))
            return
        self.exhausted = True
        counted = {leaf for axis in axes for leaf in leaves(axis) if leaf in self._kept}
        # a size that should have stayed is that of an axis which has shrunk
        self.blamed |= counted or {leaf for leaf, stays in self._kept.items() if int(stays.sum()) == abs(actual)}

    def _revert(self, key: tuple[int, Path]) -> None:
        edit, old = self._tried.pop(key)
        if self._get(edit.module, edit.keys) == edit.value:
            self._set(edit.module, edit.keys, old)
            self.edits.pop((edit.module, edit.keys), None)

    def _candidates(self, actual: int, expected: int) -> Iterator[tuple[str, tuple[Any, ...], int]]:
        """Attributes that hold the number, innermost module first, then its divisors and double in that module."""
        names = list(dict.fromkeys(reversed(self._stack or [""])))
        places = [(name, keys, value) for name in names for keys, value in _numbers(self._modules[name])]
        ranked = [(name, keys, expected) for name, keys, value in places if value == actual]
        for name, keys, value in places:
            related = value > 1 and value != actual and (actual % value == 0 or value == 2 * actual)
            if name == names[0] and related and value * expected % actual == 0:
                ranked.append((name, keys, value * expected // actual))
        return iter(ranked)

    def _get(self, module: str, keys: tuple[Any, ...]) -> int:
        value = vars(self._modules[module])[keys[0]]
        for key in keys[1:]:
            value = value[key] if isinstance(key, int) else vars(value)[key]
        return int(value)

    def _set(self, module: str, keys: tuple[Any, ...], value: int) -> None:
        set_attribute(self._modules[module], keys, value)


def _numbers(module: nn.Module) -> Iterator[tuple[tuple[Any, ...], int]]:
    """The whole numbers among the attributes of a module, in its lists and in its settings objects too."""
    for name, value in list(vars(module).items()):
        if isinstance(value, bool) or name in ("training", "_version"):
            continue
        if isinstance(value, int):
            yield (name,), value
        elif isinstance(value, list | tuple):
            yield from (((name, at), item) for at, item in enumerate(value) if type(item) is int)
    for name, value in list(vars(module).items()):
        plain = hasattr(value, "__dict__") and not isinstance(value, nn.Module | Tensor | type) and not callable(value)
        if plain:
            yield from (((name, key), item) for key, item in list(vars(value).items()) if type(item) is int)


def set_attribute(module: nn.Module, keys: tuple[Any, ...], value: int) -> None:
    """Change a number in a module; lists and settings objects, which others may share, are copied first."""
    if len(keys) == 1:
        vars(module)[keys[0]] = value
        return
    holder = vars(module)[keys[0]]
    if isinstance(keys[1], int):
        items = list(holder)
        items[keys[1]] = value
        vars(module)[keys[0]] = items if isinstance(holder, list) else tuple(items)
        return
    changed = copy.copy(holder)
    vars(changed)[keys[1]] = value
    vars(module)[keys[0]] = changed


def apply_edits(model: nn.Module, edits: Iterable[Edit]) -> None:
    """Change the attributes of another copy of the model."""
    for edit in edits:
        set_attribute(model.get_submodule(edit.module), edit.keys, edit.value)


def places_of(trace: Trace) -> Mapping[Axis, list[tuple[str, int]]]:
    """Every leaf that may change with the (tensor, dimension) pairs that it lies along."""
    found: dict[Axis, list[tuple[str, int]]] = {}
    for name, axes in trace.tensors.items():
        for dim, axis in enumerate(axes):
            for leaf in dict.fromkeys(leaves(axis)):
                if not is_fixed(leaf) and leaf.size > 1:
                    found.setdefault(leaf, []).append((name, dim))
    return found
