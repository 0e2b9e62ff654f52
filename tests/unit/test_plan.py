"""Plans: pure JSON, with a digest that depends on nothing but what they say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InvalidInput
from autocompress.plan import Plan, Recovery, Scalar, Stage, Step

NAMES = st.text("abcdefghij_.0123456789", min_size=1, max_size=12)
SCALARS: st.SearchStrategy[Scalar] = st.one_of(
    st.booleans(), st.integers(-1000, 1000), st.floats(allow_nan=False, allow_infinity=False), NAMES
)
SETTINGS = st.dictionaries(NAMES, st.dictionaries(NAMES, SCALARS, max_size=3), max_size=4)
RECOVERIES = st.builds(
    Recovery,
    epochs=st.integers(0, 100),
    learning_rate=st.floats(1e-6, 1),
    temperature=st.floats(0.1, 20),
    alpha=st.floats(0, 1),
)
PLANS = st.builds(
    Plan,
    architecture=NAMES,
    steps=st.lists(st.builds(Step, method=NAMES, settings=SETTINGS), max_size=3, unique_by=lambda s: s.method).map(
        tuple
    ),
    recovery=RECOVERIES,
)


@given(PLANS)
def test_a_plan_survives_json(plan: Plan) -> None:
    copy = Plan.from_json(plan.to_json())
    assert copy == plan
    assert copy.digest == plan.digest


@given(NAMES, SETTINGS)
def test_the_digest_does_not_depend_on_the_order_of_settings(
    method: str, settings: dict[str, dict[str, Scalar]]
) -> None:
    turned = {layer: dict(reversed(setting.items())) for layer, setting in reversed(settings.items())}
    assert Plan(steps=(Step(method, settings),)).digest == Plan(steps=(Step(method, turned),)).digest


def test_the_digest_changes_with_everything_a_plan_says() -> None:
    step = Step("quantization", {"conv1": {"precision": "int8"}})
    plans = (
        Plan(),
        Plan(architecture="tiny"),
        Plan(steps=(step,)),
        Plan(steps=(step, Step("clustering", {"conv1": {"bits": 4}}))),
        Plan(recovery=Recovery(epochs=1)),
        Plan(steps=(Step("quantization", {"conv2": {"precision": "int8"}}),)),
    )
    assert len({plan.digest for plan in plans}) == len(plans)


def test_a_method_has_one_step() -> None:
    step = Step("quantization", {"conv1": {"precision": "int8"}})
    with pytest.raises(InvalidInput, match="2 steps of 'quantization'; expected one, with the settings of all"):
        Plan(steps=(step, step))


def test_the_digest_is_the_same_in_every_process() -> None:
    assert Plan().digest == "f967227fda00"


def test_only_the_untouched_original_is_the_baseline() -> None:
    assert Plan().is_baseline
    assert not Plan(architecture="tiny").is_baseline
    assert not Plan(recovery=Recovery(epochs=1)).is_baseline
    assert not Plan(steps=(Step("quantization", {}),)).is_baseline
    assert Plan(recovery=Recovery(epochs=3)).without_recovery() == Plan()


def test_methods_change_structure_first_and_numbers_last() -> None:
    assert [stage.name for stage in sorted(Stage)] == ["STRUCTURE", "FACTORS", "WEIGHTS", "VALUES", "NUMERICS"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON for a Plan"),
        ("[]", "Plan: "),
        ('{"arcitecture": "tiny"}', "unknown key 'arcitecture'; did you mean 'architecture'?"),
        ('{"steps": [{"method": "quantization"}]}', "the key 'steps.0.settings' is missing"),
        ('{"recovery": {"epochs": "many"}}', "recovery.epochs: .*given: 'many'"),
        ('{"version": 2}', "plan version 2: this release reads version 1; update autocompress"),
    ],
)
def test_a_plan_that_does_not_fit_is_explained(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message.replace("?", r"\?")):
        Plan.from_json(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"penalty": "l2", "penalty_weight": 0.1},
        {"penalty": "l1"},
        {"penalty_weight": 0.1},
        {"penalty": "l1", "penalty_weight": -0.1},
        {"sparsify_epochs": 2},
        {"penalty": "l1", "penalty_weight": 0.1, "sparsify_epochs": -1},
        {"feature_weight": -0.5},
    ],
)
def test_a_penalty_comes_with_its_weight_and_before_its_epochs(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"recovery: .*; expected"):
        Recovery(**wrong)


def test_a_plan_that_trains_towards_sparsity_is_not_the_baseline() -> None:
    recovery = Recovery(penalty="l1", penalty_weight=0.1, sparsify_epochs=1)
    assert not Plan(recovery=recovery).is_baseline
    assert recovery.without_penalty() == Recovery()


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"learning_rate": 0.0}, {"temperature": 0.0}, {"alpha": 1.1}])
def test_a_recovery_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="expected epochs >= 0"):
        Recovery(**wrong)  # type: ignore[arg-type]


def test_only_the_weights_of_the_best_or_last_epoch_are_kept() -> None:
    with pytest.raises(InvalidInput, match="keep 'first'; expected one of best, last"):
        Recovery(keep="first")  # type: ignore[arg-type]
