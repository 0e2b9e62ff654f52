"""Laws of the front and of its hypervolume."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autocompress.front import dominates, feasible, growing_hypervolume, hypervolume, pareto_front
from autocompress.measurement import Measurement
from autocompress.objective import Constraint, Objective, make_objectives
from autocompress.plan import Plan
from autocompress.record import Record, Trial

OBJECTIVES = make_objectives((), "accuracy", "maximize")
EXACT = tuple(replace(objective, tolerance=0.0) for objective in OBJECTIVES)
WIDE = tuple(replace(objective, tolerance=4 * objective.tolerance) for objective in OBJECTIVES)
SIZELESS = make_objectives(("accuracy:10", "latency_ms:1"), "accuracy", "maximize")
VALUES = st.fixed_dictionaries(
    {
        "accuracy": st.integers(90, 100).map(lambda percent: percent / 100),
        "latency_ms": st.floats(0.1, 0.2),
        "size_bytes": st.integers(1000, 1020).map(float),
    }
)
POINTS = st.lists(st.tuples(*[st.floats(0, 1.2)] * 3), max_size=8)
REFERENCE = (1.0, 1.0, 1.0)


def record(number: int, values: dict[str, float]) -> Record:
    """A complete record."""
    return Record(Trial(number, Plan()), "complete", values=values)


RECORDS = st.lists(VALUES, max_size=12).map(lambda rows: [record(number, row) for number, row in enumerate(rows)])


@given(RECORDS, st.sampled_from([OBJECTIVES, EXACT, SIZELESS]))
def test_nothing_on_the_front_is_dominated(records: list[Record], objectives: tuple[Objective, ...]) -> None:
    front = pareto_front(records, objectives)
    for one, other in itertools.product(front, front):
        assert not dominates(other.values, one.values, objectives)
    if objectives == EXACT:
        for one, other in itertools.product(front, records):
            assert not dominates(other.values, one.values, EXACT)


@given(RECORDS, st.sampled_from([OBJECTIVES, EXACT, SIZELESS]))
def test_what_is_left_out_is_matched_by_what_stays(records: list[Record], objectives: tuple[Objective, ...]) -> None:
    front = pareto_front(records, objectives)
    for left_out in (one for one in records if one not in front):
        assert any(all(o.reaches(kept.values, left_out.values) for o in WIDE) for kept in front)


def test_a_difference_that_measuring_leaves_open_is_none() -> None:
    """Of two latencies 4 % apart the lower one counts only if the intervals are narrow."""
    narrow, wide = (measurement(0.5, half) for half in (0.002, 0.02))
    fast = record(0, {"accuracy": 0.98, "latency_ms": 0.48, "size_bytes": 9.0})
    good = record(1, {"accuracy": 0.99, "latency_ms": 0.50, "size_bytes": 9.0})
    for measured, numbers in ((narrow, [1, 0]), (wide, [1])):
        pair = [replace(one, measurements={"test": measured}) for one in (fast, good)]
        assert [kept.number for kept in pareto_front(pair, OBJECTIVES)] == numbers


def measurement(ratio: float, half: float) -> Measurement:
    """A measurement with an interval of that half width."""
    return Measurement(ratio, ratio, (ratio - half, ratio + half), ratio, ratio, 1.0, 0, 0, 1, "test")


@given(RECORDS, st.randoms(use_true_random=False), st.sampled_from([OBJECTIVES, SIZELESS]))
def test_the_front_does_not_depend_on_the_order_of_records(
    records: list[Record], random: object, objectives: tuple[Objective, ...]
) -> None:
    shuffled = list(records)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert pareto_front(shuffled, objectives) == pareto_front(records, objectives)


@given(RECORDS, st.sampled_from([OBJECTIVES, SIZELESS]))
def test_the_front_of_a_front_is_itself(records: list[Record], objectives: tuple[Objective, ...]) -> None:
    front = pareto_front(records, objectives)
    assert pareto_front(front, objectives) == front


def test_bytes_that_cost_nothing_are_saved_where_size_is_no_objective() -> None:
    large = record(0, {"accuracy": 0.99, "latency_ms": 1.0, "size_bytes": 5000.0})
    small = record(1, {"accuracy": 0.99, "latency_ms": 1.01, "size_bytes": 1000.0})
    worse = record(2, {"accuracy": 0.98, "latency_ms": 1.0, "size_bytes": 10.0})
    slow = record(3, {"accuracy": 0.99, "latency_ms": 1.1, "size_bytes": 10.0})
    assert pareto_front([large, small, worse, slow], SIZELESS) == (small,)


@given(VALUES, VALUES, VALUES)
def test_domination_has_a_direction(a: dict[str, float], b: dict[str, float], c: dict[str, float]) -> None:
    assert not dominates(a, a, OBJECTIVES)
    assert not (dominates(a, b, OBJECTIVES) and dominates(b, a, OBJECTIVES))
    if dominates(a, b, EXACT) and dominates(b, c, EXACT):
        assert dominates(a, c, EXACT)


def test_models_within_the_noise_tie_and_one_of_them_stays() -> None:
    twins = [record(n, {"accuracy": 0.99, "latency_ms": 1.0 + n / 1000, "size_bytes": 5000.0}) for n in range(3)]
    assert [kept.number for kept in pareto_front(twins, OBJECTIVES)] == [0]


def test_the_front_begins_with_the_best_by_the_first_objective() -> None:
    small = record(0, {"accuracy": 0.9, "latency_ms": 0.1, "size_bytes": 10.0})
    good = record(1, {"accuracy": 0.99, "latency_ms": 0.5, "size_bytes": 90.0})
    assert pareto_front([small, good], OBJECTIVES) == (good, small)


def test_failed_and_screened_trials_are_never_on_the_front() -> None:
    values = {"accuracy": 1.0, "latency_ms": 0.1, "size_bytes": 1.0}
    others = [Record(Trial(0, Plan()), "failed", "loss", values), Record(Trial(1, Plan()), "screened", "slow", values)]
    assert pareto_front(others, OBJECTIVES) == ()
    assert pareto_front([], OBJECTIVES) == ()


def test_only_complete_records_within_the_constraints_are_feasible() -> None:
    fast, slow = record(0, {"latency_ms": 1.0}), record(1, {"latency_ms": 3.0})
    failed = Record(Trial(2, Plan()), "failed", "loss")
    assert feasible([fast, slow, failed], [Constraint.parse("latency_ms<=2")], {"latency_ms": 4.0}) == (fast,)
    assert feasible([fast, slow, failed], [Constraint.parse("latency_ms<=0.5x")], {"latency_ms": 4.0}) == (fast,)


@given(POINTS, st.tuples(*[st.floats(0, 1.2)] * 3))
def test_another_point_never_makes_the_hypervolume_smaller(
    points: list[tuple[float, ...]], another: tuple[float, ...]
) -> None:
    assert hypervolume([*points, another], REFERENCE) >= hypervolume(points, REFERENCE) - 1e-12


@given(POINTS, st.floats(0, 0.5))
def test_a_dominated_point_adds_no_hypervolume(points: list[tuple[float, ...]], worse: float) -> None:
    assume(points)
    dominated = tuple(value + worse for value in points[0])
    assert hypervolume([*points, dominated], REFERENCE) == pytest.approx(hypervolume(points, REFERENCE))


@given(POINTS, st.randoms(use_true_random=False))
def test_hypervolume_does_not_depend_on_order(points: list[tuple[float, ...]], random: object) -> None:
    shuffled = list(points)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert hypervolume(shuffled, REFERENCE) == pytest.approx(hypervolume(points, REFERENCE))


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_the_hypervolume_of_one_point_is_its_box(point: tuple[float, float, float]) -> None:
    assert hypervolume([point], REFERENCE) == pytest.approx((1 - point[0]) * (1 - point[1]) * (1 - point[2]))


@pytest.mark.parametrize("axes", [1, 2, 3, 4, 5, 6])
def test_hypervolume_is_the_share_of_what_is_dominated(axes: int) -> None:
    rng = np.random.default_rng(axes)
    points, samples = rng.random((25, axes)), rng.random((100_000, axes))
    dominated = np.zeros(len(samples), bool)
    for point in points:
        dominated |= (samples >= point).all(axis=1)
    assert hypervolume(points.tolist(), (1.0,) * axes) == pytest.approx(dominated.mean(), abs=0.006)


@given(POINTS)
def test_a_growing_hypervolume_is_that_of_all_points_so_far(points: list[tuple[float, ...]]) -> None:
    grown = growing_hypervolume(points, REFERENCE)
    assert grown == pytest.approx([hypervolume(points[: count + 1], REFERENCE) for count in range(len(points))])


def test_hypervolume_counts_an_overlap_once() -> None:
    assert hypervolume([(0.25, 0.75), (0.75, 0.25)], (1.0, 1.0)) == pytest.approx(2 * 0.75 * 0.25 - 0.25 * 0.25)
    assert hypervolume([], (1.0, 1.0)) == 0.0
    assert hypervolume([(1.0, 0.0)], (1.0, 1.0)) == 0.0
