"""The front as plots: the metric against the latency on each machine and against size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from autocompress.objective import LATENCY_RATIO, SIZE, machine_of, on_machine, quantity
from autocompress.point import Point, point_name
from autocompress.report.facts import RunFacts
from autocompress.report.figure import figure
from autocompress.report.sections._base import SECTIONS, Section
from autocompress.report.table import format_bytes, format_interval, format_metric, format_ms

SIZE_RATIO = "size_ratio"


@SECTIONS.register
class FrontPlot(Section):
    """Every complete trial in gray, the front in color, intervals as bars."""

    name, title, order = "front_plot", "Trade-offs", 10

    def html(self, facts: RunFacts) -> str:
        if facts.baseline is None:
            return ""
        machines = facts.baseline.machines
        latencies = [on_machine(LATENCY_RATIO, name) for name in machines] or [LATENCY_RATIO]
        plots = "\n".join(_plot(facts, facts.baseline, key) for key in (*latencies, SIZE_RATIO))
        better = "up" if facts.config.direction == "maximize" else "down"
        return f"""<div class="plots">{plots}</div>
<p class="soft">Better is {better} and to the left. Bars are 95 % intervals of the latency ratio; the markers
grow with the file's size; the diamond is the baseline; gray points are
finished trials that the front beats or that break a constraint.</p>"""


def _name(key: str) -> str:
    """What a ratio is called.

    >>> _name("size_ratio"), _name("latency_ratio@phone")
    ('size', 'latency on phone')
    """
    machine = machine_of(key)
    return quantity(key).removesuffix("_ratio") + (f" on {machine}" if machine else "")


def _plot(facts: RunFacts, baseline: Point, key: str) -> str:
    metric, share = facts.config.metric, facts.config.is_percentage
    scale = 100.0 if share else 1.0
    level = baseline.validation[metric] * scale
    layout = {
        "title": {"text": escape(f"{metric} against {_name(key)}"), "font": {"size": 15}},
        "xaxis": {"title": {"text": escape(f"{_name(key)} (× baseline)"), "standoff": 8}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": escape(f"{metric} (%)" if share else metric)}},
        "showlegend": False,
        "shapes": [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level}
            | {"line": {"dash": "dot", "width": 1, "color": "#888888"}, "layer": "below"}
        ],
    }
    traces = [
        _others(facts, baseline, key, scale),
        _models(facts.front, facts, key, scale),
        _original(baseline, facts, key, scale),
    ]
    return figure(traces, layout, label=f"{metric} against {_name(key)} of all finished trials")


def _others(facts: RunFacts, baseline: Point, key: str, scale: float) -> dict[str, Any]:
    shown = {point.number for point in (*facts.front, baseline)}
    rest = [record for record in facts.complete if record.number not in shown]
    size = key == SIZE_RATIO
    ratios = [record.values[SIZE] / baseline.size_bytes if size else record.values[key] for record in rest]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": ratios,
        "y": [record.values[facts.config.metric] * scale for record in rest],
        "marker": {"color": "#8a8f9c", "opacity": 0.55, "size": 7},
        "text": [escape(point_name(record)) for record in rest],
        "hovertemplate": "%{text}<br>%{x:.2f}× · %{y:.4g}<extra></extra>",
    }


def _models(points: Sequence[Point], facts: RunFacts, key: str, scale: float) -> dict[str, Any]:
    marker = {
        "size": [9 + 13 * min(point.size_ratio, 1.5) ** 0.5 for point in points],
        "color": [math.log10(point.size_ratio) for point in points],
        "colorscale": [[0, "#1aa39a"], [0.5, "#3b7de0"], [1, "#c2497f"]],
        "cmin": -1,
        "cmax": 0,
        "opacity": 0.9,
        "line": {"width": 1, "color": "#ffffff"},
    }
    return _trace(points, facts, key, scale, marker)


def _original(baseline: Point, facts: RunFacts, key: str, scale: float) -> dict[str, Any]:
    marker = {"size": 13, "symbol": "diamond-open", "color": "#e08a00", "line": {"width": 3}}
    return _trace([baseline], facts, key, scale, marker)


def _trace(
    points: Sequence[Point], facts: RunFacts, key: str, scale: float, marker: Mapping[str, Any]
) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": [point.values()[key] for point in points],
        "y": [point.validation[facts.config.metric] * scale for point in points],
        "marker": dict(marker),
        "text": [_hover(point, facts) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
    }
    if key != SIZE_RATIO:
        measured = [point.latencies[machine_of(key)] for point in points]
        trace["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [one.latency_ratio_interval[1] - one.latency_ratio for one in measured],
            "arrayminus": [one.latency_ratio - one.latency_ratio_interval[0] for one in measured],
            "thickness": 1.2,
            "width": 3,
            "color": "#8a8f9c",
        }
    return trace


def _hover(point: Point, facts: RunFacts) -> str:
    metric, share = facts.config.metric, facts.config.is_percentage
    score = f"{metric}: {format_metric(point.validation[metric], share)}"
    test = f", test {format_metric(point.test[metric], share)}" if metric in point.test else ""
    latencies = [
        f"latency{f' on {name}' if name else ''}: {format_ms(one.latency_ms)}, {one.latency_ratio:.2f}× "
        f"({format_interval(one.latency_ratio_interval)})"
        for name, one in point.latencies.items()
    ]
    size = f"size: {format_bytes(point.size_bytes)}, {point.size_ratio:.2f}×"
    return "<br>".join(escape(line) for line in (point.name, score + test, *latencies, size))
