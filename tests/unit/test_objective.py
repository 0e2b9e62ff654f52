"""Objectives and constraints: direction, ties, and the texts that users write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InvalidInput, UnknownName
from autocompress.objective import (
    Constraint,
    Direction,
    Objective,
    check_shares,
    make_objectives,
    parse_constraints,
    weighted_change,
)
from autocompress.serialization import from_json, to_json

KNOWN = ("accuracy", "latency_ms", "size_bytes")
POSITIVE = st.floats(1e-3, 1e9)
NOT_NEGATIVE = st.one_of(st.just(0.0), POSITIVE)


def test_the_default_objectives_are_metric_latency_and_size() -> None:
    objectives = make_objectives((), "accuracy", "maximize")
    assert [(objective.name, objective.direction) for objective in objectives] == [
        ("accuracy", "maximize"),
        ("latency_ms", "minimize"),
        ("size_bytes", "minimize"),
    ]


def test_objectives_keep_the_order_they_are_named_in() -> None:
    chosen = make_objectives(("peak_memory_bytes", "mse"), "mse", "minimize")
    assert [objective.name for objective in chosen] == ["peak_memory_bytes", "mse"]


def test_an_unknown_objective_offers_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown objective 'latency'; did you mean 'latency_ms'\?"):
        make_objectives(("latency",), "accuracy", "maximize")


def test_an_objective_given_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="objective 'accuracy' is given 2 times"):
        make_objectives(("accuracy", "accuracy"), "accuracy", "maximize")


def test_a_cost_is_less_for_the_better_value() -> None:
    assert Objective("accuracy", "maximize").cost({"accuracy": 0.9}) == -0.9
    assert Objective("latency_ms", "minimize").cost({"latency_ms": 2.0}) == 2.0


@given(POSITIVE, st.floats(0.001, 0.2))
def test_values_beyond_the_tolerance_never_tie(value: float, tolerance: float) -> None:
    objective = Objective("latency_ms", "minimize", tolerance=tolerance)
    better, worse = {"latency_ms": value}, {"latency_ms": value * (1 + 1.01 * tolerance)}
    assert objective.reaches(better, worse)
    assert not objective.reaches(worse, better)


@given(NOT_NEGATIVE)
def test_a_value_reaches_itself(value: float) -> None:
    assert Objective("latency_ms", "minimize").reaches({"latency_ms": value}, {"latency_ms": value})


@given(st.builds(Objective, st.text(), st.sampled_from(["maximize", "minimize"]), st.text(), st.floats(0, 1)))
def test_an_objective_survives_json(objective: Objective) -> None:
    assert from_json(Objective, to_json(objective)) == objective


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("latency_ms<=5", 5.0),
        ("latency_ms <= 5e-1", 0.5),
        ("latency_ms<=.5", 0.5),
        ("latency_ms<=0.5x", 1.0),
        ("latency_ms<=baseline*0.5", 1.0),
        ("latency_ms<=baseline", 2.0),
        ("latency_ms<=baseline+1", 3.0),
        ("accuracy>=baseline - 1%", 1.99),
        ("accuracy>=97%", 0.97),
        ("size_bytes<=60KiB", 61440.0),
        ("size_bytes <= 1.5 MB", 1_500_000.0),
        ("peak_memory_bytes<=2MiB", 2_097_152.0),
    ],
)
def test_constraints_are_read_in_every_documented_form(text: str, bound: float) -> None:
    assert Constraint.parse(text).bound({"latency_ms": 2.0, "accuracy": 2.0}) == pytest.approx(bound)


@given(
    st.sampled_from(["<=", ">="]), st.sampled_from(["{}", "{}x", "baseline+{}", "baseline-{}"]), st.integers(1, 9999)
)
def test_the_text_of_a_constraint_reads_as_itself(operator: str, form: str, number: int) -> None:
    constraint = Constraint.parse(f"size_bytes{operator}{form.format(number / 100)}")
    assert Constraint.parse(str(constraint)) == constraint


def test_the_text_of_a_constraint_keeps_every_byte() -> None:
    assert str(Constraint.parse("size_bytes<=1234567")) == "size_bytes<=1234567"


@given(st.sampled_from(["<=", ">="]), st.floats(-10, 10), st.floats(-1e6, 1e6))
def test_a_constraint_survives_json(operator: str, scale: float, offset: float) -> None:
    constraint = from_json(Constraint, to_json(Constraint("x", operator, scale, offset)))  # type: ignore[arg-type]
    assert constraint == Constraint("x", operator, scale, offset)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latency_ms",
        "latency_ms<5",
        "latency_ms=5",
        "latency_ms<=",
        "5<=latency_ms",
        "<=5",
        "a<=baseline5",
        "a<=baseline*",
        "a<=baseline-",
        "a<=baseline-1x",
    ],
)
def test_a_malformed_constraint_shows_what_is_expected(text: str) -> None:
    with pytest.raises(InvalidInput, match="expected NAME<=VALUE or NAME>=VALUE"):
        Constraint.parse(text)


def test_units_of_bytes_are_for_sizes_alone() -> None:
    with pytest.raises(InvalidInput, match="a unit of bytes is for size_bytes"):
        Constraint.parse("latency_ms<=5MB")


@pytest.mark.parametrize(
    ("text", "hint"), [("accuracy>=97", "; did you mean accuracy>=97%"), ("accuracy>=-1", "$"), ("accuracy<=9700", "$")]
)
def test_a_share_beyond_one_is_refused(text: str, hint: str) -> None:
    with pytest.raises(InvalidInput, match=rf"accuracy is a share in \[0, 1\]{hint}"):
        check_shares([Constraint.parse(text)], ("accuracy",))
    check_shares([Constraint.parse(text)], ("f1",))
    check_shares([Constraint.parse("accuracy>=baseline-1%"), Constraint.parse("accuracy>=97%")], ("accuracy",))


def test_distances_of_scores_and_costs_compare() -> None:
    """A tenth of the score is farther off than a latency of twice the bound, and nearer than one of four times."""
    latency, score = Constraint.parse("latency_ms<=2"), Constraint.parse("accuracy>=90%")
    twice, four_times = (latency.distance({"latency_ms": value}, {}) for value in (4.0, 8.0))
    assert four_times == pytest.approx(2 * twice)
    assert twice < score.distance({"accuracy": 0.81}, {}) < four_times
    assert latency.distance({"latency_ms": 2.0}, {}) <= 0
    assert score.distance({"accuracy": 0.95}, {}) < 0


def test_a_violation_is_relative_to_the_bound() -> None:
    constraint = Constraint.parse("latency_ms<=2")
    assert constraint.violation({"latency_ms": 3.0}, {}) == pytest.approx(0.5)
    assert constraint.violation({"latency_ms": 1.0}, {}) == pytest.approx(-0.5)
    at_least = Constraint.parse("accuracy>=baseline-1%")
    assert (
        at_least.violation({"accuracy": 0.98}, {"accuracy": 0.97})
        < 0
        < at_least.violation({"accuracy": 0.95}, {"accuracy": 0.97})
    )


@given(st.integers(1, 50), st.integers(0, 10_000), st.sampled_from(("accuracy>=baseline-1%", "error<=baseline+0.01")))
def test_a_model_that_loses_just_what_it_may_obeys(hundreds: int, right: int, text: str) -> None:
    samples, constraint = 100 * hundreds, Constraint.parse(text)
    right %= samples - hundreds + 1
    scores = [right / samples, (right + hundreds) / samples]
    better, worse = sorted(scores, reverse=constraint.operator == ">=")
    assert constraint.violation({constraint.name: worse}, {constraint.name: better}) <= 0
    further = worse + (0.5 / samples if constraint.operator == "<=" else -0.5 / samples)
    assert constraint.violation({constraint.name: further}, {constraint.name: better}) > 0


def test_a_constraint_on_an_unknown_value_offers_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown value in a constraint 'acuracy'; did you mean 'accuracy'\?"):
        parse_constraints(("acuracy>=0.9",), KNOWN)


@pytest.mark.parametrize("texts", [("latency_ms>=5", "latency_ms<=2"), ("size_bytes<=0.2x", "size_bytes>=0.5x")])
def test_contradictory_constraints_are_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match="contradict each other"):
        parse_constraints(texts, KNOWN)


def test_a_range_of_two_constraints_is_fine() -> None:
    assert len(parse_constraints(("latency_ms>=1", "latency_ms<=2", "accuracy>=90%"), KNOWN)) == 3


def test_objectives_may_have_weights() -> None:
    found = make_objectives(("accuracy:10", "latency_ms:1"), "accuracy", "maximize")
    assert [(objective.name, objective.weight) for objective in found] == [("accuracy", 10), ("latency_ms", 1)]
    before, after = {"accuracy": 0.9, "latency_ms": 2.0}, {"accuracy": 0.89, "latency_ms": 1.0}
    assert weighted_change(found, after, before, is_share=True) == pytest.approx(10 - 50)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("accuracy:10", "latency_ms"), "'latency_ms' has no weight while others have"),
        (("accuracy:ten",), "expected NAME, or NAME:WEIGHT with a weight above zero"),
        (("accuracy:-1",), "above zero"),
        (("accuracy:0",), "above zero"),
        (("accuracy:1", "accuracy:2"), "given 2 times"),
    ],
)
def test_weights_that_make_no_sense_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make_objectives(names, "accuracy", "maximize")


@given(st.sampled_from(["maximize", "minimize"]), st.floats(-50, 50), st.floats(0.1, 10), st.booleans())
def test_the_value_at_a_loss_loses_that(direction: Direction, lost: float, level: float, is_share: bool) -> None:
    objective = Objective("metric", direction)
    value = objective.at_loss(lost, level, is_share=is_share)
    assert objective.lost(value, level, is_share=is_share) == pytest.approx(lost, abs=1e-9)
