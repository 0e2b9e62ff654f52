"""Objectives and constraints: what is better, what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import ConfigDict

from autocompress.errors import InvalidInput, UnknownName

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Objective:
    """One value to optimize.

    Args:
        name: The metric's name, `latency_ms`, `size_bytes` or `peak_memory_bytes`; with several machines also
            `latency_ms@MACHINE` and `peak_memory_bytes@MACHINE`.
        direction: "maximize" or "minimize".
        unit: For tables: "ms", "bytes", or "" for a metric.
        tolerance: Relative difference below which two values are a tie (measuring noise); 0 compares exactly.
        weight: How much it counts for those who want one model; 0 where the whole front is wanted.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    direction: Direction
    unit: str = ""
    tolerance: float = 0.0
    weight: float = 0.0

    def cost(self, values: Mapping[str, float]) -> float:
        """The value turned so that less is better."""
        value = values[self.name]
        return -value if self.direction == "maximize" else value

    def lost(self, value: float, level: float, *, is_share: bool = False) -> float:
        """Hundredths by which a value is worse than a level: points for shares in [0, 1], else percent of the level."""
        worse = level - value if self.direction == "maximize" else value - level
        return 100 * worse / (1.0 if is_share else max(abs(level), 1e-12))

    def at_loss(self, lost: float, level: float, *, is_share: bool = False) -> float:
        """The value that is worse than a level by so many hundredths, as `lost` counts them."""
        worse = lost * (1.0 if is_share else max(abs(level), 1e-12)) / 100
        return level - worse if self.direction == "maximize" else level + worse

    def reaches(self, a: Mapping[str, float], b: Mapping[str, float]) -> bool:
        """True if `a` is as good as `b` in this, but for the noise."""
        return self.cost(a) <= self.cost(b) + self.tolerance * abs(self.cost(b))


MEASURED = (
    Objective("latency_ms", "minimize", "ms", tolerance=0.02),
    Objective("size_bytes", "minimize", "bytes", tolerance=0.01),
    Objective("peak_memory_bytes", "minimize", "bytes", tolerance=0.05),
)
"""What every device measures, beside the task's own metric."""

LATENCY, SIZE, MEMORY = (objective.name for objective in MEASURED)

LATENCY_RATIO = "latency_ratio"
"""Latency over that of the baseline."""

MACHINE_NAME = re.compile(r"[\w.+-]+")
"""What a machine may be called where there are several."""

PER_MACHINE = (LATENCY, MEMORY)
"""What is asked for and differs from machine to machine."""


def on_machine(name: str, machine: str) -> str:
    """What a value is called that one of several machines has.

    >>> on_machine("latency_ms", "phone"), quantity("latency_ms@phone"), quantity("latency_ms")
    ('latency_ms@phone', 'latency_ms', 'latency_ms')
    """
    return f"{name}@{machine}"


def quantity(name: str) -> str:
    """What a value is, on whatever machine; see `on_machine`."""
    return name.partition("@")[0]


def machine_of(name: str) -> str:
    """The machine that a value was measured on; empty where its name has none."""
    return name.partition("@")[2]


def on_each_machine(values: Mapping[str, float], name: str) -> dict[str, float]:
    """A value on each machine, by the machine's name; without a name where there is one machine.

    >>> on_each_machine({"latency_ms": 5.0, "latency_ms@phone": 5.0, "latency_ms@server": 0.7}, "latency_ms")
    {'phone': 5.0, 'server': 0.7}
    """
    return {machine_of(key): values[key] for key in names_on_machines(name, values)}


