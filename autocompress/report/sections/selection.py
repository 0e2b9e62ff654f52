"""How lucky the choice by validation data was: what the front is worth on data that the search has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autocompress.data import Array
from autocompress.doubt import drawn_scores
from autocompress.point import Point
from autocompress.report.facts import RunFacts
from autocompress.report.sections._base import SECTIONS, Section

FEWEST = 3
"""Models of which a mean is worth telling."""


@SECTIONS.register
class Selection(Section):
    """The mean of what models lose on test data beyond what they lose on validation data.

    The interval allows for the samples of both splits being few: they are drawn anew, for all models and the baseline
    together, since one lucky sample is lucky for all of them.
    """

    name, title, order = "selection", "Validation against test", 25

    def html(self, facts: RunFacts) -> str:
        metric, baseline = facts.config.the_metric, facts.baseline
        if baseline is None or metric.name not in baseline.test:
            return ""
        tested = [point for point in facts.front if metric.name in point.test and point.number != baseline.number]
        if len(tested) < FEWEST:
            return ""
        excess, interval = optimism(facts, baseline, tested)
        unit = "points" if facts.config.is_percentage else "% of the baseline"
        than = "more" if excess >= 0 else "less"
        between = (
            ""
            if interval is None
            else " (95 % interval of the difference {:.2f} to {:.2f}, for the samples of both)".format(*interval)
        )
        return (
            f"<p>On test data the {len(tested)} models lose <b>{abs(excess):.2f} {unit} {than}</b> against the "
            f"baseline than on the validation data that chose them{between}.</p>"
        )


def optimism(facts: RunFacts, baseline: Point, tested: Sequence[Point]) -> tuple[float, tuple[float, float] | None]:
    """What models lose on test data beyond validation data, in the mean, and its 95 % interval.

    Args:
        facts: Of the run.
        baseline: The original.
        tested: Models with a score on both.

    Returns:
        Points for shares, else percent of the baseline; no interval where scores of parts are missing.
    """
    name, both = facts.config.metric, (baseline, *tested)
    by_number = {record.number: record for record in facts.records}
    seen, unseen = [point.validation[name] for point in both], [point.test[name] for point in both]
    seen_folds = [by_number[point.number].fold_scores for point in both]
    unseen_folds = [facts.test_fold_scores.get(point.number, ()) for point in both]
    excess = float((_mean_lost(facts, np.array([unseen])) - _mean_lost(facts, np.array([seen])))[0])
    if not all(seen_folds) or not all(unseen_folds):
        return excess, None
    drawn = _mean_lost(facts, drawn_scores(unseen, unseen_folds, seed=1)) - _mean_lost(
        facts, drawn_scores(seen, seen_folds)
    )
    low, high = np.percentile(drawn, (2.5, 97.5))
    return excess, (float(low), float(high))


def _mean_lost(facts: RunFacts, scores: Array) -> Array:
    """Mean loss of models (draws,), from scores of the baseline and of them (draws, 1 + models)."""
    metric, is_share = facts.config.the_metric, facts.config.is_percentage
    return np.array(
        [np.mean([metric.lost(score, level, is_share=is_share) for score in own]) for level, *own in scores.tolist()]
    )
