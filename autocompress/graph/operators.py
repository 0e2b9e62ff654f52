"""What each ATen operator does to the axes of its inputs: which meet, which are contracted, which can't change.

A rule takes a call and gives the axes of the first output, or of every output where they differ. An operator without a
rule fixes every axis that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from autocompress.graph.axes import (
    Axis,
    broadcast,
    concat,
    factorize,
    find,
    fixed,
    freeze,
    product,
    reshape,
    split,
    unify,
)

Axes = list[Axis]


class Known(Protocol):
    """Gives the axes of a tensor."""

    def __call__(self, tensor: Tensor) -> Axes:
        """One axis for each dimension."""
        ...


@dataclass
class Call:
    """One operator called with arguments.

    Args:
        name: Of the operator without namespace and overload; in-place ones as their counterparts.
        args: Positional arguments, completed by the keyword arguments in the order of the schema.
        outputs: The tensors it gave.
        of: The axes of a tensor.
        silenced: Filled by rules with (argument, dimension, axis) whose entries are read into sums; silencing sets
            them to zero.
        averaged: The same where entries are read into statistics over an axis: those of channels removed stay out.
        groups: Filled by rules with the axis that counts the groups of a convolution or norm.
    """

    name: str
    args: Sequence[Any]
    outputs: Sequence[Tensor]
    of: Known
    silenced: list[tuple[int, int, Axis]] = field(default_factory=list)
    averaged: list[tuple[int, int, Axis]] = field(default_factory=list)
    groups: Axis | None = None

    def axes(self, index: int) -> Axes:
        """The axes of a tensor argument."""
        return self.of(self.args[index])

    def arg(self, index: int, default: Any = None) -> Any:
        """An argument that may be missing."""
        return self.args[index] if len(self.args) > index and self.args[index] is not None else default

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, those in lists too."""
        flat = [inner for value in self.args for inner in (value if isinstance(value, list | tuple) else [value])]
        return [value for value in flat if isinstance(value, Tensor)]


Rule = Callable[[Call], Axes | list[Axes]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def apply_rule(call: Call, *, pointwise: bool) -> list[Axes]:
    """The axes of every output; fixes what the operator touches if it has no rule or the rule's answer does not fit."""
    function = RULES.get(call.name) or (_pointwise if pointwise else None)
    if function is not None:
        answer: Any = function(call)
        results: list[Axes] = answer if answer and isinstance(answer[0], list) else [answer]
        if results and _fits(results, call.outputs):
            return results + [fixed_axes(output.shape) for output in call.outputs[len(results) :]]
    for tensor in call.tensors:
        freeze(*call.of(tensor))
    return [fixed_axes(output.shape) for output in call.outputs]


def _fits(results: list[Axes], outputs: Sequence[Tensor]) -> bool:
    pairs = zip(results, outputs, strict=False)
    return all([axis.size for axis in axes] == list(output.shape) for axes, output in pairs)


def fixed_axes(shape: Sequence[int]) -> Axes:
    """Axes that nothing can be removed from."""
    return [fixed(size) for size in shape]


def free_axes(shape: Sequence[int]) -> Axes:
    """Axes that follow whatever they meet."""
    return [Axis(size) for size in shape]


@rule("dropout", "native_dropout", "clone", "alias", "detach", "_to_copy", "contiguous", "lift_fresh", "copy")
@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "fill", "zero", "masked_fill")
@rule("hardswish", "hardsigmoid", "hardtanh", "elu", "celu", "selu", "silu", "mish", "gelu", "leaky_relu", "softplus")
@rule("where", "_prelu_kernel", "bernoulli", "dropout_", "_conj", "resolve_conj", "real", "imag", "to", "nan_to_num")
def _pointwise(call: Call) -> Axes:
    return broadcast([call.of(tensor) for tensor in call.tensors], call.outputs[0].dim())


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn")
@rule("empty_strided", "new_empty_strided", "scalar_tensor")
def _fresh(call: Call) -> Axes:
    return free_axes(call.outputs[0].shape)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
def _view(call: Call) -> Axes:
    return reshape(call.axes(0), call.outputs[0].shape)


