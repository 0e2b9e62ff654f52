"""Where the time of a search went, by stage."""

from __future__ import annotations

from html import escape

from autocompress.report.facts import RunFacts
from autocompress.report.sections._base import SECTIONS, Section

LOOKING, CONFIRMING, DEVICE = "looking at single changes", "confirming the front", "scoring on the device"
REST = "all else: starting, waiting for others or the end, trials that were cut off"


@SECTIONS.register
class TimeSpent(Section):
    """Seconds of all workers by stage, and the share of what they had."""

    name, title, order = "time_spent", "Where the time went", 44

    def html(self, facts: RunFacts) -> str:
        spent = spent_by_stage(facts)
        if not spent:
            return ""
        total = max(facts.elapsed_s * facts.config.workers, sum(spent.values()))
        rows = [*sorted(spent.items(), key=lambda item: -item[1]), (REST, total - sum(spent.values()))]
        lines = "".join(
            f'<tr><th>{escape(stage)}</th><td class="number">{seconds:.0f} s</td>'
            f'<td class="number">{seconds / total:.1%}</td></tr>\n'
            for stage, seconds in rows
        )
        head = '<th>stage</th><th class="number">time</th><th class="number">share</th>'
        return (
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody></table></div>\n'
            f'<p class="soft">Workers: {facts.config.workers}, all together, from the start to now.</p>'
        )


def spent_by_stage(facts: RunFacts) -> dict[str, float]:
    """Seconds of all workers together by stage."""
    spent: dict[str, float] = {}
    for record in facts.records:
        for stage, seconds in record.seconds.items():
            spent[stage] = spent.get(stage, 0.0) + seconds
    spent[LOOKING] = sum(entry.seconds for entry in facts.sensitivities)
    spent[CONFIRMING] = sum(facts.confirming_s)
    spent[DEVICE] = sum(facts.device_scoring_s)
    return {stage: seconds for stage, seconds in spent.items() if seconds}
