"""A plan: what to do to a model. Pure data, never how far it got."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import ClassVar, Literal, get_args

from pydantic import ConfigDict

from autocompress.errors import InvalidInput
from autocompress.serialization import digest, from_json, to_json

Scalar = bool | int | float | str
"""One value of a knob or a setting."""

Settings = Mapping[str, Mapping[str, Scalar]]
"""What a method does: layer name to parameter to value."""

ORIGINAL = "original"
"""The architecture of the user's own model."""

ARCHITECTURE = "architecture"
"""The knob, and the key of a policy, that chooses the architecture."""


class Stage(IntEnum):
    """When a method acts; lower stages first.

    STRUCTURE says which channels and blocks there are, FACTORS splits layers, WEIGHTS says which weights are zero.
    Then batch norms are folded into the layers before them, since only folded weights are stored: VALUES says which
    values weights share, NUMERICS in which numbers is computed.
    """

    STRUCTURE = 1
    FACTORS = 2
    WEIGHTS = 3
    VALUES = 4
    NUMERICS = 5


@dataclass(frozen=True)
class Step:
    """One method with its settings by layer."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    method: str
    settings: Mapping[str, Mapping[str, Scalar]]


Penalty = Literal["none", "l1", "group_lasso"]
"""What training may add to the loss to make a model sparse."""

Kept = Literal["best", "last"]
"""The epoch whose weights a recovery leaves: the best one on validation data, or the last one."""


@dataclass(frozen=True)
class Recovery:
    """Fine-tuning with distillation from the original model.

    Args:
        epochs: Passes over the training data; 0 leaves the weights as the methods made them.
        learning_rate: Peak of the one-cycle schedule, > 0.
        temperature: Softening of teacher and student outputs, > 0 (Hinton et al., "Distilling the knowledge in a
            neural network", 2015).
        alpha: Weight of the loss on the true targets, in [0, 1]; 1 - alpha goes to the teacher's outputs.
        feature_weight: Weight of the mean squared difference between inner layers of student and teacher, relative to
            the teacher's mean square, >= 0; 0 leaves it out (Romero et al., "FitNets: Hints for Thin Deep Nets", 2015).
        penalty: What is added to the loss so that channels or weights go towards zero: "l1" sums the scales of batch
            norms, or all weights of a model without any; "group_lasso" the norms of output channels.
        penalty_weight: Factor of the penalty, > 0 if there is one; 0.01 with l1 or 0.001 with group_lasso does much.
        sparsify_epochs: Epochs with the penalty, at the same rate, before structure is removed (Liu et al., "Learning
            Efficient Convolutional Networks through Network Slimming", 2017). With 0 the penalty acts in the recovery.
        keep: "best" leaves the weights of the epoch that scores best on validation data, or those from before if none
            is better; "last" those of the last epoch, for validation data that the original has been trained on, where
            every epoch scores below its start.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    epochs: int = 0
    learning_rate: float = 0.003
    temperature: float = 2.0
    alpha: float = 0.5
    feature_weight: float = 0.0
    penalty: Penalty = "none"
    penalty_weight: float = 0.0
    sparsify_epochs: int = 0
    keep: Kept = "best"

    def __post_init__(self) -> None:
        self._check_training()
        self._check_penalty()

    def _check_training(self) -> None:
        if self.epochs < 0 or self.learning_rate <= 0 or self.temperature <= 0 or not 0 <= self.alpha <= 1:
            raise InvalidInput(
                f"recovery: epochs {self.epochs}, learning_rate {self.learning_rate}, temperature {self.temperature}, "
                f"alpha {self.alpha}; expected epochs >= 0, learning_rate > 0, temperature > 0 and alpha in [0, 1]"
            )
        if self.feature_weight < 0:
            raise InvalidInput(f"recovery: feature_weight {self.feature_weight}; expected a number >= 0")
        if self.keep not in get_args(Kept):
            raise InvalidInput(f"recovery: keep {self.keep!r}; expected one of {', '.join(get_args(Kept))}")

    def _check_penalty(self) -> None:
        if self.penalty not in get_args(Penalty):
            raise InvalidInput(f"recovery: penalty {self.penalty!r}; expected one of {', '.join(get_args(Penalty))}")
        if self.penalty_weight < 0 or (self.penalty != "none") != (self.penalty_weight > 0):
            raise InvalidInput(
                f"recovery: penalty {self.penalty!r} with penalty_weight {self.penalty_weight}; expected a weight > 0 "
                "with l1 or group_lasso, and 0 without a penalty"
            )
        if self.sparsify_epochs < 0 or (self.sparsify_epochs and self.penalty == "none"):
            raise InvalidInput(
                f"recovery: sparsify_epochs {self.sparsify_epochs} with penalty {self.penalty!r}; expected 0, or more "
                "together with l1 or group_lasso"
            )

    def without_penalty(self) -> Recovery:
        """The same training with nothing that makes the model sparse."""
        return replace(self, penalty="none", penalty_weight=0.0, sparsify_epochs=0)


HELD_SHARE = 0.25
"""Share of the epochs in which values are held, for plans that change the structure too."""


def split_epochs(epochs: int, *, is_rebuilt: bool, is_held: bool) -> tuple[int, int]:
    """Epochs of a recovery with free values, and those at its end with values held to what the plan says.

    Args:
        epochs: All of them.
        is_rebuilt: True if the plan changes structure, factors or zeros.
        is_held: True if it restricts values in a way that training has to follow.

    >>> split_epochs(8, is_rebuilt=True, is_held=True), split_epochs(8, is_rebuilt=False, is_held=True)
    ((6, 2), (0, 8))
    """
    if not is_held:
        return epochs, 0
    held = max(1, round(HELD_SHARE * epochs)) if is_rebuilt and epochs > 1 else epochs
    return epochs - held, held


@dataclass(frozen=True)
class Plan:
    """An architecture, the methods applied to it with their settings, and the recovery that follows.

    Args:
        architecture: The original, or the name of a student.
        steps: Methods with their settings, each method once.
        recovery: How the compressed model is trained.
        start: The plan whose trained weights this one begins with, carried out as far as weights are free or to the end
            where both do the same and restrict values alone: of the same architecture, with some or all of the settings
            that this one has before values and numerics. None begins with the weights of the architecture.

    >>> plan = Plan(steps=(Step("quantization", {"conv1": {"precision": "int8"}}),))
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    architecture: str = ORIGINAL
    steps: tuple[Step, ...] = ()
    recovery: Recovery = field(default_factory=Recovery)
    start: Plan | None = None
    version: int = 1

    def __post_init__(self) -> None:
        if self.start is not None and self.start.architecture != self.architecture:
            raise InvalidInput(
                f"plan: architecture {self.architecture!r} starts from one of {self.start.architecture!r}; expected "
                "the same"
            )
        if self.start is not None and self.recovery.sparsify_epochs:
            raise InvalidInput(
                f"plan: sparsify_epochs {self.recovery.sparsify_epochs} of a plan that starts from another; "
                "expected 0, as sparsifying comes before everything: give it to the plan that is started from"
            )
        if self.version != 1:
            raise InvalidInput(f"plan version {self.version}: this release reads version 1; update autocompress")
        methods = [step.method for step in self.steps]
        twice = next((method for method in methods if methods.count(method) > 1), None)
        if twice is not None:
            raise InvalidInput(
                f"plan: {methods.count(twice)} steps of {twice!r}; expected one, with the settings of all"
            )

    def to_json(self) -> str:
        """The plan as JSON text."""
        return to_json(self, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """The plan from its JSON text; InvalidInput names a key or value that does not fit."""
        return from_json(cls, text)

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits; equal for equal plans whatever the order of their settings."""
        return digest(self)

    @property
    def is_baseline(self) -> bool:
        """True if the plan leaves the user's model as it is."""
        trained = self.recovery.epochs or self.recovery.sparsify_epochs
        return self.architecture == ORIGINAL and not self.steps and not trained and self.start is None

    @property
    def total_epochs(self) -> int:
        """Epochs of recovery, with those of the plans that it starts from."""
        return self.recovery.epochs + (self.start.total_epochs if self.start is not None else 0)

    def without_recovery(self) -> Plan:
        """The same compression with no fine-tuning."""
        return replace(self, recovery=Recovery())
