"""Teaching inner layers: outputs of a student's layers are held against those of its teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autocompress.errors import InfeasiblePlan, InvalidInput, did_you_mean
from autocompress.graph.running import evaluating

if TYPE_CHECKING:
    from autocompress.recovery.lessons import Lesson, Lessons

ADVICE = "name layers of equal shape but for the channels in Task(features={student layer: layer of the model})"


class FeatureMatch:
    """How far the layers of a student are from those of its teacher, in the forward pass it made last.

    Where they have different numbers of channels, a linear map of the student's channels (a 1×1 convolution for images)
    is trained with the student and thrown away afterwards.

    References:
        Romero et al., "FitNets: Hints for Thin Deep Nets", 2015.
    """

    def __init__(
        self, taken: Mapping[str, Tensor], lessons: Lessons, pairs: Mapping[str, str], *, folded: bool
    ) -> None:
        self._taken = taken
        self._lessons = lessons
        self._pairs = pairs
        self._folded = folded
        self._maps: dict[str, tuple[int, nn.Linear]] = {}

    def fit(self, inputs: tuple[Tensor, ...]) -> None:
        """Make the maps that the shapes ask for, after the student has seen the inputs.

        Raises:
            InfeasiblePlan: If a pair of layers differs in more than the number of channels.
        """
        taught = self._taught(inputs)
        for name, teacher in self._pairs.items():
            axis = _channel_axis(name, self._of(name), taught[teacher])
            if axis is not None:
                wanted = taught[teacher]
                channels = nn.Linear(self._of(name).shape[axis], wanted.shape[axis], bias=False)
                self._maps[name] = (axis, channels.to(wanted.device))

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Those of the maps."""
        return tuple(chain.from_iterable(channels.parameters() for _, channels in self._maps.values()))

    def loss(self, lesson: Lesson) -> Tensor:
        """Mean over the layers of the squared difference, relative to the teacher's mean square; a scalar."""
        taught = self._taught(lesson.inputs)
        losses = []
        for name, teacher in self._pairs.items():
            wanted = taught[teacher]
            scale = wanted.square().mean().clamp_min(1e-12)
            losses.append((self._mapped(name) - wanted).square().mean() / scale)
        return torch.stack(losses).mean()

    def _taught(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return self._lessons.features(inputs, tuple(self._pairs.values()), folded=self._folded)

    def _of(self, name: str) -> Tensor:
        if name not in self._taken:
            raise InfeasiblePlan(f"feature matching: layer {name!r} is not used by the model; {ADVICE}")
        return self._taken[name].float()

    def _mapped(self, name: str) -> Tensor:
        features = self._of(name)
        if name not in self._maps:
            return features
        axis, channels = self._maps[name]
        mapped: Tensor = channels(features.movedim(axis, -1)).movedim(-1, axis)
        return mapped


@contextmanager
def matched(
    model: nn.Module, lessons: Lessons, wanted: Mapping[str, str], *, folded: bool = False
) -> Iterator[FeatureMatch]:
    """A student whose layers are looked at for a while.

    Args:
        model: The student.
        lessons: Of the teacher.
        wanted: Layer of the student to layer of the teacher; those that the student lacks are left out. If none is
            left, the parts that both have directly below the whole are matched, the last one left out.
        folded: True if batch norms have been folded into the student's layers.

    Raises:
        InvalidInput: If the teacher has no layer of a wanted name.
        InfeasiblePlan: If there are no layers to match, or they don't fit.
    """
    pairs = _pairs(model, lessons.teacher, wanted)
    inputs = next(lessons.epoch(0)).inputs
    with captured(model, pairs) as taken:
        match = FeatureMatch(taken, lessons, pairs, folded=folded)
        with evaluating(model), torch.no_grad():
            model(*inputs)
        match.fit(inputs)
        yield match


@contextmanager
def captured(model: nn.Module, names: Mapping[str, str] | tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """The outputs of layers in the latest forward pass, by the names of the layers; of several outputs the first."""
    taken: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            taken[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def _pairs(model: nn.Module, teacher: nn.Module, wanted: Mapping[str, str]) -> dict[str, str]:
    known, own = dict(teacher.named_modules()), dict(model.named_modules())
    for name in wanted.values():
        if name not in known:
            raise InvalidInput(f"Task(features=...): the model has no layer {name!r}; {did_you_mean(name, known)}")
    pairs = {name: layer for name, layer in wanted.items() if name in own}
    pairs = pairs or {name: name for name in _parts(teacher) if name in own}
    if not pairs:
        raise InfeasiblePlan(f"feature matching: student and model share no layers; {ADVICE}")
    return pairs


def _parts(model: nn.Module) -> list[str]:
    """The parts of a model that hold weights, without the last one, whose output is the model's.

    Parts of several layers, such as the stages of a residual network, are preferred: what a single convolution gives
    has yet to be normalized.
    """
    prefix, parts = "", _children(model)
    while len(parts) == 1:
        (name, only), *_ = parts.items()
        prefix, parts = f"{prefix}{name}.", _children(only)
    inner = list(parts.items())[:-1]
    large = [name for name, part in inner if next(part.children(), None) is not None]
    return [f"{prefix}{name}" for name in large or [name for name, _ in inner]]


def _children(model: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in model.named_children() if next(part.parameters(), None) is not None}


def _channel_axis(name: str, student: Tensor, teacher: Tensor) -> int | None:
    """The axis along which two outputs have different lengths; None if they are equal in shape.

    Raises:
        InfeasiblePlan: If they differ in more than one axis.
    """
    same_rank = student.dim() == teacher.dim()
    differing = [axis for axis in range(student.dim()) if same_rank and student.shape[axis] != teacher.shape[axis]]
    if not same_rank or len(differing) > 1 or 0 in differing:
        raise InfeasiblePlan(
            f"feature matching: layer {name!r} gives {tuple(student.shape)} in the student and {tuple(teacher.shape)} "
            f"in the model; {ADVICE}"
        )
    return differing[0] if differing else None
