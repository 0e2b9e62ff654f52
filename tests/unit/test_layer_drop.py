"""Layer drop: what is offered, what later methods see, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.errors import InfeasiblePlan
from autocompress.formats.onnx_export import export
from autocompress.graph.inspect import layer_view
from autocompress.graph.view import LayerView
from autocompress.methods.layer_drop import LayerDrop
from autocompress.plan import ORIGINAL, Scalar
from autocompress.planner import planner
from autocompress.profile import HardwareProfile
from autocompress.space import Knob, MethodSpace, RecoverySpace, SearchSpace, policy_suggest
from tests.conftest import SPECIMENS, ResidualBlock, Specimen, context_of


class DeepNet(nn.Module):
    """A ResNet of two stages of three blocks; images (batch, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.layer1 = nn.Sequential(*(ResidualBlock(8, 8, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(ResidualBlock(8, 16, 2), ResidualBlock(16, 16, 1), ResidualBlock(16, 16, 1))
        self.fc = nn.Linear(16, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer2(self.layer1(torch.relu(self.stem(image)))).mean((2, 3)))


DEEP = Specimen(DeepNet, (3, 8, 8))
BLOCKS = ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2"]


@pytest.fixture(scope="module")
def view() -> LayerView:
    return layer_view(DEEP.model(), DEEP.examples)


def drop(profile: HardwareProfile, **settings: Scalar) -> nn.Module:
    named = {name.replace("_", "."): {"drop": value} for name, value in settings.items()}
    return LayerDrop()(DEEP.model(), named, context_of(DEEP, profile))


def asked(view: LayerView, space: MethodSpace, profile: HardwareProfile) -> list[str]:
    names: list[str] = []

    def suggest(name: str, knob: Knob) -> Scalar:
        names.append(name.split("/")[1])
        return False

    LayerDrop().propose(view, suggest, space, profile)
    return names


def test_every_block_is_offered_but_one_stays(view: LayerView, profile: HardwareProfile) -> None:
    assert asked(view, MethodSpace(), profile) == BLOCKS
    everything = LayerDrop().propose(view, lambda _, knob: True, MethodSpace(), profile)
    assert list(everything) == BLOCKS[:-1]


def test_a_block_with_an_excluded_layer_is_left_alone(view: LayerView, profile: HardwareProfile) -> None:
    assert asked(view, MethodSpace(layers=("layer2.*",)), profile) == ["layer2.1", "layer2.2"]
    assert asked(view, MethodSpace(exclude=("layer1.1.conv2",)), profile) == [b for b in BLOCKS if b != "layer1.1"]
    assert asked(view, MethodSpace({"drop": (False,)}), profile) == []


def test_later_methods_see_the_view_of_the_model_without_the_blocks(view: LayerView, profile: HardwareProfile) -> None:
    settings = {"layer1.0": {"drop": True}, "layer2.2": {"drop": True}}
    changed = LayerDrop()(DEEP.model(), settings, context_of(DEEP, profile))
    assert LayerDrop().leaves(view, settings, profile) == layer_view(changed, DEEP.examples)


def test_a_plan_holds_no_settings_for_layers_that_are_gone(view: LayerView, profile: HardwareProfile) -> None:
    methods = {name: MethodSpace() for name in ("channel_pruning", "quantization", "layer_drop")}
    space = SearchSpace("all", methods=methods, recovery=RecoverySpace(epochs=1))
    policy = {"layer_drop/drop": True, "channel_pruning/pruning_ratio": 0.5, "quantization/precision": "int8"}
    plan = planner(space, {ORIGINAL: view}, profile)(policy_suggest(policy))
    assert [step.method for step in plan.steps] == ["layer_drop", "channel_pruning", "quantization"]
    assert not any(name.startswith("layer1.") for step in plan.steps[1:] for name in step.settings)


def test_a_block_may_be_named_in_a_pattern(view: LayerView, profile: HardwareProfile) -> None:
    space = SearchSpace("one", methods={"layer_drop": MethodSpace(layers=("layer1.0",))})
    planner(space, {ORIGINAL: view}, profile)


def test_dropped_blocks_leave_no_node_in_the_graph(profile: HardwareProfile) -> None:
    graph = export(drop(profile, layer1_1=True, layer2_1=True), DEEP.examples)
    whole = export(DEEP.model(), DEEP.examples)
    count = [sum(node.op_type == "Conv" for node in one.graph.node) for one in (graph, whole)]
    assert count[0] == count[1] - 4


def test_the_shortcut_of_a_transformer_layer_stays(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["attention"]
    changed = LayerDrop()(specimen.model(), {"encoder.layers.0": {"drop": True}}, context_of(specimen, profile))
    model = specimen.model()
    encoder = model.get_submodule("encoder")
    encoder.layers = nn.ModuleList([encoder.layers[1]])  # type: ignore[index]
    assert torch.equal(specimen.outputs(changed, 4), specimen.outputs(model, 4))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (dict.fromkeys((name.replace(".", "_") for name in BLOCKS), True), "keep at least one"),
        ({"layer1_0": False}, "drop False; expected true"),
        ({"layer2_0": True}, "no residual block 'layer2.0'"),
        ({"stem": True}, "no residual block 'stem'"),
    ],
)
def test_what_can_not_be_done_is_refused(settings: dict[str, Scalar], reason: str, profile: HardwareProfile) -> None:
    with pytest.raises(InfeasiblePlan, match=reason):
        drop(profile, **settings)


def test_all_blocks_of_a_known_view_are_refused_by_the_check(view: LayerView, profile: HardwareProfile) -> None:
    with pytest.raises(InfeasiblePlan, match="keep at least one"):
        LayerDrop().check(view, {name: {"drop": True} for name in BLOCKS}, profile)


def test_a_block_that_is_still_there_is_noticed(profile: HardwareProfile) -> None:
    LayerDrop().verify(drop(profile, layer1_1=True), {"layer1.1": {"drop": True}})
    with pytest.raises(InfeasiblePlan, match="still a ResidualBlock"):
        LayerDrop().verify(DEEP.model(), {"layer1.1": {"drop": True}})
