"""Students: smaller models that the user's own functions build, with the ranges of what may vary in them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from autocompress.errors import InvalidInput
from autocompress.plan import Scalar
from autocompress.space import Choice, Float, Int, Knob

if TYPE_CHECKING:
    from torch import nn

MOST_VARIANTS = 64
"""Architectures that the ranges of one student may give; each is an architecture of its own to the search."""

_WORD = re.compile(r"[\w.+-]+")


@dataclass(frozen=True, init=False)
class Student:
    """A function that builds untrained models, and what may be given to it.

    >>> student = Student(lambda width, depth: ..., width=Int(8, 16, step=8), depth=Choice((2, 3)))
    >>> sorted(student.variants("small"))
    ['small(depth=2,width=16)', 'small(depth=2,width=8)', 'small(depth=3,width=16)', 'small(depth=3,width=8)']

    Args:
        build: Takes the ranges' names as keyword arguments and returns an `nn.Module`.
        ranges: Parameter name to a `Choice`, an `Int` or a `Float` with a step.

    Raises:
        InvalidInput: If a range is none, empty, or has no step; if there are more than `MOST_VARIANTS` combinations.
    """

    build: Callable[..., nn.Module]
    ranges: Mapping[str, Knob]

    def __init__(self, build: Callable[..., nn.Module], /, **ranges: Knob) -> None:
        object.__setattr__(self, "build", build)
        object.__setattr__(self, "ranges", ranges)
        if not callable(build):
            raise InvalidInput(
                f"student: {type(build).__name__} can't build a model; expected a function that returns an nn.Module"
            )
        counts = {name: len(_values(name, knob)) for name, knob in ranges.items()}
        if math.prod(counts.values()) > MOST_VARIANTS:
            shown = " × ".join(f"{count} of {name}" for name, count in counts.items())
            raise InvalidInput(
                f"student: {shown} make {math.prod(counts.values())} combinations; expected at most {MOST_VARIANTS}: "
                "choose coarser steps or narrower ranges"
            )

    def variants(self, name: str) -> dict[str, dict[str, Scalar]]:
        """The combinations of the ranges: architecture name such as `small(depth=2,width=16)` to keyword arguments.

        They are ordered so that the first few, however many, are spread evenly over the ranges, the middle first:
        each is the one farthest from all before it.

        Args:
            name: Of the student; the only architecture of one without ranges.
        """
        parameters = sorted(self.ranges)
        if not parameters:
            return {name: {}}
        values = [_values(parameter, self.ranges[parameter]) for parameter in parameters]
        grid = {_variant_name(name, parameters, answers): answers for answers in product(*values)}
        places = {
            variant: tuple(
                known.index(answer) / max(1, len(known) - 1) for known, answer in zip(values, answers, strict=True)
            )
            for variant, answers in grid.items()
        }
        return {variant: dict(zip(parameters, grid[variant], strict=True)) for variant in _spread(places)}


def _values(name: str, knob: Knob) -> tuple[Scalar, ...]:
    """All values of a range.

    Raises:
        InvalidInput: If it is none or has none.
    """
    if isinstance(knob, Choice):
        values: tuple[Scalar, ...] = tuple(knob.options)
    elif isinstance(knob, Int) and knob.step >= 1:
        values = tuple(range(knob.low, knob.high + 1, knob.step))
    elif isinstance(knob, Float) and knob.step is not None and knob.step > 0:
        steps = math.floor((knob.high - knob.low) / knob.step + 1e-9)
        values = tuple(round(knob.low + index * knob.step, 12) for index in range(steps + 1))
    else:
        raise InvalidInput(f"student: {name}={knob!r}; expected a Choice, an Int or a Float, with a step above 0")
    texts = [_text(value) for value in values]
    if not values or len(set(texts)) < len(texts) or not all(map(_WORD.fullmatch, texts)):
        raise InvalidInput(
            f"student: {name}={knob!r}; expected at least one value and different ones, words of letters, digits and "
            "any of _.+-"
        )
    return values


def _variant_name(name: str, parameters: list[str], answers: tuple[Scalar, ...]) -> str:
    shown = (f"{parameter}={_text(answer)}" for parameter, answer in zip(parameters, answers, strict=True))
    return f"{name}({','.join(shown)})"


def _text(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _spread(places: Mapping[str, tuple[float, ...]]) -> list[str]:
    """Names in an order in which each is the farthest from all before it, beginning in the middle.

    References:
        Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
    """
    middle = (0.5,) * len(next(iter(places.values())))
    chosen = [min(places, key=lambda name: math.dist(places[name], middle))]
    gaps = dict.fromkeys(places, math.inf)
    while len(chosen) < len(places):
        latest = places[chosen[-1]]
        gaps = {name: min(gap, math.dist(places[name], latest)) for name, gap in gaps.items() if name != chosen[-1]}
        chosen.append(max(gaps, key=lambda name: gaps[name]))
    return chosen
