"""Masks: which weights are zero, by magnitude, and how they become so while the others are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.graph.constraints import Constraint

FINAL = 0.25
"""Share of the training after which a mask is final.

On the digits example (90 % zeros in each layer, 2 epochs, 2 seeds) 86 % accuracy; 64 % with one half, where the rate
has fallen too far to make up for the last zeros.
"""

STEP = 0.01
"""Share of the training between two masks of a schedule, so that large weights are not ranked at every step."""

Groups = tuple[int, int]
"""(N, M) of an N:M pattern: at most N of each M consecutive weights along the input axis are not zero."""


class Mask(Constraint):
    """Holds the smallest weights at zero.

    While a gradual schedule runs, zeros grow along a cubic from none to all, and the mask is taken anew from the free
    weights: a masked one comes back if others have become smaller than it was. No gradient reaches masked weights; let
    through while the schedule runs, so that they may grow, it cost 30 points of accuracy on the digits example
    (90 % zeros, 2 epochs).

    Args:
        weight: Whose magnitudes are ranked; left as it is.
        zeros: How many weights are zero in the end.
        groups: N and M if all but N of each M weights are zero; then `zeros` is how many that makes.
        axis: Input axis of the weight, along which groups lie.
        gradual: False if the first mask stays.

    References:
        Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017.
    """

    survives_scaling: ClassVar[bool] = True

    def __init__(
        self, weight: Tensor, zeros: int, *, groups: Groups | None = None, axis: int = 1, gradual: bool = True
    ) -> None:
        super().__init__()
        self.zeros, self.groups, self.axis = zeros, groups, axis
        self.kept: Tensor
        self.register_buffer("kept", kept(weight, zeros, groups, axis))
        self.settled = not gradual
        self._wanted = self._taken = zeros
        self._reached = -STEP

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with zeros where the mask says; all of them are there in evaluation, wherever the schedule is."""
        wanted = self._wanted if self.training else self.zeros
        if wanted != self._taken:
            self.kept.copy_(kept(weight, wanted, self.groups, self.axis))
            self._taken = wanted
        return weight.where(self.kept, 0)

    def advance(self, progress: float) -> None:
        """Take the mask of that progress at the next use of the weight."""
        if not self.settled and progress >= min(self._reached + STEP, FINAL):
            self._reached, self._wanted = progress, zeros_at(progress, self.zeros)
            self.settled = progress >= FINAL


def zeros_at(progress: float, zeros: int) -> int:
    """How many weights are zero at a progress in [0, 1]: a cubic from none to all, which is reached at `FINAL`.

    >>> [zeros_at(progress, 100) for progress in (0, 0.0625, 0.125, 0.25, 1)]
    [0, 58, 88, 100, 100]
    """
    left: float = max(0.0, 1 - progress / FINAL)
    return round(zeros * (1 - left**3))


@torch.no_grad()
def kept(weight: Tensor, zeros: int, groups: Groups | None = None, axis: int = 1) -> Tensor:
    """Which weights stay if the smallest become zero.

    Args:
        weight: Left as it is.
        zeros: How many become zero.
        groups: N and M if the N largest of each M weights along the axis have to stay.
        axis: Its length is a multiple of M.

    Returns:
        A mask (the weight's shape), False for exactly `zeros` weights.
    """
    scores = weight.abs()
    if groups is not None:
        scores = scores.masked_fill(largest_in_groups(scores, groups, axis), torch.inf)
    smallest = scores.flatten().topk(zeros, largest=False, sorted=False).indices
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask.view(-1)[smallest] = False
    return mask


def largest_in_groups(scores: Tensor, groups: Groups, axis: int) -> Tensor:
    """Which of each M consecutive scores along an axis are the N largest."""
    count, size = groups
    moved = scores.movedim(axis, -1)
    best = moved.reshape(-1, size).topk(count, dim=1).indices
    mask = torch.zeros(moved.numel() // size, size, dtype=torch.bool, device=scores.device)
    return mask.scatter_(1, best, value=True).reshape(moved.shape).movedim(-1, axis)


def obeys_groups(weight: Tensor, groups: Groups, axis: int) -> bool:
    """True if at most N of each M consecutive weights along an axis are not zero."""
    count, size = groups
    return bool(((weight.movedim(axis, -1).reshape(-1, size) != 0).sum(1) <= count).all())


def input_axis(module: nn.Module) -> int:
    """The axis of a layer's weight along which products are summed up."""
    return 0 if getattr(module, "transposed", False) else 1


@torch.no_grad()
def shared_out(weights: Sequence[Tensor], zeros: int) -> list[int]:
    """How many zeros each of several weights gets if all share one ranking; at least one each.

    A weight's score is its square over the sum of the squares of its layer that are not smaller, which says what share
    of the layer would be lost with it. Scores compare across layers of any scale, and the largest weight of each layer
    scores 1, so no layer vanishes.

    References:
        Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", 2021.
    """
    scores = [_lamp(weight) for weight in weights]
    sizes = [len(score) for score in scores]
    smallest = torch.cat(scores).topk(zeros, largest=False, sorted=False).indices
    owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[smallest]
    return [max(1, int(count)) for count in torch.bincount(owners, minlength=len(sizes))]


def _lamp(weight: Tensor) -> Tensor:
    squares = weight.flatten().double().square().sort().values
    return squares / squares.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)
