"""What the models of a guided search expected of trials, against what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from autocompress.data import Array
from autocompress.objective import LATENCY, MEMORY, SIZE, machine_of, measured_objectives, quantity
from autocompress.record import Record
from autocompress.report.facts import RunFacts
from autocompress.report.sections._base import SECTIONS, Section

FEWEST = 3

_TITLES = {LATENCY: "latency", SIZE: "size", MEMORY: "peak memory"}


@SECTIONS.register
class Foresight(Section):
    """Rank correlation and error of every prediction, each made before its trial was run."""

    name, title, order = "foresight", "What was foreseen", 42

    def html(self, facts: RunFacts) -> str:
        baseline = next((record for record in facts.complete if record.number == 0), None)
        told = [record for record in facts.complete if "expected_loss" in record.trial.proposal.attributes]
        if baseline is None or len(told) < FEWEST:
            return ""
        points = "points" if facts.config.is_percentage else "%"
        rows = [
            _row(f"loss of {facts.config.metric}", *_losses(told, baseline, facts), f"{{:.2f}} {points}", share=False)
        ]
        machines = [profile.name for profile in facts.config.profiles]
        for name in (objective.name for objective in measured_objectives(machines)):
            key = f"expected_{name}_ratio"
            if not any(key in record.trial.proposal.attributes for record in told):
                continue
            title = " on ".join(filter(None, (_TITLES[quantity(name)], machine_of(name))))
            expected = _numbers([record.trial.proposal.attributes.get(key) for record in told])
            found = _numbers([record.values[name] / max(baseline.values[name], 1e-12) for record in told])
            rows.append(_row(title, expected, found, "{:.1%}", share=True))
        head = "".join(
            f'<th class="number">{title}</th>'
            for title in ("trials", "rank correlation", "median error", "90 % within")
        )
        return f"""<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>
<p class="soft">Expected before a trial, from the table and the trials before it; found when it had ended.</p>"""


def _losses(told: Sequence[Record], baseline: Record, facts: RunFacts) -> tuple[Array, Array]:
    metric = facts.config.the_metric
    level, is_share = baseline.values[metric.name], facts.config.is_percentage
    found = [metric.lost(record.values[metric.name], level, is_share=is_share) for record in told]
    return _numbers([record.trial.proposal.attributes["expected_loss"] for record in told]), _numbers(found)


def _numbers(values: Sequence[object]) -> Array:
    return np.array([float(str(value)) if value is not None else np.nan for value in values])


def _row(title: str, expected: Array, found: Array, form: str, *, share: bool) -> str:
    errors = np.abs(expected - found) / (np.maximum(np.abs(found), 1e-12) if share else 1.0)
    cells = (
        str(len(found)),
        f"{rank_correlation(expected, found):.2f}",
        form.format(float(np.median(errors))),
        form.format(float(np.quantile(errors, 0.9))),
    )
    numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f"<tr><th>{escape(title)}</th>{numbers}</tr>\n"


def rank_correlation(one: Array, other: Array) -> float:
    """Spearman's: the correlation of ranks, those of ties being their mean; 0 where one side is constant.

    >>> round(rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 15.0])), 3)
    0.5
    """
    ranks = [np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values]) for values in (one, other)]
    if min(rank.std() for rank in ranks) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
