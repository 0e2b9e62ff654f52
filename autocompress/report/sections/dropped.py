"""Trials that brought no model, grouped by their reason."""

from __future__ import annotations

import re
from html import escape

from autocompress.record import Record
from autocompress.report.facts import RunFacts
from autocompress.report.sections._base import SECTIONS, Section, numbers

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@SECTIONS.register
class Dropped(Section):
    """Failed and screened trials; reasons that differ in their numbers alone count as one."""

    name, title, order = "dropped", "Failed and screened trials", 50

    def html(self, facts: RunFacts) -> str:
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in facts.records:
            if record.status != "complete":
                groups.setdefault((record.status, _NUMBER.sub("#", record.reason)), []).append(record)
        rows = "".join(
            _row(status, tuple(records))
            for (status, _), records in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1])))
        )
        if not rows:
            return ""
        head = '<th>status</th><th class="number">trials</th><th>reason (of the first)</th><th>numbers</th>'
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'


def _row(status: str, records: tuple[Record, ...]) -> str:
    return (
        f'<tr><td>{status}</td><td class="number">{len(records)}</td><td class="why">{escape(records[0].reason)}</td>'
        f'<td class="why soft">{numbers(records)}</td></tr>\n'
    )
