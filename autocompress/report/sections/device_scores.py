"""What the models score by the outputs of the device itself, beside their scores on the host."""

from __future__ import annotations

from html import escape

from autocompress.point import Point
from autocompress.report.facts import RunFacts
from autocompress.report.on_device import difference, format_difference, told
from autocompress.report.sections._base import SECTIONS, Section
from autocompress.report.table import format_metric


@SECTIONS.register
class DeviceScores(Section):
    """A row a model that was scored on the device: score on the host, on the device, and what is between them."""

    name, title, order = "device_scores", "Scores on the device", 23

    def html(self, facts: RunFacts) -> str:
        config, baseline = facts.config, facts.baseline
        if not config.score_on_device or baseline is None:
            return ""
        points = (baseline, *(point for point in facts.front if point.number != baseline.number))
        lines = " ".join(escape(line) for line in told(points, config.metric, config.is_percentage))
        tried = [point for point in points if point.device_score is not None or point.device_reason]
        head = "".join(f'<th class="number">{title}</th>' for title in ("host", "device", "difference"))
        rows = "".join(_row(point, config.metric, config.is_percentage) for point in tried)
        table = f"<table><thead><tr><th>model</th>{head}</tr></thead>\n<tbody>{rows}</tbody></table>" if rows else ""
        return f'<p>{lines}</p>\n<div class="scroll">{table}</div>'


def _row(point: Point, metric: str, is_percentage: bool) -> str:
    if point.device_reason:
        on_device = '<td colspan="2" class="why">no score</td>'
    else:
        score = format_metric(point.device_score, is_percentage)
        between = format_difference(difference(point, metric), is_percentage)
        on_device = f'<td class="number">{score}</td><td class="number">{between}</td>'
    on_host = format_metric(point.validation[metric], is_percentage)
    return f'<tr><td>{escape(point.name)}</td><td class="number">{on_host}</td>{on_device}</tr>\n'
