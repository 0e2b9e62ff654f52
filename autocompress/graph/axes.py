"""The axes of tensors as terms, unified as a trace finds that they have to be of one size.

An axis is a leaf, a product of axes (what `reshape` merges or takes apart, slowest first) or a concatenation of axes
(what `cat` joins and slices take apart). Two axes that meet are unified as in logic programming: a leaf takes on the
structure of the other, structures are unified part by part. Where that does not come out even, all leaves involved
become fixed: their size can't change. What is left is sound by itself, since every leaf is known by all its places.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

Kept = Mapping["Axis", npt.NDArray[np.bool_]]
"""Leaf to a mask of what stays, for leaves that lose something."""


class Axis:
    """A node of a union-find forest; use `find` before looking at one."""

    __slots__ = ("bound", "fixed", "kind", "parts", "size")

    def __init__(
        self,
        size: int,
        *,
        fixed: bool = False,
        kind: Literal["leaf", "product", "concat"] = "leaf",
        parts: tuple[Axis, ...] = (),
    ) -> None:
        self.size, self.fixed, self.kind, self.parts = size, fixed, kind, parts
        self.bound: Axis | None = None

    def __repr__(self) -> str:
        axis = find(self)
        if axis.kind == "leaf":
            return f"{axis.size}{'!' if axis.fixed else ''}"
        return f"({(' * ' if axis.kind == 'product' else ' + ').join(map(repr, axis.parts))})"


def fixed(size: int) -> Axis:
    """An axis that nothing can be removed from."""
    return Axis(size, fixed=True)


def find(axis: Axis) -> Axis:
    """What an axis has become."""
    root = axis
    while root.bound is not None:
        root = root.bound
    while axis.bound is not None and axis.bound is not root:
        axis.bound, axis = root, axis.bound
    return root


def is_fixed(axis: Axis) -> bool:
    """True for a leaf that keeps its size; structures of fixed leaves are simplified to one where they arise."""
    axis = find(axis)
    return axis.kind == "leaf" and axis.fixed


def leaves(axis: Axis) -> Iterator[Axis]:
    """The leaves of an axis, fixed ones too, each as often as it occurs."""
    axis = find(axis)
    if axis.kind == "leaf":
        yield axis
    for part in axis.parts:
        yield from leaves(part)


def freeze(*axes: Axis) -> None:
    """Fix the size of every leaf."""
    for axis in axes:
        for leaf in leaves(axis):
            leaf.fixed = True


def factors(axis: Axis) -> list[Axis]:
    """The factors of an axis, slowest first, none of them a product or of size 1."""
    axis = find(axis)
    if axis.size == 1:
        return []
    return [inner for part in axis.parts for inner in factors(part)] if axis.kind == "product" else [axis]


def terms(axis: Axis) -> list[Axis]:
    """The parts of an axis in order, none of them a concatenation."""
    axis = find(axis)
    return [inner for part in axis.parts for inner in terms(part)] if axis.kind == "concat" else [axis]


def product(axes: Iterable[Axis]) -> Axis:
    """The axis that `reshape` makes of adjacent axes."""
    found = [inner for axis in axes for inner in factors(axis)]
    if len(found) == 1:
        return found[0]
    size = prod(part.size for part in found)
    if all(map(is_fixed, found)):
        return fixed(size)
    return Axis(size, kind="product", parts=tuple(found))


def concat(axes: Iterable[Axis]) -> Axis:
    """The axis that `cat` makes."""
    found = [inner for axis in axes for inner in terms(axis) if inner.size]
    if len(found) == 1:
        return found[0]
    size = sum(part.size for part in found)
    if all(map(is_fixed, found)):
        return fixed(size)
    return Axis(size, kind="concat", parts=tuple(found))


def unify(one: Axis, other: Axis) -> None:
    """Make two axes one: what is removed from either is removed from both."""
    one, other = find(one), find(other)
    if one is other:
        return
    if one.size != other.size:
        freeze(one, other)
    elif one.kind == "leaf" or (other.kind != "leaf" and one.kind == "concat" and other.kind == "product"):
        _bind(one, other)
    else:
        _bind(other, one)


def _bind(one: Axis, other: Axis) -> None:
    """Unify with a leaf or, where there is none, a concatenation first."""
    if one.kind == "leaf":
        if one.fixed:
            freeze(other)
        elif any(leaf is one for leaf in leaves(other)):
            freeze(other)
            return
        one.bound = other
    elif one.kind == "concat" and other.kind == "product":
        _unify_mixed(one, other)
    elif one.kind == "product":
        _unify_products(one, other)
    else:
        _unify_concats(one, other)


def _unify_products(one: Axis, other: Axis) -> None:
    left, right = deque(factors(one)), deque(factors(other))
    while left and right:
        a, b = left.popleft(), right.popleft()
        if a.size > b.size and a.size % b.size == 0:
            a, rest = factorize(a, (b.size, a.size // b.size))
            left.extendleft(reversed(factors(rest)))
        elif b.size > a.size and b.size % a.size == 0:
            b, rest = factorize(b, (a.size, b.size // a.size))
            right.extendleft(reversed(factors(rest)))
        elif a.size != b.size:
            freeze(a, b, *left, *right)
            return
        unify(a, b)


def _unify_concats(one: Axis, other: Axis) -> None:
    left, right = deque(terms(one)), deque(terms(other))
    while left and right:
        a, b = left.popleft(), right.popleft()
        if a.size > b.size:
            a, rest = split(a, (b.size, a.size - b.size))
            left.appendleft(rest)
        elif b.size > a.size:
            b, rest = split(b, (a.size, b.size - a.size))
            right.appendleft(rest)
        unify(a, b)


def _unify_mixed(joined: Axis, merged: Axis) -> None:
    """A concatenation and a product: each part is a share of the slowest factor times the others."""
    parts = terms(joined)
    for part, share in zip(parts, split(merged, [part.size for part in parts]), strict=True):
        unify(part, share)


def split(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """The axis cut into pieces."""
    axis = find(axis)
    if len(sizes) == 1:
        return [axis]
    if axis.kind == "leaf" and not axis.fixed:
        pieces = [Axis(size) for size in sizes]
        axis.bound = concat(pieces)
        return pieces
    if axis.kind == "concat":
        return _split_concat(axis, sizes)
    if axis.kind == "product":
        first, *others = factors(axis)
        step = axis.size // first.size
        if all(size % step == 0 for size in sizes):
            shares = split(first, [size // step for size in sizes])
            return [product((share, *others)) if share.size else fixed(0) for share in shares]
        freeze(axis)
    return [fixed(size) for size in sizes]


def _split_concat(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    pieces, queue = [], deque(terms(axis))
    for size in sizes:
        taken: list[Axis] = []
        need = size
        while need:
            part = queue.popleft()
            if part.size > need:
                part, rest = split(part, (need, part.size - need))
                queue.appendleft(rest)
            taken.append(part)
            need -= part.size
        pieces.append(concat(taken) if taken else fixed(0))
    return pieces


def factorize(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """The axis seen as a product of axes of given sizes, slowest first."""
    return reshape([axis], sizes)


def _factorize_term(axis: Axis, sizes: tuple[int, int]) -> list[Axis]:
    """Two factors of a leaf or a concatenation."""
    if axis.kind == "leaf" and not axis.fixed:
        found = [Axis(size) for size in sizes]
        axis.bound = product(found)
        return found
    if axis.kind == "concat" and all(part.size % sizes[1] == 0 for part in terms(axis)):
        inner, outer = Axis(sizes[1]), []
        for part in terms(axis):
            outer.append(Axis(part.size // inner.size))
            unify(part, product((outer[-1], inner)))
        return [concat(outer), find(inner)]
    freeze(axis)
    return [fixed(size) for size in sizes]


def reshape(axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
    """The axes of a tensor after `reshape`; what does not come out even becomes fixed."""
    queue = deque(inner for axis in axes for inner in factors(axis))
    result: list[Axis] = []
    for size in shape:
        need, taken = size, list[Axis]()
        while need > 1:
            part = find(queue.popleft()) if queue else fixed(1)
            if part.kind == "product":
                queue.extendleft(reversed(factors(part)))
                continue
            if part.size > need and part.size % need == 0:
                part, rest = _factorize_term(part, (need, part.size // need))
                queue.extendleft(reversed(factors(rest)))
            elif part.size == 1 or need % part.size:
                freeze(part, *queue, *taken)
                return result + [fixed(size) for size in shape[len(result) :]]
            taken.append(part)
            need //= part.size
        result.append(product(taken) if size > 1 else fixed(size))
    return result


def broadcast(shapes: Sequence[Sequence[Axis]], dims: int) -> list[Axis]:
    """The axes of an elementwise result; those that meet are unified, those of size 1 stretch."""
    result = []
    for dim in range(1, dims + 1):
        meeting = [axes[-dim] for axes in shapes if len(axes) >= dim and axes[-dim].size != 1]
        for axis in meeting[1:]:
            unify(meeting[0], axis)
        result.append(find(meeting[0]) if meeting else fixed(1))
    return result[::-1]


def mask(axis: Axis, kept: Kept) -> npt.NDArray[np.bool_]:
    """Which entries along an axis stay, a mask (size,)."""
    axis = find(axis)
    if axis.kind == "leaf":
        return kept[axis] if axis in kept else np.ones(axis.size, np.bool_)
    if axis.kind == "concat":
        return np.concatenate([mask(part, kept) for part in axis.parts])
    result = np.ones(1, np.bool_)
    for part in axis.parts:
        result = (result[:, None] & mask(part, kept)[None, :]).reshape(-1)
    return result


def positions(axis: Axis, leaf: Axis) -> npt.NDArray[np.int64]:
    """For every entry along an axis its place along a leaf of it, -1 for entries outside of the leaf."""
    axis = find(axis)
    if axis.kind == "leaf":
        return np.arange(axis.size) if axis is leaf else np.full(axis.size, -1)
    if axis.kind == "concat":
        return np.concatenate([positions(part, leaf) for part in axis.parts])
    result = np.full(1, -1)
    for part in axis.parts:
        result = np.maximum(result[:, None], positions(part, leaf)[None, :]).reshape(-1)
    return result


def is_squared(axis: Axis, leaf: Axis) -> bool:
    """True if a leaf occurs twice in one product, so that an entry belongs to two places of it."""
    axis = find(axis)
    within = [any(found is leaf for found in leaves(part)) for part in axis.parts]
    return (axis.kind == "product" and sum(within) > 1) or any(is_squared(part, leaf) for part in axis.parts)
