"""Laws of a front that allows for doubt of scores."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.artifact import Artifact
from autocompress.doubt import drawn_scores, likely_front
from autocompress.front import feasible, pareto_front
from autocompress.objective import Constraint, Objective, make_objectives
from autocompress.plan import Plan
from autocompress.record import Record, Trial

OBJECTIVES = make_objectives((), "accuracy", "maximize")
METRIC = Objective("accuracy", "maximize")
FOLDS = 16
STEADY, WILD = (0.0,) * FOLDS, tuple(0.08 * (-1.0) ** k for k in range(FOLDS))
DROP = (Constraint.parse("accuracy>=baseline-1%"),)


def record(number: int, accuracy: float, cost: float, swings: tuple[float, ...] = STEADY) -> Record:
    """A complete record whose folds swing about its score; latency and size fall together."""
    values = {"accuracy": accuracy, "latency_ms": cost, "size_bytes": 1e5 * cost}
    return Record(Trial(number, Plan()), "complete", values=values, fold_scores=tuple(accuracy + s for s in swings))


ROWS = st.tuples(
    st.integers(80, 100).map(lambda percent: percent / 100), st.floats(0.1, 1.0), st.sampled_from([STEADY, WILD])
)
RECORDS = st.lists(ROWS, min_size=1, max_size=12).map(
    lambda rows: [record(number, *row) for number, row in enumerate(rows)]
)


def numbers(records: list[Record], constraints: tuple[Constraint, ...] = ()) -> dict[int, float]:
    """Numbers of the likely front, and how sure each is."""
    front = likely_front(records, OBJECTIVES, constraints, METRIC)
    return {one.record.number: one.confidence for one in front}


@given(RECORDS, st.sampled_from([(), DROP]))
def test_it_holds_the_front_and_at_most_as_many_more(records: list[Record], limits: tuple[Constraint, ...]) -> None:
    allowed = feasible(records, limits, records[0].values)
    front = {one.number for one in pareto_front(allowed, OBJECTIVES)}
    found = numbers(records, limits)
    assert front <= found.keys() <= {one.number for one in allowed}
    assert len(found) <= 2 * len(front)
    assert all(0 <= confidence <= 1 for confidence in found.values())


@given(RECORDS)
def test_it_is_the_front_where_nothing_is_known_of_doubt(records: list[Record]) -> None:
    plain = [replace(one, fold_scores=()) for one in records]
    found = likely_front(plain, OBJECTIVES, (), METRIC)
    assert tuple(one.record for one in found) == pareto_front(plain, OBJECTIVES)


@given(RECORDS, st.randoms(use_true_random=False))
def test_it_does_not_depend_on_the_order_of_records(records: list[Record], random: object) -> None:
    shuffled = list(records)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert numbers(shuffled) == pytest.approx(numbers(records))


def test_a_sure_score_stays_beside_a_better_one_that_may_be_luck() -> None:
    records = [record(0, 0.97, 1.0), record(1, 0.965, 0.5), record(2, 0.975, 0.4, WILD)]
    assert {one.number for one in pareto_front(records, OBJECTIVES)} == {2}
    found = numbers(records)
    assert found.keys() == {1, 2}
    assert 0.05 < found[1] < 0.5
    assert found[2] == 1.0  # the cheapest is never beaten


def test_what_is_believed_to_be_better_joins_what_scored_better() -> None:
    records = [record(0, 0.97, 1.0), record(1, 0.965, 0.5), record(2, 0.975, 0.4), record(3, 0.96, 0.6)]
    found = likely_front(records, OBJECTIVES, (), METRIC, believed={1: 0.968, 2: 0.966, 3: 0.961})
    assert {one.record.number for one in found} == {1, 2}
    assert {one.record.values["accuracy"] for one in found} == {0.965, 0.975}, "scores stay what they are"


def test_a_model_that_joins_by_its_score_leaves_if_it_is_beaten_by_what_is_believed() -> None:
    records = [record(0, 0.97, 1.0), record(1, 0.965, 0.5), record(2, 0.975, 0.4, WILD)]
    assert 1 in numbers(records)
    front = likely_front(records, OBJECTIVES, (), METRIC, believed={1: 0.94, 2: 1.0})
    assert [(one.record.number, one.confidence) for one in front] == [(2, 1.0)]


def test_beliefs_that_are_next_to_the_same_keep_no_model_that_is_beaten() -> None:
    records = [record(0, 0.97, 1.0), record(1, 0.97, 0.8), record(2, 0.97, 0.5), record(3, 0.96, 0.4)]
    found = likely_front(records, OBJECTIVES, (), METRIC, believed={0: 0.9703, 1: 0.9701, 2: 0.97, 3: 0.965})
    assert {one.record.number: one.confidence for one in found} == {2: 1.0, 3: 1.0}


def test_how_sure_a_model_is_goes_by_what_is_believed() -> None:
    records = [record(0, 0.97, 1.0), record(1, 0.965, 0.5), record(2, 0.975, 0.4), record(3, 0.975, 0.6)]
    believed = {1: 0.968, 2: 0.966, 3: 0.967}
    found = {
        one.record.number: one.confidence for one in likely_front(records, OBJECTIVES, (), METRIC, believed=believed)
    }
    assert found == {1: 1.0, 2: 1.0}, "the second scored lower than both others and is believed to be better"
    by_scores = likely_front([*records, record(4, 0.98, 0.9)], OBJECTIVES, (), METRIC, believed={4: 0.96, 2: 0.966})
    assert {one.record.number: one.confidence for one in by_scores} == {2: 1.0, 4: 0.0}, "its score was luck"


def test_nothing_is_believed_that_chance_does_not_explain() -> None:
    records = [record(0, 0.97, 1.0, WILD), record(1, 0.66, 0.5, WILD), record(2, 0.86, 0.4, WILD)]
    for believed in ({1: 0.95, 2: 0.93}, {1: 1.0, 2: 0.5}):
        found = likely_front(records, OBJECTIVES, (), METRIC, believed=believed)
        assert {one.record.number for one in found} == {0, 2}, "a fifth more of the samples right is no luck"
    near = likely_front(
        [records[0], record(1, 0.85, 0.5, WILD), records[2]], OBJECTIVES, (), METRIC, believed={1: 0.88, 2: 0.85}
    )
    assert {one.record.number for one in near} == {0, 1, 2}


def test_the_original_is_on_the_front_by_its_score_alone() -> None:
    records = [record(0, 0.97, 1.0), record(1, 0.97, 0.5)]
    found = likely_front(records, OBJECTIVES, (), METRIC, believed={0: 0.972, 1: 0.969})
    assert [one.record.number for one in found] == [1], "who wants it has it"


def test_one_file_is_on_the_front_once() -> None:
    twins = [replace(record(number, 0.98, 0.5), artifact=Artifact("a.onnx", "0" * 64, 9)) for number in (1, 2)]
    found = likely_front([record(0, 0.97, 1.0), *twins], OBJECTIVES, (), METRIC, believed={1: 0.97, 2: 0.98})
    assert [one.record.number for one in found] == [1]


def test_what_two_models_share_is_no_doubt_between_them() -> None:
    records = [record(0, 0.97, 1.0, WILD), record(1, 0.965, 0.5, WILD), record(2, 0.975, 0.4, WILD)]
    assert numbers(records) == {2: 1.0}


def test_a_model_that_obeys_by_luck_alone_is_backed_by_one_that_surely_does() -> None:
    records = [record(0, 0.97, 1.0), record(1, 0.962, 0.5), record(2, 0.964, 0.4, WILD), record(3, 0.955, 0.3)]
    found = numbers(records, DROP)
    assert found.keys() == {0, 1, 2}  # the baseline has the best score of all
    assert found[2] < 1.0  # beyond the bound in some draws


def test_without_a_baseline_there_is_no_front() -> None:
    assert likely_front([record(1, 0.9, 0.5)], OBJECTIVES, (), METRIC) == ()


def test_draws_spread_like_the_error_of_a_mean() -> None:
    swings = np.random.default_rng(1).normal(0, 0.05, FOLDS)
    drawn = drawn_scores([0.9], [tuple(0.9 + swings)])[:, 0]
    assert drawn.mean() == pytest.approx(0.9, abs=0.002)
    assert drawn.std() == pytest.approx(swings.std(ddof=1) / math.sqrt(FOLDS), rel=0.15)
