"""How sure a front is: scores are those of some samples, and others would have chosen other models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np

from autocompress.data import Array
from autocompress.front import Reach, exact_order, feasible, pareto_front
from autocompress.objective import Constraint, Objective
from autocompress.record import Record

DRAWS = 400
"""Times that scores are drawn anew."""

LEAST_CHANCE = 0.05
"""Share of draws in which a model has to be missed at least, to be on the front for it."""

SLACK = 0.5
"""Share of the standard error of a loss by which a model has to be better, to be missed."""

SAME = 0.0005
"""Relative difference of what is believed of two models that tells neither of them from the other."""

CREDIBLE = 2.0
"""Standard errors by which what is believed of a model may differ from its score."""

ROUNDING = 1e-12
"""Spread of scores that are the same but for rounding."""

NOTHING: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True)
class Likely:
    """A model of a front that allows for doubt.

    Args:
        record: The model.
        confidence: Share of the draws in which it is allowed and no other of the front beats it, in [0, 1]; scores are
            drawn around what is believed of models, where something is.
    """

    record: Record
    confidence: float


def likely_front(
    records: Sequence[Record],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    metric: Objective,
    *,
    believed: Mapping[int, float] = NOTHING,
) -> tuple[Likely, ...]:
    """The front of all that obey the constraints, and what it would miss if scores had come out a little differently.

    The best of a hundred scores is lucky as a rule, and what it beats by its luck is better in truth. So the front by
    what is believed of the models, where something is, joins the front by their scores; beliefs that are next to the
    same tell nothing, and none counts for more than chance can have moved a score. Then scores are drawn anew from
    those of parts of the validation data, by weights that are the same for all models, so that only differences count.
    Models that nothing on the front, nor the baseline, reaches in some share of the draws join it, those that are
    missed most often first, until the front is twice as long as the one by scores; those that are beaten nearly always
    by what is believed leave it again.

    Args:
        records: With the baseline, number 0.
        objectives: What is better.
        constraints: What is allowed; a model that does not obey by its own score never joins.
        metric: The task's, whether it is an objective or not.
        believed: Number of a trial to the metric that is believed of it.

    Returns:
        Best first by the first objective; nothing if there is no baseline.

    References:
        Chernozhukov et al., "Gaussian approximations and multiplier bootstrap for maxima of sums of high-dimensional
        random vectors", 2013, for the draws.
    """
    baseline = next((record for record in records if record.number == 0), None)
    if baseline is None:
        return ()
    allowed = sorted(feasible(records, constraints, baseline.values), key=lambda one: exact_order(one, objectives))
    front = pareto_front(allowed, objectives)
    draws = _Draws(allowed, objectives, constraints, baseline, metric)
    rows = {record.number: row for row, record in enumerate(allowed)}
    numbers = {record.number for record in front}
    files = {record.artifact.sha256 for record in front if record.artifact}  # training may have brought nothing
    others = [
        record
        for record in pareto_front(_by_belief(allowed, metric, believed, baseline), _of_beliefs(objectives, metric))
        if record.number not in {0, *numbers} and not (record.artifact and record.artifact.sha256 in files)
    ]
    begun = [rows[record.number] for record in (*front, *others)]
    chosen = draws.completed(begun, at_hand=rows.get(0), most=2 * len(front))
    joined = {allowed[row].number for row in chosen[len(begun) :]}

    def judged(final: Sequence[Record]) -> list[Likely]:
        by_belief = {record.number: record for record in _by_belief(final, metric, believed, baseline)}
        as_believed = [by_belief.get(record.number, record) for record in final]
        confidences = _Draws(as_believed, objectives, constraints, baseline, metric).confidences()
        return [Likely(record, confidence) for record, confidence in zip(final, confidences, strict=True)]

    likely = judged([allowed[row] for row in chosen])
    kept = [one.record for one in likely if one.record.number not in joined or one.confidence >= LEAST_CHANCE]
    if len(kept) < len(likely):
        likely = judged(kept)
    return tuple(sorted(likely, key=lambda one: exact_order(one.record, objectives)))


def _by_belief(
    records: Sequence[Record], metric: Objective, believed: Mapping[int, float], baseline: Record
) -> list[Record]:
    """The records of which something is believed, with that as their scores, but no farther than chance moves them."""
    some = [record for record in records if record.number in believed]
    scores = np.array([record.values[metric.name] for record in some])
    most = CREDIBLE * _errors(some, baseline)
    credible = np.clip([believed[record.number] for record in some], scores - most, scores + most)
    return [
        replace(record, values={**record.values, metric.name: value})
        for record, value in zip(some, credible.tolist(), strict=True)
    ]


def _errors(records: Sequence[Record], baseline: Record) -> Array:
    """Standard errors of scores and of losses, the larger one (records,); infinite where none is known."""
    others = np.array(baseline.fold_scores)
    errors = np.full(len(records), np.inf)
    known = [row for row, record in enumerate(records) if 1 < len(record.fold_scores) == len(others)]
    if known:
        folds = np.array([records[row].fold_scores for row in known])
        spreads = np.maximum(folds.std(axis=1, ddof=1), (folds - others).std(axis=1, ddof=1))
        spreads = np.maximum(spreads, others.std(ddof=1))
        errors[known] = np.where(spreads > ROUNDING, spreads / math.sqrt(len(others)), np.inf)
    return errors


def _of_beliefs(objectives: Sequence[Objective], metric: Objective) -> list[Objective]:
    return [replace(one, tolerance=SAME) if one.name == metric.name else one for one in objectives]


class _Draws:
    """Scores of records, drawn anew.

    Args:
        records: Complete records.
        objectives, constraints: What is better and what is allowed.
        baseline: To which constraints may refer.
        metric: The task's.
    """

    def __init__(
        self,
        records: Sequence[Record],
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        baseline: Record,
        metric: Objective,
    ) -> None:
        self._objectives, self._metric = objectives, metric
        self._constraints = [constraint for constraint in constraints if constraint.name == metric.name]
        all_of_them = (baseline, *records)
        scores = drawn_scores(
            [record.values[metric.name] for record in all_of_them], [record.fold_scores for record in all_of_them]
        )
        self._baseline_scores, self._scores = scores[:, 0], scores[:, 1:]
        self._fixed = Reach(records, [objective for objective in objectives if objective.name != metric.name])

    @cached_property
    def _costs(self) -> Array:
        """Of the metric, less is better (draws, records); all the same where it is no objective."""
        sign = -1.0 if self._metric.direction == "maximize" else 1.0
        return sign * self._scores * any(objective.name == self._metric.name for objective in self._objectives)

    @cached_property
    def _allowed(self) -> Array:
        """Whether records obey the constraints on the metric in a draw (draws, records)."""
        fits = np.ones(self._scores.shape, np.bool_)
        for constraint in self._constraints:
            bound = constraint.scale * self._baseline_scores + constraint.offset
            within = self._scores - bound[:, None]
            fits &= within <= 0 if constraint.operator == "<=" else within >= 0
        return fits

    @cached_property
    def _costs_below(self) -> Array:
        """The least of the costs in any draw, with what does not matter (records,)."""
        least: Array = self._costs.min(axis=0) + self._slack
        return least

    @cached_property
    def _costs_above(self) -> Array:
        """The most of the costs in any draw, with what does not matter (records,)."""
        most: Array = self._costs.max(axis=0) + self._slack
        return most

    @cached_property
    def _slack(self) -> Array:
        """Differences of the metric that do not matter (records,)."""
        losses = self._scores - self._baseline_scores[:, None]
        deviations: Array = SLACK * losses.std(axis=0)
        return deviations

    def completed(self, rows: Sequence[int], *, at_hand: int | None, most: int) -> list[int]:
        """Rows of a front, and those that it would miss, up to a number; what is at hand anyway is not missed."""
        known = rows if at_hand is None else (*rows, at_hand)
        chosen, others = list(rows), self._doubtful(known)
        missed = self._allowed[:, others]
        for row in known:
            missed, others = self._still_missed(missed, others, row)
        while len(chosen) < most and others.size:
            chances = missed.mean(axis=0)
            best = int(np.argmax(chances))
            if chances[best] < LEAST_CHANCE:
                break
            chosen.append(int(others[best]))
            missed, others = self._still_missed(missed, others, chosen[-1])
        return chosen

    def _doubtful(self, rows: Sequence[int]) -> Array:
        """Rows of the records that none of some is sure to reach: its highest cost is above their lowest (others,).

        Of thousands of records few are left, and only for these all draws have to be looked at.
        """
        left = np.arange(self._allowed.shape[1])
        for row in rows:
            if self._allowed[:, row].all():
                left = left[(self._costs[:, row].max() > self._costs_below[left]) | ~self._fixed.of(row, left)]
        return left

    def _still_missed(self, missed: Array, others: Array, row: int) -> tuple[Array, Array]:
        """What is missed beside one more record: in which draws (draws, others), and the rows of those others.

        What was missed without it is overwritten.
        """
        missed[:, others == row] = False
        near = np.flatnonzero(self._fixed.of(row, others) & (self._costs[:, row].min() <= self._costs_above[others]))
        as_good = self._costs[:, row, None] <= self._costs[:, others[near]] + self._slack[others[near]]
        missed[:, near] &= ~(self._allowed[:, row, None] & as_good)
        some = missed.any(axis=0)
        return (missed, others) if some.all() else (missed[:, some], others[some])

    def confidences(self) -> list[float]:
        """Share of the draws in which each record is allowed and none of the others beats it."""
        fixed, scores, allowed = self._fixed.costs, self._costs, self._allowed
        found = []
        for place in range(len(fixed)):
            own = scores[:, place, None]
            no_worse = (fixed <= fixed[place]).all(axis=1) & (scores <= own + SAME * np.abs(own))
            better = (fixed < fixed[place]).any(axis=1) | (scores < own - SAME * np.abs(own))
            found.append(float((allowed[:, place] & ~(allowed & no_worse & better).any(axis=1)).mean()))
        return found


def drawn_scores(scores: Sequence[float], folds: Sequence[tuple[float, ...]], *, seed: int = 0) -> Array:
    """Scores of models as other samples of the same kind might give them (draws, models).

    Args:
        scores: Of each model.
        folds: Scores on parts of the same samples; a score of which no parts are known stays as it is.
        seed: Of the draws.
    """
    parts = max(map(len, folds), default=0)
    if parts < 2:
        return np.tile(np.array(scores), (DRAWS, 1))
    known = np.array([own if len(own) == parts else (0.0,) * parts for own in folds])
    weights = np.random.default_rng(seed).standard_normal((DRAWS, parts)) / np.sqrt(parts * (parts - 1))
    drawn: Array = np.array(scores) + weights @ (known - known.mean(axis=1, keepdims=True)).T
    return drawn
