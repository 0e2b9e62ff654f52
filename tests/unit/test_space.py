"""Search spaces: data with checked keys, patterns of layers, and policies that answer knobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InvalidInput, UnknownName
from autocompress.plan import Recovery, Scalar
from autocompress.serialization import from_json, to_json
from autocompress.space import (
    Choice,
    Float,
    Int,
    MethodSpace,
    RecoverySpace,
    SearchSpace,
    load_space,
    neutral,
    parse_scaled,
    policy_suggest,
    scaled_name,
)

NAMES = st.text("abcde_", min_size=1, max_size=6)
VALUES = st.lists(st.one_of(NAMES, st.booleans(), st.floats(0, 1)), min_size=1, max_size=4).map(tuple)
SPACES = st.builds(
    SearchSpace,
    name=NAMES,
    methods=st.dictionaries(
        NAMES, st.builds(MethodSpace, parameters=st.dictionaries(NAMES, VALUES, max_size=2)), max_size=3
    ),
    widths=st.lists(st.floats(0.01, 0.99), max_size=3).map(tuple),
    recovery=st.builds(RecoverySpace, epochs=st.one_of(st.integers(0, 50), st.just("auto"))),
)


@given(SPACES)
def test_a_space_survives_json(space: SearchSpace) -> None:
    copy = from_json(SearchSpace, to_json(space))
    assert copy == space
    assert copy.digest == space.digest


@given(SPACES)
def test_the_digest_does_not_depend_on_the_order_of_methods(space: SearchSpace) -> None:
    turned = SearchSpace(
        name=space.name,
        methods=dict(reversed(list(space.methods.items()))),
        widths=space.widths,
        recovery=space.recovery,
    )
    assert turned.digest == space.digest


def test_every_knob_has_a_neutral_value() -> None:
    assert neutral(Choice(("float", "int8"))) == "float"
    assert neutral(Float(0.0, 0.75, step=0.25)) == 0.0
    assert neutral(Int(2, 8)) == 2


def test_patterns_say_which_layers_a_method_may_touch() -> None:
    space = MethodSpace(layers=("layer1.*", "fc"), exclude=("*.shortcut.*",))
    assert space.admits("layer1.0.conv1")
    assert space.admits("fc")
    assert not space.admits("layer1.0.shortcut.0")
    assert not space.admits("layer2.0.conv1")


SHARES = st.floats(0.01, 0.99).map(lambda share: round(share, 3))


@given(SHARES, SHARES)
def test_width_and_depth_are_read_from_the_name(width: float, depth: float) -> None:
    assert parse_scaled(scaled_name(width)) == (width, 1)
    assert parse_scaled(scaled_name(depth=depth)) == (1, depth)
    assert parse_scaled(scaled_name(width, depth)) == (width, depth)


@pytest.mark.parametrize(
    "name", ["", "original", "tiny", "width_", "width_x", "my_width_0.5", "width_0.50", "depth_1", "_depth_0.5", "e"]
)
def test_other_names_hold_neither_width_nor_depth(name: str) -> None:
    assert parse_scaled(name) is None


@pytest.mark.parametrize("width", [0.0, 1.0, -0.5, 2.0])
def test_a_width_or_depth_outside_zero_and_one_is_refused(width: float) -> None:
    with pytest.raises(InvalidInput, match=r"width .*: expected a number between 0 and 1"):
        SearchSpace(name="mine", widths=(width,))
    with pytest.raises(InvalidInput, match=r"depth .*: expected a number between 0 and 1"):
        SearchSpace(name="mine", depths=(width,))


@pytest.mark.parametrize("key", ["precision", "quantisation/precision", "quantization", "quantization/"])
def test_a_policy_for_no_method_of_the_space_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput, match=r"expected .*METHOD/PARAMETER"):
        SearchSpace(name="mine", methods={"quantization": MethodSpace()}, policies=({key: "int8"},))


def test_a_policy_answers_all_layers_alike() -> None:
    suggest = policy_suggest({"quantization/precision": "int8", "architecture": "width_0.5"})
    precision = Choice(("float", "int8"))
    assert suggest("architecture", Choice(("original", "width_0.5"))) == "width_0.5"
    assert suggest("width_0.5/quantization/conv1/precision", precision) == "int8"
    assert suggest("width_0.5/quantization/layer1.0.conv2/precision", precision) == "int8"


def test_a_policy_leaves_alone_what_it_does_not_name() -> None:
    suggest = policy_suggest({"quantization/precision": "int8"})
    assert suggest("architecture", Choice(("original", "tiny"))) == "original"
    assert suggest("original/channel_pruning/conv1/pruning_ratio", Float(0.0, 0.75)) == 0.0


@pytest.mark.parametrize(
    ("knob", "value", "answer"),
    [
        (Choice(("float", "dynamic_int8")), "int8", "float"),
        (Choice((0, 0.25, 0.5)), 0.3, 0.25),
        (Choice((0, 0.5)), 0.25, 0.5),
        (Float(0.0, 0.5), 0.75, 0.5),
        (Float(0.0, 0.5), 0.5, 0.5),
        (Int(1, 8), 4, 4),
        (Int(1, 8), "four", 1),
    ],
)
def test_a_value_that_a_layer_does_not_offer_becomes_the_nearest_or_neutral(
    knob: Choice | Float | Int, value: Scalar, answer: Scalar
) -> None:
    assert policy_suggest({"method/parameter": value})("original/method/layer/parameter", knob) == answer


def test_epochs_are_resolved_for_students_apart_and_smaller_ones_get_more() -> None:
    space = RecoverySpace(epochs=2, student_epochs=9, learning_rate=0.1, student_learning_rate=0.2)
    assert (space.resolve().epochs, space.resolve().learning_rate) == (2, 0.1)
    assert (space.resolve(1.0).epochs, space.resolve(1.0).learning_rate) == (9, 0.2)
    assert [space.resolve(share).epochs for share in (2.0, 0.5, 0.25, 0.01)] == [9, 18, 18, 18]


def test_every_field_of_a_recovery_is_resolved() -> None:
    given = {"temperature": 3.0, "alpha": 0.2, "feature_weight": 0.1, "penalty": "l1", "penalty_weight": 0.01}
    space = RecoverySpace(epochs=2, sparsify_epochs=4, **given)  # type: ignore[arg-type]
    assert space.resolve() == Recovery(epochs=2, sparsify_epochs=4, **given)  # type: ignore[arg-type]


def test_a_space_of_the_user_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("methods:\n  quantization:\n    parameters: {precision: [float, int8]}\n    exclude: [fc]\n")
    space = load_space(str(path))
    assert space.name == "mine"
    assert space.methods["quantization"] == MethodSpace({"precision": ("float", "int8")}, exclude=("fc",))


def test_an_unknown_space_lists_those_shipped() -> None:
    with pytest.raises(UnknownName, match="unknown search space 'no_such_space'"):
        load_space("no_such_space")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a list", "expected a mapping with the keys name, methods"),
        ("metods: {}", "unknown key 'metods'; did you mean 'methods'"),
        ("methods: {quantization: {parameter: {}}}", "unknown key 'methods.quantization.parameter'"),
        ("widths: [0.5, wide]", r"widths\.1: .*given: 'wide'"),
        ("widths: [1.5]", "width 1.5: expected a number between 0 and 1"),
        ("variants: 0", "variants 0; expected at least 1"),
        ("recovery: {penalty: l2}", "recovery.penalty: .*given: 'l2'"),
        ("recovery: {penalty: l1}", "expected a weight > 0 with l1 or group_lasso"),
        ("recovery: {epochs: -1}", "epochs -1; expected a number >= 0 or auto"),
        ("recovery: {student_learning_rate: 0}", "learning_rate > 0"),
        ("methods: [", "not valid YAML"),
    ],
)
def test_a_file_that_does_not_fit_is_explained_with_its_path(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=message):
        load_space(str(path))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"search space 'nowhere/mine\.yaml': no such file"):
        load_space("nowhere/mine.yaml")
