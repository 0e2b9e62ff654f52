"""Training batches together with what the teacher says to them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.data import Array, ArraySplit, Batch, DatasetSplit, Split
from autocompress.errors import InfeasiblePlan, InvalidInput
from autocompress.graph.folding import fold_batch_norms
from autocompress.recovery import team
from autocompress.recovery.compute import autocast, compute_device, tensors
from autocompress.recovery.features import captured
from autocompress.user_code import user_code

if TYPE_CHECKING:
    from autocompress.task import Task

MOST_REMEMBERED_BYTES = 2**26
"""Memory for what a teacher said to the batches of a loader."""


@dataclass(frozen=True)
class Lesson:
    """One training batch, or the part of it that this process of a team trains on.

    Args:
        inputs: Of the model, tensors (samples, …); all are where training runs.
        targets: The true ones.
        taught: The teacher's outputs; None if nobody asked for them.
        share: Of the whole batch, in [0, 1]; 0 if it has too few samples for this process to have any.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    taught: Tensor | None
    share: float = 1.0


class Lessons:
    """A task's training data as its teacher teaches it.

    Data held in arrays never changes, so the teacher looks at it once, whatever number of trials and epochs follow;
    a loader may augment, so the teacher answers its batches. One that draws the same for the same seed, as every trial
    asks it for the same, is answered from memory from the second trial of a process on, as long as that suffices.
    """

    def __init__(self, task: Task, teacher: nn.Module) -> None:
        self._task = task
        self._split = task.split("train")
        self._batch_size = task.batch_size
        self._answers: dict[bytes, Tensor] = {}
        self._remembered_bytes = 0
        self._remembers, self._is_repeated = True, False
        self._original = teacher.eval()
        device = compute_device()
        self.teacher = teacher if device.type == "cpu" else copy.deepcopy(teacher).to(device)

    @cached_property
    def steps(self) -> int:
        """Batches of an epoch."""
        if isinstance(self._split, ArraySplit):
            return -(-len(self._split) // self._batch_size)
        if isinstance(self._split, DatasetSplit):
            return sum(1 for _ in self._split.orders(self._batch_size))
        return team.told(lambda: sum(1 for _ in self._split.batches(self._batch_size)))

    def epoch(self, seed: int, *, fewest: int = 1, taught: bool = True, shared: bool = False) -> Iterator[Lesson]:
        """All batches once, shuffled.

        Args:
            seed: Of the order.
            fewest: Samples that a batch must have; smaller ones are left out, since batch norm can't train on one.
            taught: False to leave the teacher's outputs out.
            shared: True for this process's part of each batch, if it belongs to a team; see `team`.

        Raises:
            InvalidInput: If no batch is large enough.
        """
        answered = self._with_answers if taught else None
        split, used = answered or self._split, 0
        whole = (batch for batch in split.batches(self._batch_size, seed=seed) if len(batch) >= fewest)
        for batch, share in self._parts(split, seed, fewest) if shared else ((batch, 1.0) for batch in whole):
            used += 1
            (targets,) = tensors((batch.targets,))
            if answered is not None:
                *inputs, answers = tensors(batch.inputs)
                yield Lesson(tuple(inputs), targets, answers, share)
            else:
                given = tensors(batch.inputs)
                yield Lesson(given, targets, self._answer(batch.inputs) if taught and share else None, share)
        if not used:
            raise InvalidInput(
                f"train data: no batch of {fewest} or more samples, which batch norm needs to be trained; use larger "
                "batches"
            )

    def _parts(self, split: Split, seed: int, fewest: int) -> Iterator[tuple[Batch, float]]:
        """The part of this process of each batch, and its share of it."""
        if isinstance(split, DatasetSplit):  # the parts of others are not even read
            orders = (order for order in split.orders(self._batch_size, seed=seed) if len(order) >= fewest)
            return ((split.read(own), share) for own, share in team.parts(orders, fewest, alike=True))
        whole = (batch for batch in split.batches(self._batch_size, seed=seed) if len(batch) >= fewest)
        return team.parts(whole, fewest, alike=isinstance(split, ArraySplit))  # a loader shuffles by itself

    @cached_property
    def _with_answers(self) -> ArraySplit | None:
        """The training data with the teacher's outputs as one more input; None for loaders."""
        if not isinstance(self._split, ArraySplit):
            return None
        asked = team.taken(self._split.batches(256))
        answers = team.joined([self._ask(tensors(batch.inputs)).cpu().numpy() for batch in asked])
        samples = self._split.samples
        return ArraySplit(Batch((*samples.inputs, np.concatenate(answers)), samples.targets))

    def _answer(self, inputs: tuple[Array, ...]) -> Tensor:
        """What the teacher says to a batch of a loader, remembered by the content of the batch.

        Where the memory is full and no batch ever came twice, nothing is remembered any more.
        """
        if not self._remembers:
            return self._ask(tensors(inputs))
        content = hashlib.blake2b(digest_size=16)
        for array in inputs:
            content.update(f"{array.dtype}{array.shape}".encode())
            content.update(np.ascontiguousarray(array).data)
        key = content.digest()
        if key in self._answers:
            self._is_repeated = True
            return self._answers[key]
        answer = self._ask(tensors(inputs))
        if self._remembered_bytes + answer.nbytes <= MOST_REMEMBERED_BYTES:
            self._answers[key] = answer
            self._remembered_bytes += answer.nbytes
        elif not self._is_repeated:
            self._remembers = False
            self._answers.clear()
        return answer

    def features(self, inputs: tuple[Tensor, ...], names: tuple[str, ...], *, folded: bool) -> dict[str, Tensor]:
        """What layers of the teacher say to some inputs, by the names of the layers.

        Args:
            inputs: Of the model.
            names: Layers.
            folded: True to ask a teacher whose batch norms are folded into the layers before them, for students of
                which that is true.

        Raises:
            InfeasiblePlan: If the teacher does not use a layer.
        """
        teacher = self._folded_teacher if folded else self.teacher
        with captured(teacher, names) as taken, torch.no_grad(), autocast():
            teacher(*inputs)
        missing = [name for name in names if name not in taken]
        if missing:
            raise InfeasiblePlan(f"feature matching: the model does not use its layer {missing[0]!r}; name another one")
        return {name: taken[name].float() for name in names}

    @cached_property
    def _folded_teacher(self) -> nn.Module:
        return fold_batch_norms(self._original, self._task.examples).to(compute_device())

    def _ask(self, inputs: tuple[Tensor, ...]) -> Tensor:
        shapes = ", ".join(str(tuple(one.shape)) for one in inputs)
        with torch.no_grad(), autocast():
            answer: Tensor = user_code(lambda: self.teacher(*inputs), f"running the model on train data {shapes}")
        return answer.float()
