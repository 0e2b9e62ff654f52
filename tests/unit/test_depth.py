"""Shallower students."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InfeasiblePlan, InvalidInput
from autocompress.graph.blocks import Dropped
from autocompress.graph.depth import shallow_copy, spread
from autocompress.graph.running import output_shapes
from tests.conftest import SPECIMENS
from tests.unit.test_layer_drop import DEEP


def dropped(depth: float) -> list[str]:
    student = shallow_copy(DEEP.model(), DEEP.examples, depth)
    return [name for name, module in student.named_modules() if isinstance(module, Dropped)]


@given(st.integers(1, 30), st.floats(0.01, 0.99))
def test_what_stays_is_evenly_spread_and_begins_with_the_first(count: int, depth: float) -> None:
    stage = tuple(map(str, range(count)))
    kept = [int(name) for name in spread(stage, depth)]
    assert kept[0] == 0
    assert len(kept) == max(1, int(depth * count + 0.5))
    gaps = [after - before for before, after in zip(kept, [*kept[1:], count], strict=True)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (0.7, ["layer1.2", "layer2.2"]),
        (0.3, ["layer1.1", "layer1.2", "layer2.1", "layer2.2"]),
    ],
)
def test_every_stage_keeps_its_share_and_its_first_block(depth: float, expected: list[str]) -> None:
    assert dropped(depth) == expected


def test_a_student_has_the_shape_of_the_original_and_fresh_weights_that_train() -> None:
    specimen = SPECIMENS["attention"]
    model = specimen.model().requires_grad_(False)
    student = shallow_copy(model, specimen.examples, 0.5)
    assert output_shapes(student, specimen.examples) == output_shapes(model, specimen.examples)
    assert isinstance(student.get_submodule("encoder.layers.1"), Dropped)
    assert not isinstance(model.get_submodule("encoder.layers.1"), Dropped)
    assert not torch.equal(student.get_submodule("embed").weight, model.get_submodule("embed").weight)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_same_seed_gives_the_same_student() -> None:
    students = []
    for _ in range(2):
        torch.manual_seed(3)
        students.append(shallow_copy(DEEP.model(), DEEP.examples, 0.5).state_dict())
    assert all(torch.equal(students[0][name], value) for name, value in students[1].items())


@pytest.mark.parametrize(("name", "why"), [("residual", "no residual block of this model"), ("mlp", "has no residual")])
def test_a_model_with_nothing_to_leave_out_is_refused(name: str, why: str) -> None:
    with pytest.raises(InfeasiblePlan, match=rf"depth 0\.5: .*{why}"):
        shallow_copy(SPECIMENS[name].model(), SPECIMENS[name].examples, 0.5)


@pytest.mark.parametrize("depth", [0.0, 1.0, 1.5])
def test_a_depth_outside_of_its_range_is_refused(depth: float) -> None:
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        shallow_copy(DEEP.model(), DEEP.examples, depth)
