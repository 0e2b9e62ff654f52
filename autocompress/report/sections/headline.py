"""What was searched, where, how long, and the best in four numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape

from autocompress.duration import format_duration
from autocompress.objective import ROUNDING
from autocompress.point import OnMachine, Point
from autocompress.report.facts import RunFacts
from autocompress.report.sections._base import SECTIONS, Section
from autocompress.report.table import format_bytes, format_metric, format_ms


@SECTIONS.register
class Headline(Section):
    """Title, machine, budget and trials, and the most telling points."""

    name, order = "headline", 0

    def html(self, facts: RunFacts) -> str:
        config = facts.config
        allowed = f" of {format_duration(config.budget_s)}" if config.budget_s else ""
        trials = ", ".join(f"{facts.count(status)} {status}" for status in ("complete", "screened", "failed"))
        return (
            f'<span class="status">{escape(facts.status)}</span>\n<h1>{escape(config.task)}</h1>\n'
            f'<p class="soft">{escape(_machines(facts))} · {format_duration(facts.elapsed_s)}{allowed} · '
            f"trials: {trials} · models on the front: {len(facts.front)}</p>\n{_cards(facts)}"
        )


def _machines(facts: RunFacts) -> str:
    """Each machine with its processor, as its profile has it or as the baseline was measured."""
    measured = next((record.measurements for record in facts.records if record.number == 0), {})
    known = {name: one.machine for name, one in measured.items()}
    each = [(profile.name, profile.cpu or known.get(profile.name, "")) for profile in facts.config.profiles]
    return ", ".join(f"{name} ({processor})" if processor else name for name, processor in each)


def _cards(facts: RunFacts) -> str:
    baseline, metric, share = facts.baseline, facts.config.metric, facts.config.is_percentage
    if baseline is None:
        return "<p>The baseline is not measured yet, so there is nothing to compare.</p>"
    kept = f"within 1 point of {metric}" if share else "on the front"
    near = [point for point in facts.front if not share or _points_lost(facts, point, baseline) <= 1 + ROUNDING]
    latencies = ", ".join(map(_latency, baseline.latencies.items()))
    cards = [
        _card(
            format_metric(baseline.validation[metric], share),
            f"the baseline: {latencies}, {format_bytes(baseline.size_bytes)}",
        )
    ]

    def best(what: str, value: Callable[[Point], float]) -> None:
        if near:
            point = min(near, key=value)
            score = format_metric(point.validation[metric], share)
            cards.append(_card(f"{value(point):.2f}×", f"{what} {kept}: {point.name}, {score}"))

    for name in baseline.latencies:
        best(f"lowest latency on {name}" if name else "lowest latency", partial(_latency_on, name))
    best("smallest size", lambda point: point.size_ratio)
    return f'<div class="cards">{"".join(cards)}</div>'


def _points_lost(facts: RunFacts, point: Point, baseline: Point) -> float:
    """By how many points the share that the metric is lies below the baseline's on validation data."""
    metric = facts.config.the_metric
    return metric.lost(point.validation[metric.name], baseline.validation[metric.name], is_share=True)


def _latency(item: tuple[str, Point | OnMachine]) -> str:
    name, one = item
    return format_ms(one.latency_ms) + (f" on {name}" if name else "")


def _latency_on(machine: str, point: Point) -> float:
    return point.latencies[machine].latency_ratio


def _card(number: str, text: str) -> str:
    return f'<div class="card"><b>{escape(number)}</b><span>{escape(text)}</span></div>'
