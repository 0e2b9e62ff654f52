from __future__ import annotations

import pytest

from autocompress.plan import Plan, Recovery, Settings, Step
from autocompress.point import point_name, summarize
from autocompress.record import Record, Trial


@pytest.mark.parametrize(
    ("method", "settings", "name"),
    [
        ("channel_pruning", {"a": {"pruning_ratio": 0.5, "importance": "l1"}}, "_0.50_l1"),
        ("low_rank", {"a": {"rank_ratio": 0.5}, "b": {"rank_ratio": 0.25}}, "_0.38"),
        ("layer_drop", {"a": {"drop": True}, "b": {"drop": True}}, "_x2"),
        ("clustering", {"a": {"bits": 4}, "b": {"bits": 3}}, "_w3.5"),
        ("quantization", {"a": {"precision": "int8"}, "b": {"precision": "fp16"}}, "fp16+int8"),
        ("quantization", {"a": {"precision": "int8", "bits": 4}, "b": {"precision": "int8"}}, "int8_w6"),
    ],
)
def test_a_step_says_how_much_of_its_method_it_is(method: str, settings: Settings, name: str) -> None:
    wanted = method + name if name.startswith("_") else name
    assert summarize(Plan(steps=(Step(method, settings),))) == wanted
    reordered = {layer: dict(sorted(one.items())) for layer, one in reversed(settings.items())}
    assert summarize(Plan(steps=(Step(method, reordered),))) == wanted


def test_every_plan_has_a_name_that_files_can_have() -> None:
    def name(plan: Plan) -> str:
        return point_name(Record(Trial(7, plan), "complete"))

    assert name(Plan()) == "007-baseline"
    assert name(Plan(recovery=Recovery(epochs=1))) == "007-finetuned"
    student = "small(depth=2,width=16)"
    assert name(Plan(architecture=student)) == "007-small_depth_2_width_16"
    int8 = Step("quantization", {"a": {"precision": "int8"}})
    assert name(Plan(architecture=student, steps=(int8,))) == "007-small_depth_2_width_16-int8"
    sparse = Step("sparsity", {"a": {"pattern": "2:4"}})
    assert name(Plan(steps=(sparse,))) == "007-sparsity_2_4"
