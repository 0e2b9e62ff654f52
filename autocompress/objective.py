"""Objectives and constraints: what is better, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from autocompress.errors import InvalidInput, UnknownName

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Objective:
    """One value to optimize.

    Args:
        name: The metric's name, `latency_ms`, `size_bytes` or `peak_memory_bytes`.
        direction: "maximize" or "minimize".
        unit: For tables: "ms", "bytes", or "" for a metric.
        tolerance: Relative difference below which two values are a tie (measuring noise); 0 compares exactly.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    direction: Direction
    unit: str = ""
    tolerance: float = 0.0

    def cost(self, values: Mapping[str, float]) -> float:
        """The value turned so that less is better."""
        value = values[self.name]
        return -value if self.direction == "maximize" else value

    def reaches(self, a: Mapping[str, float], b: Mapping[str, float], *, spread: float = 0.0) -> bool:
        """True if `a` is as good as `b` in this, but for the noise.

        Args:
            a, b: Values of two models.
            spread: Relative difference that measuring these very two leaves open, where it is more than the tolerance.
        """
        return self.cost(a) <= self.cost(b) + max(self.tolerance, spread) * abs(self.cost(b))


MEASURED = (
    Objective("latency_ms", "minimize", "ms", tolerance=0.02),
    Objective("size_bytes", "minimize", "bytes", tolerance=0.01),
    Objective("peak_memory_bytes", "minimize", "bytes", tolerance=0.05),
)
"""What every device measures, beside the task's own metric."""


def make_objectives(names: tuple[str, ...], metric: str, direction: Direction) -> tuple[Objective, ...]:
    """Objectives by name; without names the metric, latency and size.

    Raises:
        UnknownName: If a name is neither the task's metric nor measured.
        InvalidInput: If a name is given twice.
    """
    known = {metric: Objective(metric, direction)} | {objective.name: objective for objective in MEASURED}
    chosen = names or (metric, "latency_ms", "size_bytes")
    for name in chosen:
        if name not in known:
            raise UnknownName("objective", name, known)
        if chosen.count(name) > 1:
            raise InvalidInput(f"objective {name!r} is given {chosen.count(name)} times; give each once")
    return tuple(known[name] for name in chosen)


_NUMBER = r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|[-+]?\.\d+"
_CONSTRAINT = re.compile(
    rf"^\s*(?P<name>\w+)\s*(?P<operator><=|>=)\s*(?:"
    rf"(?P<plain>{_NUMBER})\s*(?P<suffix>[%x]?)"
    rf"|baseline(?:\s*(?P<sign>[-+*])\s*(?P<number>{_NUMBER})\s*(?P<percent>%?))?"
    rf")\s*$"
)


@dataclass(frozen=True)
class Constraint:
    """A bound on one value, absolute or relative to the baseline.

    Written `latency_ms<=5`, `accuracy>=97%`, `accuracy>=baseline-1%`, `size_bytes<=0.25x` or
    `latency_ms<=baseline*0.5` (the last two forms are relative to the baseline).

    Args:
        name: The value that is bounded.
        operator: "<=" or ">=".
        scale: Factor on the baseline's value; 0 for absolute bounds.
        offset: What is added to it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    operator: Literal["<=", ">="]
    scale: float
    offset: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read a constraint from its text.

        >>> Constraint.parse("accuracy>=baseline-1%")
        Constraint(name='accuracy', operator='>=', scale=1.0, offset=-0.01)

        Raises:
            InvalidInput: If the text has another form.
        """
        match = _CONSTRAINT.match(text)
        if match is None:
            raise InvalidInput(
                f"constraint {text!r}: expected NAME<=VALUE or NAME>=VALUE, where VALUE is a number, a percentage "
                "(97%), a multiple of the baseline (0.5x), or baseline-0.01"
            )
        share = "%" in (match["suffix"], match["percent"])
        if share and match["name"] in {objective.name for objective in MEASURED}:
            raise InvalidInput(
                f"constraint {text!r}: a percentage is for metrics; {match['name']}<=0.5x is half of the baseline"
            )
        number = float(match["plain"] or match["number"] or 0.0) / (100 if share else 1)
        if match["suffix"] == "x" or match["sign"] == "*":
            scale, offset = number, 0.0
        elif match["plain"]:
            scale, offset = 0.0, number
        else:
            scale, offset = 1.0, -number if match["sign"] == "-" else number
        return cls(match["name"], "<=" if match["operator"] == "<=" else ">=", scale, offset)

    def bound(self, baseline: Mapping[str, float]) -> float:
        """The bound as a number."""
        return (self.scale * baseline[self.name] if self.scale else 0.0) + self.offset

    def violation(self, values: Mapping[str, float], baseline: Mapping[str, float]) -> float:
        """How far the value is beyond the bound, relative to it; zero or less where it holds."""
        bound, value = self.bound(baseline), values[self.name]
        excess = value - bound if self.operator == "<=" else bound - value
        return excess / abs(bound) if bound else excess

    def __str__(self) -> str:
        if not self.scale:
            return f"{self.name}{self.operator}{self.offset:.12g}"
        if not self.offset:
            return f"{self.name}{self.operator}{self.scale:.12g}x"
        return f"{self.name}{self.operator}baseline{self.offset:+.12g}"


def parse_constraints(texts: tuple[str, ...], known: tuple[str, ...]) -> tuple[Constraint, ...]:
    """Constraints from their texts, checked against the values a trial has and against one another.

    Raises:
        UnknownName: If one bounds a value that no trial has.
        InvalidInput: If one is malformed, or two can't hold together.
    """
    constraints = tuple(Constraint.parse(text) for text in texts)
    for constraint in constraints:
        if constraint.name not in known:
            raise UnknownName("value in a constraint", constraint.name, known)
    for lower in (c for c in constraints if c.operator == ">="):
        for upper in (c for c in constraints if c.operator == "<=" and c.name == lower.name):
            if lower.scale == upper.scale and lower.offset > upper.offset:
                raise InvalidInput(f"constraints '{lower}' and '{upper}' contradict each other; drop or widen one")
            if lower.scale > upper.scale and lower.offset >= upper.offset and lower.offset == 0 == upper.offset:
                raise InvalidInput(f"constraints '{lower}' and '{upper}' contradict each other; drop or widen one")
    return constraints
