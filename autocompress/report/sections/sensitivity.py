"""The sensitivity table: what each single change does before any training."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from autocompress.objective import LATENCY_RATIO, on_each_machine
from autocompress.plan import Scalar
from autocompress.probe import Sensitivity
from autocompress.report.facts import RunFacts
from autocompress.report.figure import figure
from autocompress.report.layers import layer_order
from autocompress.report.sections._base import SECTIONS, Section

LEAST = 1e-5
"""Divergences below this are drawn here, since the axis is logarithmic."""


@SECTIONS.register
class SensitivityTable(Section):
    """How far the outputs move when one layer is changed, by method and setting."""

    name, title, order = "sensitivity", "Sensitivity", 32

    def html(self, facts: RunFacts) -> str:
        known = [entry for entry in facts.sensitivities if not entry.reason]
        if not known:
            return ""
        traces: dict[str, dict[str, Any]] = {}
        for entry in known:
            method, layer, setting = _change(entry)
            label = f"{method} {setting}".strip()
            trace = traces.setdefault(label, {"x": [], "y": [], "text": []})
            trace["x"].append(escape(layer))
            trace["y"].append(max(LEAST, entry.divergence))
            ratios = on_each_machine(entry.values, LATENCY_RATIO).values()
            trace["text"].append(f"latency {', '.join(f'{ratio:.2f}×' for ratio in ratios)}")
        data = [_trace(label, traces[label]) for label in sorted(traces)]
        plans = (*(record.plan for record in facts.records), *(entry.plan for entry in known))
        changed = {_change(entry)[1] for entry in known}
        layers = [escape(layer) for layer in layer_order(plans) if layer in changed]
        layout = {
            "xaxis": {"type": "category", "categoryorder": "array", "categoryarray": layers}
            | {"automargin": True, "tickangle": -60},
            "yaxis": {"type": "log", "dtick": 1, "exponentformat": "power"}
            | {"title": {"text": "divergence of the outputs"}},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        }
        plot = figure(data, layout, label="divergence of the outputs by changed layer", height="tall")
        missing = len(facts.sensitivities) - len(known)
        left_out = f" {missing} could not be carried out." if missing else ""
        return f"""{plot}
<p class="soft">{len(known)} single changes of the original, without training and without labels: how far the outputs on
calibration samples move (Kullback-Leibler divergence of classes, else the mean square relative to the variance).
What lies low bears the change.{left_out}</p>"""


def _change(entry: Sensitivity) -> tuple[str, str, str]:
    """Method, layer and setting of a change in words."""
    step = entry.plan.steps[0]
    layer, setting = next(iter(step.settings.items()))
    return step.method, layer, " ".join(_word(step.method, name, value) for name, value in setting.items()).strip()


def _word(method: str, name: str, value: Scalar) -> str:
    if value is True:
        return ""
    return value if isinstance(value, str) else f"{value:g}" if name == method else f"{name} {value:g}"


def _trace(label: str, trace: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(label),
        "hovertemplate": "%{x}: %{y:.3g}, %{text}<extra>" + escape(label) + "</extra>",
        **trace,
    }
