"""How the front grew, trial by trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from autocompress.front import feasible, growing_hypervolume
from autocompress.objective import Objective
from autocompress.report.facts import RunFacts
from autocompress.report.figure import figure
from autocompress.report.sections._base import SECTIONS, Section


@SECTIONS.register
class Timeline(Section):
    """The hypervolume of the front over time."""

    name, title, order = "timeline", "Progress", 40

    def html(self, facts: RunFacts) -> str:
        baseline = next((record for record in facts.complete if record.number == 0), None)
        if baseline is None or len(facts.records) < 2:
            return ""
        allowed = {r.number for r in feasible(facts.records, facts.config.constraints, baseline.values)}
        scales = [_scale(o, baseline.values, facts) for o in facts.config.objectives]
        costs = [
            _costs(record.values, baseline.values, facts.config.objectives, scales)
            if record.number in allowed
            else None
            for record in facts.records
        ]
        volumes = growing_hypervolume(costs, tuple(reference for _, reference in scales))
        trace = {
            "type": "scatter",
            "mode": "lines",
            "x": [round(record.ended_s / 60, 3) for record in facts.records],
            "y": volumes,
            "line": {"shape": "hv", "width": 2, "color": "#3b7de0"},
            "hovertemplate": "after %{x:.1f} min: %{y:.3f}<extra></extra>",
        }
        layout = {
            "title": {"text": "hypervolume of the front", "font": {"size": 15}},
            "xaxis": {"title": {"text": "minutes", "standoff": 8}},
            "yaxis": {"rangemode": "tozero"},
        }
        drop = "10 points" if facts.config.is_percentage else "100 %"
        costs_named = ", ".join(one.name for one in facts.config.objectives if one.name != facts.config.metric)
        plot = figure([trace], layout, label="hypervolume of the front over time", height="low")
        return f"""{plot}
<p class="soft">The volume that the front dominates, up to the baseline's {escape(costs_named)} and a metric {drop}
worse than the baseline's; a line that has gone flat says that more time brings little.</p>"""


def _scale(objective: Objective, baseline: Mapping[str, float], facts: RunFacts) -> tuple[float, float]:
    """The unit of an objective's cost, and how many units above the baseline still count."""
    if objective.name != facts.config.metric:
        return abs(baseline[objective.name]) or 1.0, 0.0
    return (0.1 if facts.config.is_percentage else abs(baseline[objective.name]) or 1.0), 1.0


def _costs(
    values: Mapping[str, float],
    baseline: Mapping[str, float],
    objectives: Sequence[Objective],
    scales: Sequence[tuple[float, float]],
) -> tuple[float, ...]:
    return tuple(
        (objective.cost(values) - objective.cost(baseline)) / unit
        for objective, (unit, _) in zip(objectives, scales, strict=True)
    )
