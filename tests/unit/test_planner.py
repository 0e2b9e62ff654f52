from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.errors import InvalidInput, UnknownName
from autocompress.graph.view import ChannelGroup, Layer, LayerView
from autocompress.methods import METHODS, CompressionMethod
from autocompress.plan import ORIGINAL, Plan, Recovery, Scalar, Settings
from autocompress.planner import architectures, check_space, planner, policy_plans, resolve_epochs
from autocompress.profile import HardwareProfile
from autocompress.space import (
    Knob,
    MethodSpace,
    RecoverySpace,
    SearchSpace,
    load_space,
    neutral,
    policy_suggest,
    record_answers,
)

PROFILE = HardwareProfile("test", kernels={"conv": ("int8",), "linear": ("int8", "dynamic_int8")}, channel_multiple=8)
VIEW = LayerView(
    ORIGINAL,
    (Layer("conv", "conv", 18_432, 90_000, (64, 32, 3, 3)), Layer("head", "linear", 4096, 4096, (64, 64))),
    (ChannelGroup("conv", ("conv",), 64),),
)
ALL_KERNELS = {"conv": ("int8",), "linear": ("int8", "dynamic_int8", "nbits")}
OWN = {"own": ("own",)}
NARROW = LayerView("width_0.5", VIEW.layers, (ChannelGroup("conv", ("conv",), 32),))


def space(**changes: object) -> SearchSpace:
    given = {
        "methods": {
            "quantization": MethodSpace({"precision": ("fp32", "int8", "dynamic_int8")}),
            "channel_pruning": MethodSpace({"pruning_ratio": (0, 0.5)}),
        },
        "widths": (0.5,),
        "recovery": RecoverySpace(epochs=3, student_epochs=6),
        "policies": ({"quantization/precision": "int8"},),
    }
    return SearchSpace("test", **{**given, **changes})  # type: ignore[arg-type]


def test_neutral_answers_give_the_baseline() -> None:
    plan = planner(space(), {ORIGINAL: VIEW}, PROFILE)(lambda _, knob: neutral(knob))
    assert plan == Plan()


def test_methods_come_in_the_order_of_their_stages() -> None:
    policy = {"quantization/precision": "int8", "channel_pruning/pruning_ratio": 0.5}
    plan = planner(space(), {ORIGINAL: VIEW}, PROFILE)(policy_suggest(policy))
    assert [step.method for step in plan.steps] == ["channel_pruning", "quantization"]


def test_knobs_lie_below_their_architecture() -> None:
    answers: dict[str, Scalar] = {}
    plan = planner(space(), {ORIGINAL: VIEW, "width_0.5": NARROW}, PROFILE)
    plan(record_answers(policy_suggest({"architecture": "width_0.5"}), answers))
    assert answers["architecture"] == "width_0.5"
    assert all(name.startswith("width_0.5/") for name in answers if name != "architecture")
    assert "width_0.5/channel_pruning/conv/pruning_ratio" in answers


def test_quantizing_alone_needs_no_recovery_but_pruning_and_students_do() -> None:
    plan = planner(space(), {ORIGINAL: VIEW, "width_0.5": NARROW}, PROFILE)
    assert plan(policy_suggest({"quantization/precision": "int8"})).recovery.epochs == 0
    assert plan(policy_suggest({"channel_pruning/pruning_ratio": 0.5})).recovery.epochs == 3
    assert plan(policy_suggest({"architecture": "width_0.5"})).recovery.epochs == 6


def test_choices_without_a_fast_kernel_are_not_offered() -> None:
    offered: dict[str, Knob] = {}

    def look(name: str, knob: Knob) -> Scalar:
        offered[name] = knob
        return neutral(knob)

    planner(space(), {ORIGINAL: VIEW}, HardwareProfile("slow", kernels={"linear": ("dynamic_int8",)}))(look)
    precisions = {name: knob for name, knob in offered.items() if name.endswith("precision")}
    assert [name for name in precisions if "/conv/" in name] == []
    assert precisions["original/quantization/head/precision"].options == ("fp32", "dynamic_int8")  # type: ignore[union-attr]


def test_layers_can_be_excluded_by_pattern() -> None:
    methods = {"quantization": MethodSpace({"precision": ("fp32", "int8")}, exclude=("head",))}
    plan = planner(space(methods=methods), {ORIGINAL: VIEW}, PROFILE)(
        policy_suggest({"quantization/precision": "int8"})
    )
    assert set(plan.steps[0].settings) == {"conv"}


def test_policies_are_planned_once_each_and_students_after_them() -> None:
    twice = space(policies=({"quantization/precision": "int8"}, {"quantization/precision": "int8"}))
    plan = planner(twice, {ORIGINAL: VIEW, "width_0.5": NARROW, "own": NARROW}, PROFILE)
    plans = [plan for _, plan in policy_plans(twice, plan, ("own",))]
    assert [plan.architecture for plan in plans] == [ORIGINAL, "own"]
    assert all(plan.steps for plan in plans)
    without = space(policies=())
    assert policy_plans(without, planner(without, {ORIGINAL: VIEW, "own": NARROW}, PROFILE), ("own",)) == ()


def test_a_policy_for_a_missing_architecture_is_left_out() -> None:
    only = space(policies=({"architecture": "width_0.5"},))
    assert policy_plans(only, planner(only, {ORIGINAL: VIEW}, PROFILE)) == ()


