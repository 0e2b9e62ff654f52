"""The search space: what may be tried, as data, and the knobs through which it is sampled."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from autocompress.errors import InvalidInput
from autocompress.plan import ARCHITECTURE, ORIGINAL, Kept, Penalty, Recovery, Scalar
from autocompress.resources import find_yaml
from autocompress.serialization import digest, from_data, read_yaml


@dataclass(frozen=True)
class Choice:
    """One of several values, the default first: of a method's first parameter it leaves the layer alone."""

    options: tuple[Scalar, ...]


@dataclass(frozen=True)
class Float:
    """A number in [low, high], in steps if `step` is given; `low` is the neutral one."""

    low: float
    high: float
    step: float | None = None


@dataclass(frozen=True)
class Int:
    """A whole number in [low, high]; `low` is the neutral one."""

    low: int
    high: int
    step: int = 1


Knob = Choice | Float | Int
Suggest = Callable[[str, Knob], Scalar]
"""Answers a knob by its path, for example `original/channel_pruning/conv1/pruning_ratio`."""


def record_answers(suggest: Suggest, answers: dict[str, Scalar]) -> Suggest:
    """The same suggest, which also writes every answer into `answers`."""

    def recording(name: str, knob: Knob) -> Scalar:
        answers[name] = suggest(name, knob)
        return answers[name]

    return recording


def neutral(knob: Knob) -> Scalar:
    """The value of a knob that leaves its layer as it is, or at the default if it is a further parameter."""
    return knob.options[0] if isinstance(knob, Choice) else knob.low


@dataclass(frozen=True)
class MethodSpace:
    """What one method may do.

    Args:
        parameters: Parameter name to the values that may be tried, for example `{"pruning_ratio": (0, 0.25, 0.5)}`.
        layers: Patterns of layer names the method may touch (`*` and `?` as in file names).
        exclude: Patterns of layer names it must not touch.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    parameters: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def admits(self, layer: str) -> bool:
        """True if the method may touch the layer of that name."""
        return _matches(layer, tuple(self.layers)) and not _matches(layer, tuple(self.exclude))

    def admits_part(self, name: str, layers: tuple[str, ...]) -> bool:
        """True if the name of a group or block is wanted and neither it nor any of its layers is excluded."""
        return self.admits(name) and not any(_matches(layer, tuple(self.exclude)) for layer in layers)


MOST_STUDENT_FACTOR = 2.0
"""Smaller students are trained longer by at most this factor."""


@dataclass(frozen=True)
class RecoverySpace:
    """How compressed models are fine-tuned.

    Args:
        epochs: Passes over the training data for models that keep the original's weights, or "auto": as many as let
            about 40 trials fit into the budget, or with rungs of training about six of the longest.
        student_epochs: The same for students, which start from fresh weights. Smaller students, whose epochs take
            less time, get more of them in proportion, up to twice as many.
        learning_rate: Peak learning rate for models that keep the original's weights.
        student_learning_rate: Peak learning rate for students.
        temperature, alpha, feature_weight, keep: As in `Recovery`.
        penalty, penalty_weight, sparsify_epochs: As in `Recovery`; only for plans that remove something.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    epochs: int | Literal["auto"] = "auto"
    student_epochs: int | Literal["auto"] = "auto"
    learning_rate: float = 0.003
    student_learning_rate: float = 0.01
    temperature: float = 4.0
    alpha: float = 0.1
    feature_weight: float = 0.0
    penalty: Penalty = "none"
    penalty_weight: float = 0.0
    sparsify_epochs: int = 0
    keep: Kept = "best"

    def __post_init__(self) -> None:
        for epochs in (self.epochs, self.student_epochs):
            if isinstance(epochs, int) and epochs < 0:
                raise InvalidInput(f"recovery: epochs {epochs}; expected a number >= 0 or auto")
        self._recovery(0, self.learning_rate)
        self._recovery(0, self.student_learning_rate)

    def resolve(self, macs_share: float | None = None) -> Recovery:
        """The recovery of one plan; the epochs must be numbers by now.

        Args:
            macs_share: MACs of a student over those of the original; None for the original itself.
        """
        epochs, rate = self.epochs, self.learning_rate
        if macs_share is not None:
            epochs, rate = self.student_epochs, self.student_learning_rate
        assert isinstance(epochs, int), "epochs are resolved before the first plan is made"
        longer = 1.0 if macs_share is None else min(MOST_STUDENT_FACTOR, max(1.0, 1 / max(macs_share, 1e-9)))
        return self._recovery(round(longer * epochs), rate)

    def _recovery(self, epochs: int, rate: float) -> Recovery:
        return Recovery(
            epochs=epochs,
            learning_rate=rate,
            temperature=self.temperature,
            alpha=self.alpha,
            feature_weight=self.feature_weight,
            penalty=self.penalty,
            penalty_weight=self.penalty_weight,
            sparsify_epochs=self.sparsify_epochs,
            keep=self.keep,
        )


