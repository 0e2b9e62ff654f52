from __future__ import annotations

from autocompress.objective import Constraint, make_objectives
from autocompress.screen import Screen

BASELINE = {"accuracy": 0.9, "latency_ms": 1.0, "size_bytes": 1000.0}


def screen(front: tuple[dict[str, float], ...] = (), constraints: tuple[str, ...] = ()) -> Screen:
    parsed = tuple(Constraint.parse(text) for text in constraints)
    return Screen(make_objectives((), "accuracy", "maximize"), parsed, "accuracy", True, BASELINE, front)


def test_a_model_that_nothing_beats_passes() -> None:
    assert screen().verdict({"latency_ms": 0.5, "size_bytes": 500.0}) == ""


def test_a_broken_constraint_on_speed_needs_no_training() -> None:
    verdict = screen(constraints=("latency_ms<=0.4x",)).verdict({"latency_ms": 0.5, "size_bytes": 500.0})
    assert verdict == "latency_ms is 0.5, beyond the constraint of 0.4"


def test_a_latency_measured_in_a_hurry_may_be_a_little_beyond_its_bound() -> None:
    limited = screen(constraints=("latency_ms<=0.4x", "size_bytes<=0.4x"))
    assert limited.verdict({"latency_ms": 0.41, "size_bytes": 400.0}) == ""
    assert "latency_ms" in limited.verdict({"latency_ms": 0.42, "size_bytes": 400.0})
    assert "size_bytes" in limited.verdict({"latency_ms": 0.4, "size_bytes": 401.0}), "known exactly"


def test_a_constraint_on_the_metric_waits_for_the_score() -> None:
    assert screen(constraints=("accuracy>=0.99",)).verdict({"latency_ms": 0.5, "size_bytes": 500.0}) == ""


def test_a_model_dominated_even_with_the_full_score_is_dropped() -> None:
    better = {"accuracy": 0.9, "latency_ms": 0.4, "size_bytes": 400.0}
    assert "dominated" in screen((better,)).verdict({"latency_ms": 0.5, "size_bytes": 500.0})


def test_a_faster_front_with_a_lower_score_leaves_hope() -> None:
    faster = {"accuracy": 0.8, "latency_ms": 0.4, "size_bytes": 400.0}
    assert screen((faster,)).verdict({"latency_ms": 0.5, "size_bytes": 500.0}) == ""


def test_models_better_than_the_baseline_raise_the_hope() -> None:
    lucky = {"accuracy": 0.92, "latency_ms": 0.4, "size_bytes": 400.0}
    assert screen((lucky,)).verdict({"latency_ms": 0.5, "size_bytes": 500.0}) == "", "the next may be luckier still"