def test_architectures_are_the_original_widths_and_students() -> None:
    assert architectures(space(), OWN) == (ORIGINAL, "width_0.5", "own")
    assert architectures(space(students=False), OWN) == (ORIGINAL, "width_0.5")


def test_widths_and_depths_are_offered_alone_and_together() -> None:
    assert architectures(space(depths=(0.5,)), {}) == (ORIGINAL, "width_0.5", "depth_0.5", "width_0.5_depth_0.5")


def test_of_many_variants_the_first_are_offered_and_those_that_a_policy_names() -> None:
    variants = {"own": tuple(f"own(width={width})" for width in (16, 8, 24, 12))}
    few = space(widths=(), variants=2, policies=({"architecture": "own(width=12)"},))
    assert architectures(few, variants) == (ORIGINAL, "own(width=16)", "own(width=8)", "own(width=12)")


def test_a_penalty_is_only_for_plans_that_remove_something() -> None:
    recovery = RecoverySpace(epochs=3, student_epochs=6, penalty="l1", penalty_weight=1e-4, sparsify_epochs=2)
    plan = planner(space(recovery=recovery), {ORIGINAL: VIEW, "width_0.5": NARROW}, PROFILE)
    assert plan(policy_suggest({"channel_pruning/pruning_ratio": 0.5})).recovery.sparsify_epochs == 2
    plain = Recovery(epochs=6, learning_rate=0.01, temperature=4.0, alpha=0.1)
    assert plan(policy_suggest({"architecture": "width_0.5"})).recovery == plain
    assert plan(policy_suggest({"quantization/precision": "int8"})).recovery == Recovery()


def test_later_methods_are_not_asked_for_layers_that_an_earlier_one_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_head(
        method: CompressionMethod, model: LayerView, settings: Settings, profile: HardwareProfile
    ) -> LayerView:
        return replace(model, layers=tuple(layer for layer in model.layers if layer.name != "head"))

    monkeypatch.setattr(METHODS["channel_pruning"], "leaves", without_head)
    policy = {"quantization/precision": "int8", "channel_pruning/pruning_ratio": 0.5}
    plan = planner(space(), {ORIGINAL: VIEW}, PROFILE)(policy_suggest(policy))
    assert set(plan.steps[1].settings) == {"conv"}


def test_auto_epochs_are_resolved_and_numbers_stay() -> None:
    assert resolve_epochs(space(recovery=RecoverySpace()), 5).recovery.student_epochs == 10
    assert resolve_epochs(space(), 5).recovery.epochs == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"methods": {"quantisation": MethodSpace()}}, UnknownName, "did you mean 'quantization'"),
        ({"methods": {"quantization": MethodSpace({"precison": ("int8",)})}}, UnknownName, "did you mean 'precision'"),
        ({"methods": {"quantization": MethodSpace({"precision": ("int4",)})}}, InvalidInput, "'int4'; expected fp32"),
        ({"methods": {"channel_pruning": MethodSpace({"pruning_ratio": (0, 1.5)})}}, InvalidInput, "1.5; expected"),
        ({"methods": {"channel_pruning": MethodSpace({"pruning_ratio": ("a",)})}}, InvalidInput, "'a'; expected"),
        ({"policies": ({"quantization/precision": "int9"},)}, InvalidInput, "'int9'; expected"),
        ({"policies": ({"quantization/precison": "int8"},)}, UnknownName, "did you mean 'precision'"),
        ({"policies": ({"architecture": "widht_0.5"},)}, UnknownName, "did you mean 'width_0.5'"),
        ({"methods": {}, "widths": ()}, InvalidInput, "nothing to search"),
    ],
)
def test_what_would_never_be_tried_is_refused(changes: dict[str, object], error: type[Exception], message: str) -> None:
    wrong = space(**{"policies": (), **changes})
    with pytest.raises(error, match=message):
        check_space(wrong, architectures(wrong, {}))


def test_a_pattern_that_matches_no_layer_is_refused() -> None:
    wrong = space(
        methods={"quantization": MethodSpace({"precision": ("fp32", "int8")}, layers=("convv*",))}, policies=()
    )
    with pytest.raises(UnknownName, match=r"unknown layer .* 'convv\*'"):
        planner(wrong, {ORIGINAL: VIEW}, PROFILE)


@pytest.mark.parametrize("name", [path.stem for path in Path(__file__).parents[2].glob("search_spaces/*.yaml")])
def test_the_policies_of_a_shipped_space_are_plans_of_their_own(name: str) -> None:
    shipped = resolve_epochs(load_space(name), 2)
    check_space(shipped, architectures(shipped, {}))
    models = dict.fromkeys(architectures(shipped, {}), VIEW)
    plans = policy_plans(shipped, planner(shipped, models, replace(PROFILE, kernels=ALL_KERNELS)))
    assert len(plans) == len(shipped.policies), "none is left out, and no two are the same"


def test_a_policy_with_a_value_that_the_space_does_not_offer_is_refused() -> None:
    space = SearchSpace(
        "own",
        methods={"quantization": MethodSpace({"precision": ("fp32", "int8"), "bits": (8,)})},
        policies=({"quantization/precision": "int8", "quantization/bits": 4},),
    )
    with pytest.raises(InvalidInput, match="a policy sets quantization/bits to 4, but the space offers 8"):
        check_space(space, (ORIGINAL,))