@rule("permute")
def _permute(call: Call) -> Axes:
    axes = call.axes(0)
    return [axes[dim] for dim in call.args[1]]


@rule("transpose")
def _transpose(call: Call) -> Axes:
    axes = list(call.axes(0))
    if axes:
        one, other = call.args[1], call.args[2]
        axes[one], axes[other] = axes[other], axes[one]
    return axes


@rule("t", "numpy_T")
def _t(call: Call) -> Axes:
    return call.axes(0)[::-1]


@rule("unsqueeze")
def _unsqueeze(call: Call) -> Axes:
    axes = list(call.axes(0))
    dim = call.args[1]
    axes.insert(dim if dim >= 0 else dim + len(axes) + 1, fixed(1))
    return axes


@rule("squeeze")
def _squeeze(call: Call) -> Axes:
    axes = call.axes(0)
    dims = call.arg(1, range(len(axes)))
    wanted = {dim % max(1, len(axes)) for dim in ([dims] if isinstance(dims, int) else dims)}
    return [axis for dim, axis in enumerate(axes) if dim not in wanted or axis.size != 1]


@rule("expand")
def _expand(call: Call) -> Axes:
    axes, shape = call.axes(0), call.outputs[0].shape
    padded = [*fixed_axes([1] * (len(shape) - len(axes))), *axes]
    return [axis if axis.size == size else Axis(size) for axis, size in zip(padded, shape, strict=True)]


@rule("repeat")
def _repeat(call: Call) -> Axes:
    axes, times = call.axes(0), call.args[1]
    padded = [*fixed_axes([1] * (len(times) - len(axes))), *axes]
    return [product((fixed(count), axis)) for axis, count in zip(padded, times, strict=True)]


@rule("cat")
def _cat(call: Call) -> Axes:
    shapes = [call.of(tensor) for tensor in call.args[0] if tensor.dim() > 1 or tensor.numel()]
    dim = call.arg(1, 0) % len(shapes[0])
    joined = concat(axes[dim] for axes in shapes)
    rest = [[fixed(1) if at == dim else axis for at, axis in enumerate(axes)] for axes in shapes]
    result = broadcast(rest, len(shapes[0]))
    result[dim] = joined
    return result


@rule("stack")
def _stack(call: Call) -> Axes:
    shapes = [call.of(tensor) for tensor in call.args[0]]
    result = broadcast(shapes, len(shapes[0]))
    result.insert(call.arg(1, 0) % (len(result) + 1), fixed(len(shapes)))
    return result


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "split_copy", "unsafe_chunk", "chunk")
def _split(call: Call) -> list[Axes]:
    """Pieces of equal size lose the same entries: the model may cut by halves or by sizes, which is not to be seen."""
    axes = call.axes(0)
    dim = call.arg(2, 0) % len(axes)
    pieces = split(axes[dim], [output.shape[dim] for output in call.outputs])
    if call.name in ("split", "unsafe_split", "unsafe_chunk", "chunk"):
        for piece in pieces[1:]:
            if piece.size == pieces[0].size:
                unify(pieces[0], piece)
    return [[piece if at == dim else axis for at, axis in enumerate(axes)] for piece in pieces]


@rule("unbind")
def _unbind(call: Call) -> list[Axes]:
    axes = list(call.axes(0))
    freeze(axes.pop(call.arg(1, 0)))
    return [axes] * len(call.outputs)


@rule("select")
def _select(call: Call) -> Axes:
    axes = list(call.axes(0))
    freeze(axes.pop(call.arg(1, 0)))
    return axes


@rule("slice")
def _slice(call: Call) -> Axes:
    axes = list(call.axes(0))
    dim, step = call.arg(1, 0) % len(axes), call.arg(4, 1)
    size, length = axes[dim].size, call.outputs[0].shape[dim]
    if length == size:
        return axes
    start = call.arg(2, 0)
    start = min(max(start + size if start < 0 else start, 0), size)
    if step != 1 or not length:
        freeze(axes[dim])
        axes[dim] = fixed(length)
    else:
        axes[dim] = split(axes[dim], [start, length, size - start - length])[1]
    return axes


