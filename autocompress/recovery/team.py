"""Processes that train one model together: what each takes of a batch, and what they tell one another.

A team is the default group of `torch.distributed`, if this process belongs to one; whoever starts the processes makes
it. A process without one is alone, and all of this costs it nothing. Every function but `size`, `leads` and `seed_of`
is to be called by all of a team in the same order.

Each trains on its part of every batch, and gradients are averaged by the sizes of the parts, so that a step is that of
one process on the whole batch wherever the loss is a mean over samples. Not the same are losses that are no such mean,
as that of inner layers, which is relative to the mean square of each part; dropout, which differs from process to
process; and batch norm, which normalizes each part by itself, as torch's DistributedDataParallel does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autocompress.data import Array, Batch
from autocompress.exchange import exchanging

T = TypeVar("T")
Kind = TypeVar("Kind", bound=Tensor)

Samples = TypeVar("Samples", Batch, Array)
"""A batch, or the numbers of its samples."""

BUCKET_BYTES = 2**24
"""What is sent at once: large enough that the wire is busy, small beside the model."""


def size() -> int:
    """Processes of the team."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def leads() -> bool:
    """True for one process of a team: it reads and writes files, scores and decides."""
    return size() == 1 or dist.get_rank() == 0


def seed_of(seed: int) -> int:
    """A seed of this process alone, for dropout; the first has the one that it would have alone."""
    return seed if leads() else (seed + 1_000_003 * dist.get_rank()) % 2**63


def told(decide: Callable[[], T]) -> T:
    """What the first of the team decides, which is asked alone."""
    if size() == 1:
        return decide()
    said: list[T | None] = [decide() if leads() else None]
    with exchanging():
        dist.broadcast_object_list(said, 0)
    return said[0]  # type: ignore[return-value]


def parts(batches: Iterable[Samples], fewest: int, *, alike: bool) -> Iterator[tuple[Samples, float]]:
    """The part of this process of each batch, and its share in [0, 1]; 0 where a batch has too few samples for all.

    Args:
        batches: Whole ones, each of `fewest` samples or more.
        fewest: Samples that each part must have.
        alike: True if all processes read the same; otherwise the first reads for all.
    """
    if size() == 1:
        yield from ((batch, 1.0) for batch in batches)
    elif alike:
        rank = dist.get_rank()
        yield from (_part(batch, bounds(len(batch), fewest)[rank]) for batch in batches)
    else:
        yield from _handed_out(batches, fewest)


def bounds(count: int, fewest: int) -> list[slice]:
    """How so many samples are divided: into parts as equal as can be, as few as it takes for none to be too small."""
    members = size()
    used = min(members, max(1, count // fewest))
    cuts = [count * min(member, used) // used for member in range(members + 1)]
    return [slice(begin, end) for begin, end in pairwise(cuts)]


def joined(own: Sequence[T]) -> list[T]:
    """What each process has done of a list of things, of which it takes every `size()`-th; in the order of the list."""
    if size() == 1:
        return list(own)
    every: list[Sequence[T]] = [()] * size()
    with exchanging():
        dist.all_gather_object(every, own)
    count = sum(map(len, every))
    return [every[index % size()][index // size()] for index in range(count)]


def taken(things: Iterable[T]) -> Iterator[T]:
    """What this process does of a list of things; see `joined`."""
    members = size()
    rank = dist.get_rank() if members > 1 else 0
    return (thing for index, thing in enumerate(things) if index % members == rank)


def averaged(parameters: Sequence[nn.Parameter], loss: Tensor | None) -> float:
    """The loss of the whole batch; gradients become those of the whole batch, in place.

    Args:
        parameters: Those that are trained, with gradients or without.
        loss: Of this process's part, times its share of the batch; None where it has none.
    """
    if size() == 1:
        assert loss is not None, "who is alone has all samples"
        return loss.item()
    known = torch.zeros(1 + len(parameters), device=parameters[0].device)
    known[0] = 0.0 if loss is None else loss.detach()
    known[1:] = torch.tensor([parameter.grad is not None for parameter in parameters])
    _add_up(known)
    total, *gradients = known.tolist()
    trained = [parameter for parameter, count in zip(parameters, gradients, strict=True) if count]
    for bucket in _buckets(trained):
        flat = torch.cat([_gradient(parameter).flatten() for parameter in bucket])
        _add_up(flat)
        for parameter, gradient in zip(bucket, _cut(flat, bucket), strict=True):
            parameter.grad = gradient
    return float(total)


def equalize(model: nn.Module, beside: Sequence[nn.Parameter] = ()) -> None:
    """Give all of a team the parameters and buffers that the first has, to the last bit."""
    if size() == 1:
        return
    for bucket in _buckets([*model.parameters(), *model.buffers(), *beside]):
        flat = torch.cat([tensor.detach().flatten() for tensor in bucket])
        with exchanging():
            dist.broadcast(flat.view(torch.uint8), 0)
        with torch.no_grad():
            for tensor, value in zip(bucket, _cut(flat, bucket), strict=True):
                tensor.copy_(value)


def average_statistics(model: nn.Module, samples: int) -> None:
    """Give all of a team the means of what their batch norms have seen, and all else that the first has.

    Args:
        model: That was trained.
        samples: On which this process has trained since it was called last.
    """
    if size() == 1:
        return
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    statistics = [
        value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None
    ]  # both or neither
    if statistics:
        flat = torch.cat([value.double().flatten() for value in statistics] + [statistics[0].new_ones(1).double()])
        flat *= samples
        _add_up(flat)
        for value, mean in zip(statistics, _cut(flat[:-1] / flat[-1], statistics), strict=True):
            value.copy_(mean)
    equalize(model)


def _handed_out(batches: Iterable[Samples], fewest: int) -> Iterator[tuple[Samples, float]]:
    """The parts of batches that the first process reads."""
    source = iter(batches) if leads() else iter(())
    while True:
        every: list[tuple[Samples, float] | None] = [None] * size()
        if leads() and (batch := next(source, None)) is not None:
            every = [_part(batch, bound) for bound in bounds(len(batch), fewest)]
        own: list[tuple[Samples, float] | None] = [None]
        with exchanging():
            dist.scatter_object_list(own, every if leads() else None, 0)
        if own[0] is None:
            return
        yield own[0]


def _part(batch: Samples, bound: slice) -> tuple[Samples, float]:
    part = batch[bound]
    return part, len(part) / len(batch)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(tensors: Sequence[Kind]) -> Iterator[list[Kind]]:
    """Tensors of one kind at a time, in their order, as many as make up what is sent at once."""
    for _, alike in groupby(tensors, lambda tensor: (tensor.dtype, tensor.device)):
        bucket, held = list[Kind](), 0
        for tensor in alike:
            if bucket and held + tensor.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, held = [], 0
            bucket.append(tensor)
            held += tensor.nbytes
        yield bucket


def _cut(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Pieces of a flat tensor in the shapes of others."""
    pieces = torch.split(flat, [tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]


def _add_up(tensor: Tensor) -> None:
    with exchanging():
        dist.all_reduce(tensor)
