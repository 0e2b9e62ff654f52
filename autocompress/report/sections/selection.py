"""How lucky the choice by validation data was: what the front is worth on data that the search has not seen."""

from __future__ import annotations

import numpy as np

from autocompress.data import Array
from autocompress.report.facts import RunFacts
from autocompress.report.sections._base import SECTIONS, Section

FEWEST = 3
RESAMPLES = 2000


@SECTIONS.register
class Selection(Section):
    """The mean of what models lose on test data beyond what they lose on validation data."""

    name, title, order = "selection", "Validation against test", 25

    def html(self, facts: RunFacts) -> str:
        metric, baseline = facts.config.the_metric, facts.baseline
        if baseline is None or metric.name not in baseline.test:
            return ""
        tested = [point for point in facts.front if metric.name in point.test and point.number != baseline.number]
        if len(tested) < FEWEST:
            return ""
        name, is_share = metric.name, facts.config.is_percentage
        lost_in_test = [metric.lost(point.test[name], baseline.test[name], is_share=is_share) for point in tested]
        lost = [metric.lost(point.validation[name], baseline.validation[name], is_share=is_share) for point in tested]
        excess = np.array(lost_in_test) - np.array(lost)
        low, high = interval_of_mean(excess)
        unit = "points" if facts.config.is_percentage else "% of the baseline"
        return (
            f"<p>On test data the {len(tested)} models lose <b>{excess.mean():.2f} {unit}</b> more against the "
            f"baseline than on the validation data that chose them (95 % interval {low:.2f} to {high:.2f}).</p>"
        )


def interval_of_mean(values: Array) -> tuple[float, float]:
    """The 95 % interval of a mean, from resampled values."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)