@rule("constant_pad_nd")
def _pad(call: Call) -> Axes:
    axes, pads = list(call.axes(0)), call.args[1]
    for at in range(len(pads) // 2):
        before, after = pads[2 * at], pads[2 * at + 1]
        dim = len(axes) - 1 - at
        if before < 0 or after < 0:
            freeze(axes[dim])
            axes[dim] = fixed(axes[dim].size + before + after)
        elif before or after:
            axes[dim] = concat((fixed(before), axes[dim], fixed(after)))
    return axes


@rule("embedding")
def _embedding(call: Call) -> Axes:
    entries, width = call.axes(0)
    freeze(entries)
    return [*call.axes(1), width]


@rule("index")
def _index(call: Call) -> Axes:
    axes, places = call.axes(0), call.args[1]
    dims = [dim for dim, place in enumerate(places) if place is not None]
    if any(places[dim].dtype in (torch.bool, torch.uint8) for dim in dims):
        freeze(*axes)
        return fixed_axes(call.outputs[0].shape)
    for dim in dims:
        freeze(axes[dim])
    picked = broadcast([call.of(places[dim]) for dim in dims], max(places[dim].dim() for dim in dims))
    kept = [axis for dim, axis in enumerate(axes) if dim not in dims]
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    at = dims[0] if adjacent else 0
    return [*kept[:at], *picked, *kept[at:]]


@rule("index_select")
def _index_select(call: Call) -> Axes:
    return _fixing(call, [call.args[1]])


@rule("roll", "flip")
def _moved(call: Call) -> Axes:
    axes = call.axes(0)
    dims = call.arg(2 if call.name == "roll" else 1, [])
    for dim in dims or range(len(axes)):
        freeze(axes[dim])
    return axes


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "sort", "logcumsumexp")
def _along(call: Call) -> Axes:
    axes = call.axes(0)
    if axes:
        freeze(axes[call.args[1] if isinstance(call.args[1], int) else -1])
    return axes


@rule("tril", "triu")
def _triangle(call: Call) -> Axes:
    freeze(*call.axes(0)[-2:])
    return call.axes(0)


def _fixing(call: Call, dims: Sequence[int]) -> Axes:
    """Some dimensions become fixed, on the output too, others stay."""
    axes = call.axes(0)
    wanted = {dim % len(axes) for dim in dims}
    freeze(*(axes[dim] for dim in wanted))
    shape = call.outputs[0].shape
    return [fixed(shape[dim]) if dim in wanted else axis for dim, axis in enumerate(axes)]


def _reduced(call: Call, dims: Sequence[int], keep: bool) -> Axes:
    axes = call.axes(0)
    wanted = {dim % max(1, len(axes)) for dim in dims} if dims else set(range(len(axes)))
    return [fixed(1) if dim in wanted else axis for dim, axis in enumerate(axes) if keep or dim not in wanted]


