"""From answers to plans, with nothing else changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autocompress.plan import Plan, Scalar
from autocompress.space import Knob, neutral
from autocompress.strategies._base import Problem

PlanOf = Callable[[Mapping[str, Scalar]], Plan]
"""The plan of some answers, with the neutral one for all other knobs."""

Kind = tuple[str, tuple[tuple[str, Scalar], ...]]
"""A method with all that it is told but ratios, such as quantization to int8 with weights of 4 bits."""


def kinds_of(plan: Plan) -> set[Kind]:
    """The kinds of changes that a plan makes, in whatever layers and by however much."""
    return {
        (step.method, tuple(sorted((name, value) for name, value in setting.items() if not isinstance(value, float))))
        for step in plan.steps
        for setting in step.settings.values()
    }


def plan_of(problem: Problem) -> PlanOf:
    """What makes the plans of a problem."""

    def make(answers: Mapping[str, Scalar]) -> Plan:
        def suggest(name: str, knob: Knob) -> Scalar:
            return answers.get(name, neutral(knob))

        return problem.plan(suggest)

    return make
