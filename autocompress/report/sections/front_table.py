"""The front as a table with links to the files."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from autocompress.point import Point
from autocompress.report.facts import RunFacts
from autocompress.report.sections._base import SECTIONS, Section
from autocompress.report.table import Column, point_columns, with_misses


@SECTIONS.register
class FrontTable(Section):
    """A row a model, the baseline first; the nearest where no model obeys the constraints."""

    name, title, order = "front_table", "The models", 20

    def html(self, facts: RunFacts) -> str:
        if facts.baseline is None:
            return ""
        config, points = facts.config, facts.near_misses or facts.front
        columns = point_columns((facts.baseline, *points), config.metric, config.is_percentage)
        told = ""
        if facts.near_misses:
            columns = with_misses(columns, facts.baseline, config.constraints)
            told = f"<p>No model obeys {escape(', '.join(map(str, config.constraints)))}. The nearest:</p>\n"
        head = "".join(f"<th{_kind(column)}>{escape(column.title)}</th>" for column in columns)
        rows = [_row(point, columns, facts) for point in points]
        if facts.baseline.number not in {point.number for point in points}:
            rows.insert(0, _row(facts.baseline, columns, facts, style=' class="baseline"'))
        table = f"<table><thead><tr>{head}<th>files</th></tr></thead>\n<tbody>{''.join(rows)}</tbody></table>"
        return f'{told}<div class="scroll">{table}</div>{_notes(facts)}'


def _row(point: Point, columns: Sequence[Column], facts: RunFacts, style: str = "") -> str:
    cells = "".join(f"<td{_kind(column)}>{escape(column.cell(point))}</td>" for column in columns)
    links = " · ".join(
        f'<a href="{escape(facts.link(file))}">{label}</a>'
        for file, label in ((point.file, "ONNX"), (point.plan, "plan"))
    )
    return f"<tr{style}>{cells}<td>{links}</td></tr>\n"


def _notes(facts: RunFacts) -> str:
    """What the search has to say of single models, for example that a choice brought size but no speed."""
    names = {point.number: point.name for point in facts.near_misses or facts.front}
    items = "".join(
        f"<li>{escape(names[record.number])}: {escape(note)}</li>\n"
        for record in facts.complete
        if record.number in names
        for note in record.notes
    )
    return f'\n<details><summary>notes</summary><ul class="soft">{items}</ul></details>' if items else ""


def _kind(column: Column) -> str:
    return ' class="number"' if column.is_number else ""