def names_on_machines(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """What a value is called on each machine; its name alone where it has one, or does not differ between machines.

    >>> names_on_machines("latency_ms", ("latency_ms", "size_bytes", "latency_ms@phone", "latency_ms@server"))
    ('latency_ms@phone', 'latency_ms@server')
    """
    return tuple(key for key in known if quantity(key) == name and key != name) or (name,)


def over_machines(values: Mapping[str, float], name: str) -> float:
    """A value to choose by: the geometric mean over all machines, if it differs between them and names none.

    Milliseconds of a slow machine do not outweigh those of a fast one then, and ratios to the baseline choose the same.

    >>> over_machines({"latency_ms": 4.0, "latency_ms@phone": 4.0, "latency_ms@server": 0.25}, "latency_ms")
    1.0
    """
    each = on_each_machine(values, name).values()
    return math.prod(each) ** (1 / len(each))


def is_measured(name: str) -> bool:
    """True if a device measures the value; else it is a metric."""
    return any(objective.name == quantity(name) for objective in MEASURED)


def measured_objectives(machines: Sequence[str]) -> tuple[Objective, ...]:
    """All that is measured.

    Args:
        machines: Names of all machines; values without a machine in their names are those of the first.
    """
    if len(machines) < 2:
        return MEASURED
    own = (
        replace(one, name=on_machine(one.name, machine))
        for one in MEASURED
        if one.name in PER_MACHINE
        for machine in machines
    )
    return (*MEASURED, *own)


def make_objectives(
    names: tuple[str, ...], metric: str, direction: Direction, machines: Sequence[str] = ()
) -> tuple[Objective, ...]:
    """Objectives by name; without names the metric, the latency on each machine, and size.

    Args:
        names: Each a name, or all of them names with weights such as `accuracy:10` and `latency_ms:1`. One that differs
            between machines, and names none, stands for that on each; its weight is shared out in equal parts.
        metric, direction: Of the task.
        machines: Names of the machines, the first one first, where there are several.

    Raises:
        UnknownName: If a name is neither the task's metric nor measured.
        InvalidInput: If a name is given twice, or some have weights and others none.
    """
    known = {metric: Objective(metric, direction)} | {one.name: one for one in measured_objectives(machines)}
    given = []
    for text in names or (metric, LATENCY, SIZE):
        name, weight = _weighted(text)
        if name not in known:
            raise UnknownName("objective", name, known)
        each = names_on_machines(name, known)
        given += [(one, weight / len(each)) for one in each]
    chosen = dict(given)
    if len(chosen) < len(given):
        count, name = max((sum(one == name for one, _ in given), name) for name in chosen)
        raise InvalidInput(f"objective {name!r} is given {count} times; give each once")
    if any(chosen.values()) and not all(chosen.values()):
        without = next(name for name, weight in chosen.items() if not weight)
        raise InvalidInput(f"objective {without!r} has no weight while others have; give all of them one, or none")
    return tuple(replace(known[name], weight=weight) for name, weight in chosen.items())


def _weighted(text: str) -> tuple[str, float]:
    """Name and weight of an objective as it is written; 0 without a weight."""
    name, colon, number = text.partition(":")
    try:
        weight = float(number) if colon else 0.0
    except ValueError:
        weight = -1.0
    if colon and not 0 < weight < math.inf:
        raise InvalidInput(f"objective {text!r}: expected NAME, or NAME:WEIGHT with a weight above zero")
    return name.strip(), weight


def weighted_change(
    objectives: Sequence[Objective], values: Mapping[str, float], baseline: Mapping[str, float], *, is_share: bool
) -> float:
    """What a model changes against the baseline, by the weights of the objectives; less is better.

    A weight is that of a hundredth: of a percent of a cost, and of a point of a metric that is a share (a percent of
    other metrics). With `accuracy:10` and `latency_ms:1` a point of accuracy is worth ten percent of latency.

    Args:
        objectives: With weights.
        values, baseline: Of the model and the baseline.
        is_share: True if the metric is a share in [0, 1].
    """
    total = 0.0
    for objective in objectives:
        is_points = is_share and not is_measured(objective.name)
        total += objective.weight * objective.lost(values[objective.name], baseline[objective.name], is_share=is_points)
    return total


ROUNDING = 1e-9
"""Share of a bound by which a value may miss it: what arithmetic makes of 0.58 - 0.01 is more than 0.57."""

SCORE_WEIGHT = 10.0
"""Relative differences of a cost that weigh as much as one of a score, where models break bounds of both."""

BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
"""Units of sizes, in bytes."""

_NUMBER = r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|[-+]?\.\d+"
_CONSTRAINT = re.compile(
    rf"^\s*(?P<name>\w+(?:@{MACHINE_NAME.pattern})?)\s*(?P<operator><=|>=)\s*(?:"
    rf"(?P<plain>{_NUMBER})\s*(?P<suffix>%|x|{'|'.join(BYTES)}|)"
    rf"|baseline(?:\s*(?P<sign>[-+*])\s*(?P<number>{_NUMBER})\s*(?P<percent>%?))?"
    rf")\s*$"
)


@dataclass(frozen=True)
class Constraint:
    """A bound on one value, absolute or relative to the baseline.

    Written `latency_ms<=5`, `size_bytes<=60KiB`, `accuracy>=97%`, `accuracy>=baseline-1%`, `size_bytes<=0.25x` or
    `latency_ms<=baseline*0.5` (the last three forms are relative to the baseline).

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
                "(97%), a size (60KiB), a multiple of the baseline (0.5x), or baseline-0.01"
            )
        unit = BYTES.get(match["suffix"] or "")
        if unit and not quantity(match["name"]).endswith("_bytes"):
            raise InvalidInput(f"constraint {text!r}: a unit of bytes is for size_bytes and peak_memory_bytes")
        share = "%" in (match["suffix"], match["percent"])
        if share and is_measured(match["name"]):
            raise InvalidInput(
                f"constraint {text!r}: a percentage is for metrics; {match['name']}<=0.5x is half of the baseline"
            )
        number = float(match["plain"] or match["number"] or 0.0) / (100 if share else 1) * (unit or 1)
        if match["suffix"] == "x" or match["sign"] == "*":
            scale, offset = number, 0.0
        elif match["plain"]:
            scale, offset = 0.0, number
        else:
            scale, offset = 1.0, -number if match["sign"] == "-" else number
        return cls(match["name"], "<=" if match["operator"] == "<=" else ">=", scale, offset)

    def on_machines(self, known: Iterable[str]) -> tuple[Constraint, ...]:
        """The same on each machine; itself where its value does not differ between machines, or names one.

        Args:
            known: Names of all values.
        """
        return tuple(replace(self, name=name) for name in names_on_machines(self.name, known))

    def bound(self, baseline: Mapping[str, float]) -> float:
        """The bound as a number."""
        return (self.scale * baseline[self.name] if self.scale else 0.0) + self.offset

    def violation(self, values: Mapping[str, float], baseline: Mapping[str, float]) -> float:
        """How far the value is beyond the bound, relative to it; zero or less where it holds."""
        bound, value = self.bound(baseline), values[self.name]
        excess = value - bound if self.operator == "<=" else bound - value
        if 0 < excess <= ROUNDING * abs(bound):
            return 0.0
        return excess / abs(bound) if bound else excess

    def distance(self, values: Mapping[str, float], baseline: Mapping[str, float]) -> float:
        """The violation on a scale on which those of different values compare; zero or less where it holds.

        Costs count by the logarithm of what they are over their bound, others ten times: a hundredth of a score weighs
        about as much as a tenth of a latency.
        """
        violation = self.violation(values, baseline)
        return math.log1p(violation) if is_measured(self.name) and violation > 0 else SCORE_WEIGHT * violation

    def __str__(self) -> str:
        if not self.scale:
            return f"{self.name}{self.operator}{self.offset:.12g}"
        if not self.offset:
            return f"{self.name}{self.operator}{self.scale:.12g}x"
        return f"{self.name}{self.operator}baseline{self.offset:+.12g}"


def check_shares(constraints: Sequence[Constraint], shares: Sequence[str]) -> None:
    """Refuse bounds that no share can have.

    Args:
        constraints: Any.
        shares: Names of values in [0, 1].

    Raises:
        InvalidInput: If one wants more than 1, or less than 0, of a share.
    """
    for constraint in constraints:
        if constraint.name in shares and not constraint.scale and not 0 <= constraint.offset <= 1:
            percent = f"; did you mean {constraint}%?" if 1 < constraint.offset <= 100 else ""
            raise InvalidInput(f"constraint '{constraint}': {constraint.name} is a share in [0, 1]{percent}")


def parse_constraints(texts: tuple[str, ...], known: tuple[str, ...]) -> tuple[Constraint, ...]:
    """Constraints from their texts, checked against the values a trial has and against one another.

    One of a value that differs between machines, and names none, is one on each of them.

    Raises:
        UnknownName: If one bounds a value that no trial has.
        InvalidInput: If one is malformed, or two can't hold together.
    """
    constraints = tuple(one for text in texts for one in Constraint.parse(text).on_machines(known))
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
