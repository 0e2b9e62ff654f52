"""What each model of the front does to each layer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from autocompress.plan import ORIGINAL, Plan, Scalar
from autocompress.report.facts import RunFacts
from autocompress.report.layers import layer_order
from autocompress.report.sections._base import SECTIONS, Section


@SECTIONS.register
class LayerChoices(Section):
    """Rows are layers, columns are the models of the front."""

    name, title, order = "layer_choices", "Choices by layer", 30

    def html(self, facts: RunFacts) -> str:
        by_number = {record.number: record.plan for record in facts.records}
        plans = [by_number[point.number] for point in facts.front]
        layers = layer_order(plans)
        if not layers and all(plan.architecture == ORIGINAL for plan in plans):
            return ""
        head = "".join(f'<th class="choice" title="{escape(p.name)}">{p.number:03d}</th>' for p in facts.front)
        rows = [
            _line("architecture", [escape(plan.architecture) for plan in plans]),
            _line("epochs of training", [str(plan.total_epochs) for plan in plans]),
            *(_line(layer, [_chips(plan, layer) for plan in plans]) for layer in layers),
        ]
        return (
            f'<div class="scroll"><table><thead><tr><th class="layer">layer</th>{head}</tr></thead>\n<tbody>'
            f'{"".join(rows)}</tbody></table></div>\n<p class="soft">Columns are trials by number. {_legend(plans)}</p>'
        )


def _line(name: str, cells: Sequence[str]) -> str:
    columns = "".join(f'<td class="choice">{cell}</td>' for cell in cells)
    return f'<tr><th class="layer">{escape(name)}</th>{columns}</tr>\n'


def _chips(plan: Plan, layer: str) -> str:
    return "".join(
        _chip(step.method, parameter, value)
        for step in plan.steps
        for parameter, value in step.settings.get(layer, {}).items()
    )


def _chip(method: str, parameter: str, value: Scalar) -> str:
    is_share = isinstance(value, float) and 0 <= value <= 1
    style = f' share" style="--share:{value}' if is_share else ""
    title = escape(f"{method}, {parameter}")
    return f'<span class="chip{style}" title="{title}">{escape(_words(parameter, value))}</span>'


def _words(parameter: str, value: Scalar) -> str:
    """A choice in a few characters.

    >>> _words("pruning_ratio", 0.5), _words("precision", "int8"), _words("bits", 4), _words("drop", True)
    ('pruning 0.5', 'int8', 'bits 4', 'drop')
    """
    name = parameter.removesuffix("_ratio").replace("_", " ")
    if value is True:
        return name
    return value if isinstance(value, str) else f"{name} {value:g}"


def _legend(plans: Sequence[Plan]) -> str:
    used = {
        f"{step.method} ({parameter})"
        for plan in plans
        for step in plan.steps
        for setting in step.settings.values()
        for parameter in setting
    }
    return escape(f"Chips show: {', '.join(sorted(used))}." if used else "")