def _dims(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


@rule("sum", "mean", "linalg_vector_norm", "norm", "var", "std", "var_mean", "std_mean")
def _statistic(call: Call) -> Axes | list[Axes]:
    at = 2 if call.name in ("linalg_vector_norm", "norm") else 1
    dims = [] if isinstance(call.arg(at), bool) else _dims(call.arg(at))
    axes = call.axes(0)
    for dim in dims or range(len(axes)):
        call.averaged.append((0, dim % max(1, len(axes)), axes[dim]))
    result = _reduced(call, dims, call.outputs[0].dim() == len(axes))
    return [result, result] if len(call.outputs) > 1 else result


@rule("amax", "amin", "max", "min", "argmax", "argmin", "any", "all", "logsumexp", "prod", "median", "aminmax")
def _extreme(call: Call) -> Axes | list[Axes]:
    if len(call.tensors) > 1:
        return _pointwise(call)
    dims, axes = _dims(call.arg(1)), call.axes(0)
    for dim in dims or range(len(axes)):
        freeze(axes[dim])
    result = _reduced(call, dims, call.outputs[0].dim() == len(axes))
    return [result] * len(call.outputs)


@rule("mm", "bmm", "mv", "dot")
def _matmul(call: Call) -> Axes:
    return _multiply(call, 0)


@rule("addmm", "baddbmm", "addmv")
def _add_matmul(call: Call) -> Axes:
    result = _multiply(call, 1)
    return broadcast([result, call.axes(0)], len(result))


def _multiply(call: Call, at: int) -> Axes:
    one, other = call.axes(at), call.axes(at + 1)
    inner = -2 if len(other) > 1 else -1
    unify(one[-1], other[inner])
    call.silenced.append((at + 1, len(other) + inner, other[inner]))
    for a, b in zip(one[:-2], other[:-2], strict=False):
        unify(a, b)
    return [*one[:-1], *other[len(other) + inner + 1 :]]


@rule("convolution")
def _convolution(call: Call) -> Axes:
    image, weight = call.axes(0), call.axes(1)
    transposed, groups = call.args[6], call.args[8]
    freeze(*image[2:], *weight[2:])
    channels = _transposed_channels(call, groups) if transposed else _channels(call, groups)
    if call.arg(2) is not None:
        unify(call.axes(2)[0], channels)
    return [image[0], find(channels), *fixed_axes(call.outputs[0].shape[2:])]


def _channels(call: Call, groups: int) -> Axis:
    """Weight (out, in / groups, …)."""
    inputs, weight = call.axes(0)[1], call.axes(1)
    if groups == 1:
        unify(inputs, weight[1])
        call.silenced.append((1, 1, weight[1]))
    elif groups == inputs.size:  # depthwise
        call.groups, _ = factorize(weight[0], (groups, weight[0].size // groups))
        unify(call.groups, inputs)
    else:
        call.groups, _ = factorize(weight[0], (groups, weight[0].size // groups))
        unify(product((call.groups, weight[1])), inputs)
        call.silenced.append((1, 1, weight[1]))
    return find(weight[0])


def _transposed_channels(call: Call, groups: int) -> Axis:
    """Weight (in, out / groups, …)."""
    inputs, weight = call.axes(0)[1], call.axes(1)
    unify(inputs, weight[0])
    call.silenced.append((1, 0, weight[0]))
    if groups == 1:
        return find(weight[1])
    call.groups, _ = factorize(weight[0], (groups, weight[0].size // groups))
    return product((call.groups, weight[1]))


def _attention(call: Call) -> Axes:
    """Scaled dot product; the default scale follows from the width of heads, which must stay.

    Where several heads of the queries share one of the keys and values, they go with it.
    """
    query, key, value = (call.axes(at) for at in range(3))
    for a, b, c in zip(query[:-2], key[:-2], value[:-2], strict=True):
        unify(b, c)
        if a.size == b.size or a.size % b.size:
            unify(a, b)
        else:
            shared, several = factorize(a, (b.size, a.size // b.size))
            unify(shared, b)
            freeze(several)
    unify(query[-1], key[-1])
    unify(key[-2], value[-2])
    freeze(query[-2], key[-2], query[-1])
    mask = next((value for value in call.args[3:] if isinstance(value, Tensor)), None)
    if mask is not None:
        broadcast([call.of(mask), [*query[:-1], key[-2]]], 4)
    return [*query[:-1], value[-1]]


RULES.update(
    dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        _attention,
    )
)


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
@rule("miopen_batch_norm", "batch_norm", "_batch_norm_with_update")
def _batch_norm(call: Call) -> Axes:
    axes = call.axes(0)
    for tensor in call.tensors[1:]:
        unify(axes[1], call.of(tensor)[0])
    if call.name not in ("_native_batch_norm_legit_no_training", "_batch_norm_no_update") and call.arg(5) is True:
        freeze(axes[0], *axes[2:])
    return axes


@rule("native_layer_norm", "_fused_rms_norm", "layer_norm", "rms_norm")
def _layer_norm(call: Call) -> Axes:
    axes, dims = call.axes(0), len(call.args[1])
    for tensor in call.tensors[1:]:
        broadcast([axes, call.of(tensor)], len(axes))
    for dim in range(len(axes) - dims, len(axes)):
        call.averaged.append((0, dim, axes[dim]))
    return axes


@rule("native_group_norm")
def _group_norm(call: Call) -> Axes:
    """Whole groups can go, statistics of the others stay; a single group is a layer norm."""
    axes, groups = call.axes(0), call.args[6]
    for tensor in call.tensors[1:]:
        unify(axes[1], call.of(tensor)[0])
    if groups == 1:
        call.averaged.append((0, 1, axes[1]))
        return axes
    call.groups, inner = factorize(axes[1], (groups, axes[1].size // groups))
    freeze(inner)
    return axes


@rule("_weight_norm_interface")
def _weight_norm(call: Call) -> list[Axes]:
    axes, dim = call.axes(0), call.arg(2, 0)
    freeze(*(axis for at, axis in enumerate(axes) if at != dim % len(axes)))
    broadcast([axes, call.axes(1)], len(axes))
    return [axes, call.axes(1)]


@rule("glu")
def _glu(call: Call) -> Axes:
    axes = list(call.axes(0))
    dim = call.arg(1, -1) % len(axes)
    half = axes[dim].size // 2
    one, other = split(axes[dim], (half, half))
    unify(one, other)
    axes[dim] = find(one)
    return axes


@rule("pixel_shuffle")
def _pixel_shuffle(call: Call) -> Axes:
    axes, shape = call.axes(0), call.outputs[0].shape
    kept, inner = factorize(axes[-3], (shape[-3], call.args[1] ** 2))
    freeze(inner, *axes[-2:])
    return [*axes[:-3], kept, *fixed_axes(shape[-2:])]


@rule("pixel_unshuffle")
def _pixel_unshuffle(call: Call) -> Axes:
    axes, shape = call.axes(0), call.outputs[0].shape
    freeze(*axes[-2:])
    return [*axes[:-3], product((axes[-3], fixed(call.args[1] ** 2))), *fixed_axes(shape[-2:])]


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(call: Call) -> Axes:
    axes, groups = list(call.axes(0)), call.args[1]
    outer, inner = factorize(axes[1], (groups, axes[1].size // groups))
    freeze(outer)
    axes[1] = product((inner, outer))
    return axes


@rule("im2col")
def _im2col(call: Call) -> Axes:
    axes, shape = call.axes(0), call.outputs[0].shape
    freeze(*axes[-2:])
    return [*axes[:-3], product((axes[-3], fixed(prod(call.args[1])))), fixed(shape[-1])]


@rule("col2im")
def _col2im(call: Call) -> Axes:
    axes, shape = call.axes(0), call.outputs[0].shape
    kept, inner = factorize(axes[-2], (shape[-3], axes[-2].size // shape[-3]))
    freeze(inner, axes[-1])
    return [*axes[:-2], kept, *fixed_axes(shape[-2:])]


@rule("unfold")
def _unfold(call: Call) -> Axes:
    return [*_fixing(call, [call.args[1]]), fixed(call.args[2])]


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def _fft(call: Call) -> Axes:
    return _fixing(call, call.args[1])


@rule("grid_sampler_2d", "grid_sampler_3d")
def _grid_sampler(call: Call) -> Axes:
    freeze(*call.axes(1))
    return _fixing(call, range(2, len(call.axes(0))))


def _spatial(call: Call) -> Axes | list[Axes]:
    """Pooling and resizing: the last one to three dimensions are fixed."""
    dims = next(int(digit) for digit in "123" if f"{digit}d" in call.name)
    result = _fixing(call, range(-dims, 0))
    return [result] * len(call.outputs)


RULES.update(
    {
        f"{name}{dims}d{suffix}": _spatial
        for dims in (1, 2, 3)
        for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "adaptive_max_pool")
        for suffix in ("", "_with_indices")
    }
    | {
        f"{name}{dims}d": _spatial
        for dims in (1, 2, 3)
        for name in ("reflection_pad", "replication_pad", "upsample_nearest", "_upsample_nearest_exact")
    }
    | dict.fromkeys(
        (
            "upsample_linear1d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "upsample_trilinear3d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
        ),
        _spatial,
    )
)