@dataclass(frozen=True)
class SearchSpace:
    """Methods and their choices, architectures, recovery, and the uniform policies tried first.

    Args:
        methods: Method name to what it may do.
        widths: Widths of the students made from the original, each in (0, 1); a student of width 0.5 has half the
            channels in every layer and fresh weights.
        depths: Depths of the students made from the original, each in (0, 1); a student of depth 0.5 has half the
            blocks that can be left out. With both, students of each width and depth are offered too.
        students: True to include the students that the task names.
        variants: Architectures that each student with ranges offers at most, spread evenly over the ranges. Those that
            a policy names are offered in any case.
        recovery: How every compressed model is fine-tuned.
        policies: Settings tried first, the same for all layers: `method/parameter` to value, and `architecture`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    description: str = ""
    methods: Mapping[str, MethodSpace] = field(default_factory=dict)
    widths: tuple[float, ...] = ()
    depths: tuple[float, ...] = ()
    students: bool = True
    variants: int = 12
    recovery: RecoverySpace = field(default_factory=RecoverySpace)
    policies: tuple[Mapping[str, Scalar], ...] = ()

    def __post_init__(self) -> None:
        for what, numbers in (("width", self.widths), ("depth", self.depths)):
            for number in numbers:
                if not 0 < number < 1:
                    raise InvalidInput(
                        f"search space {self.name!r}: {what} {number}: expected a number between 0 and 1"
                    )
        if self.variants < 1:
            raise InvalidInput(f"search space {self.name!r}: variants {self.variants}; expected at least 1")
        for policy in self.policies:
            for key in policy:
                self._check_policy_key(key)

    def _check_policy_key(self, key: str) -> None:
        if key == ARCHITECTURE:
            return
        method, _, parameter = key.partition("/")
        if method not in self.methods:
            raise InvalidInput(
                f"search space {self.name!r}: policy key {key!r}: expected architecture or METHOD/PARAMETER "
                f"with a method of this space ({', '.join(sorted(self.methods))})"
            )
        if not parameter:
            raise InvalidInput(f"search space {self.name!r}: policy key {key!r}: expected METHOD/PARAMETER")

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with anything that is searched."""
        return digest(self)


def load_space(name: str) -> SearchSpace:
    """A shipped search space by name, or the user's own by the path of its YAML file.

    Raises:
        UnknownName: If no shipped space has that name.
        InvalidInput: If the file is missing, no YAML, or holds an unknown key or a wrong value.
    """
    path = find_yaml("search_spaces", name, "search space")
    data: Any = read_yaml(path)
    if not isinstance(data, dict):
        raise InvalidInput(f"{path}: expected a mapping with the keys name, methods, …; found {type(data).__name__}")
    return from_data(SearchSpace, {"name": Path(path).stem} | data, source=str(path))


_SCALED = re.compile(r"(?=.)(?:width_(?P<width>[\d.e-]+))?(?:(?:^|(?<=.)_)depth_(?P<depth>[\d.e-]+))?")


def scaled_name(width: float = 1.0, depth: float = 1.0) -> str:
    """The architecture name of a student made from the original.

    >>> scaled_name(width=0.5), scaled_name(depth=0.75), scaled_name(0.5, 0.75)
    ('width_0.5', 'depth_0.75', 'width_0.5_depth_0.75')
    """
    return "_".join(f"{what}_{share:g}" for what, share in (("width", width), ("depth", depth)) if share != 1)


def parse_scaled(architecture: str) -> tuple[float, float] | None:
    """Width and depth in a name that `scaled_name` gives, 1 for what it does not say; None for other names."""
    match = _SCALED.fullmatch(architecture)
    if match is None:
        return None
    try:
        scale = float(match["width"] or 1), float(match["depth"] or 1)
    except ValueError:
        return None
    return scale if scaled_name(*scale) == architecture else None


def neutral_answers(plan: Callable[[Suggest], object]) -> dict[str, Scalar]:
    """The neutral answer to every knob that a plan asks for.

    Args:
        plan: Asks the knobs.
    """
    answers: dict[str, Scalar] = {}
    plan(record_answers(lambda _, knob: neutral(knob), answers))
    return answers


def policy_suggest(policy: Mapping[str, Scalar]) -> Suggest:
    """Answers every knob as the policy says, the same for all layers; the neutral value where it says nothing.

    Where a knob does not offer a number, the nearest it offers is taken (channel counts are rounded, so layers offer
    different ratios); where it does not offer a word, the neutral value.
    """

    def suggest(name: str, knob: Knob) -> Scalar:
        if name == ARCHITECTURE:
            wanted: Scalar | None = policy.get(ARCHITECTURE, ORIGINAL)
        else:
            _, method, *_, parameter = name.split("/")
            wanted = policy.get(f"{method}/{parameter}")
        return neutral(knob) if wanted is None else _nearest(knob, wanted)

    return suggest


def _nearest(knob: Knob, value: Scalar) -> Scalar:
    """The value a knob offers that is nearest to the wanted one; of two equally near the larger."""
    if not isinstance(knob, Choice):
        return min(max(value, knob.low), knob.high) if isinstance(value, int | float) else knob.low
    if value in knob.options:
        return value
    numbers = [option for option in knob.options if isinstance(option, int | float)]
    if isinstance(value, str) or not numbers:
        return neutral(knob)
    return min(numbers, key=lambda number: (abs(number - value), -number))


@lru_cache(maxsize=100_000)  # each proposal asks for all layers
def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
