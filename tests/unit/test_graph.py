"""Models seen as layers and channel groups, and narrower students."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.errors import InfeasiblePlan, InvalidInput
from autocompress.graph.channel_groups import channel_groups, kept_channels, remove_channels
from autocompress.graph.inspect import layer_view, replace, used_layers
from autocompress.graph.running import output_shapes
from autocompress.graph.width import scaled_copy
from tests.conftest import SPECIMENS, ResidualNet, Specimen, mlp


def groups_of(name: str) -> dict[str, tuple[int, tuple[str, ...]]]:
    specimen = SPECIMENS[name]
    return {g.name: (g.channels, g.layers) for g in channel_groups(specimen.model(), specimen.examples)}


def test_macs_are_those_worked_out_by_hand() -> None:
    layers = {layer.name: layer for layer in used_layers(ResidualNet(), SPECIMENS["residual"].examples)}
    assert layers["stem"].macs == 8 * 8 * 16 * 3 * 9
    assert layers["stem"].parameters == 16 * 3 * 9 + 16
    assert layers["layers.1.short.0"].macs == 4 * 4 * 32 * 16
    assert layers["fc"].macs == 32 * 4
    assert next(iter(layers)) == "stem"
    assert list(layers)[-1] == "fc"


def test_macs_of_a_transposed_and_a_grouped_convolution_follow_the_definition() -> None:
    transposed = nn.ConvTranspose2d(4, 6, 3, stride=2)
    assert used_layers(nn.Sequential(transposed), (np.zeros((1, 4, 5, 5), np.float32),))[0].macs == 25 * 4 * 6 * 9
    grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
    assert used_layers(nn.Sequential(grouped), (np.zeros((1, 8, 5, 5), np.float32),))[0].macs == 25 * 8 * 2 * 9


def test_attention_is_one_layer_with_its_projections_and_products() -> None:
    layers = used_layers(SPECIMENS["attention"].model(), SPECIMENS["attention"].examples)
    attention = [layer for layer in layers if layer.kind == "attention"]
    assert [layer.name for layer in attention] == ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]
    assert attention[0].macs == 6 * 16 * 16 * 4 + 2 * 6 * 6 * 16
    assert attention[0].parameters == 4 * 16 * 16 + 4 * 16


def test_a_recurrent_layer_counts_every_step() -> None:
    (lstm,) = (
        layer
        for layer in used_layers(SPECIMENS["recurrent"].model(), SPECIMENS["recurrent"].examples)
        if layer.kind == "recurrent"
    )
    assert lstm.macs == 6 * 4 * 16 * (16 + 16)


def test_a_layer_called_twice_counts_twice_and_an_unused_one_not_at_all() -> None:
    class Reusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.never = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, value: Tensor) -> Tensor:
            return self.twice(self.twice(value))

    (layer,) = used_layers(Reusing(), (np.zeros((1, 4), np.float32),))
    assert (layer.name, layer.macs, layer.parameters) == ("twice", 2 * 16, 20)


def test_looking_at_a_model_leaves_it_as_it_is(specimen: Specimen) -> None:
    model = specimen.model().train()
    next(model.parameters()).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer_view(model, specimen.examples)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()].count(False) == 1
    assert not any(module._forward_hooks for module in model.modules())


def test_a_residual_stream_is_one_group_and_inner_widths_are_their_own() -> None:
    assert groups_of("residual") == {
        "stem": (16, ("stem", "layers.0.conv2")),
        "layers.0.conv1": (16, ("layers.0.conv1",)),
        "layers.1.conv1": (32, ("layers.1.conv1",)),
        "layers.1.conv2": (32, ("layers.1.conv2", "layers.1.short.0")),
    }


def test_depthwise_channels_go_with_those_before_them() -> None:
    assert groups_of("depthwise") == {
        "0.0": (16, ("0.0", "1.0", "1.3.expand")),
        "1.3.squeeze": (8, ("1.3.squeeze",)),
        "2.0": (32, ("2.0",)),
    }


def test_an_encoder_offers_only_the_hidden_widths_of_its_mlps() -> None:
    assert list(groups_of("attention")) == ["encoder.layers.0.linear1", "encoder.layers.1.linear1"]


def test_what_an_lstm_reads_or_gives_is_left_alone() -> None:
    assert list(groups_of("recurrent")) == ["hidden"]


def test_the_output_layer_is_in_no_group(specimen: Specimen) -> None:
    last = used_layers(specimen.model(), specimen.examples)[-1]
    assert all(last.name not in group.layers for group in channel_groups(specimen.model(), specimen.examples))


def test_frozen_parameters_do_not_hide_groups() -> None:
    specimen = SPECIMENS["residual"]
    model = specimen.model().requires_grad_(False)
    assert len(channel_groups(model, specimen.examples)) == 4


def test_an_example_of_zeros_shows_the_same_groups() -> None:
    specimen = SPECIMENS["residual"]
    blank = tuple(np.zeros_like(array) for array in specimen.examples)
    assert channel_groups(specimen.model(), blank) == channel_groups(specimen.model(), specimen.examples)


def test_a_model_that_can_not_be_traced_has_no_groups_and_says_why() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, value: Tensor) -> Tensor:
            return self.fc(value) + torch.rand(4)

    examples = (np.zeros((1, 4), np.float32),)
    assert layer_view(Noisy(), examples).channel_groups == ()
    with pytest.raises(InfeasiblePlan, match="can't be traced"):
        channel_groups(Noisy(), examples)


def test_removed_channels_are_gone_from_every_layer_of_the_group() -> None:
    specimen = SPECIMENS["residual"]
    model = specimen.model()
    remove_channels(model, specimen.examples, {"layers.1.conv2": [0, 5]})
    assert [model.get_submodule(name).out_channels for name in ("layers.1.conv2", "layers.1.short.0")] == [30, 30]
    assert model.get_submodule("fc").in_features == 30
    assert output_shapes(model, specimen.examples) == ((1, 4),)


def test_groups_do_not_leak_from_one_model_to_the_next() -> None:
    first = groups_of("residual")
    groups_of("depthwise")
    assert groups_of("residual") == first


def test_a_layer_norm_over_pruned_channels_does_not_hide_the_group() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 4)).eval()
    (group,) = channel_groups(model, (np.ones((1, 8), np.float32),))
    assert (group.name, group.channels) == ("0", 32)


@given(st.integers(2, 600), st.floats(0.01, 0.99), st.sampled_from([1, 4, 8, 16, 32]))
def test_kept_channels_are_some_and_round_where_there_are_enough(channels: int, ratio: float, multiple: int) -> None:
    kept = kept_channels(channels, ratio, multiple)
    assert 1 <= kept <= channels
    if channels >= 2 * multiple and kept < channels:
        assert kept % multiple == 0
    assert kept <= kept_channels(channels, ratio / 2, multiple)


def test_a_student_is_narrower_fresh_and_trainable(specimen: Specimen) -> None:
    model = specimen.model().requires_grad_(False)
    student = scaled_copy(model, specimen.examples, 0.5, 4)
    view, smaller = layer_view(model, specimen.examples), layer_view(student, specimen.examples)
    assert smaller.macs < view.macs
    assert [group.name for group in smaller.channel_groups] == [group.name for group in view.channel_groups]
    assert [g.channels for g in smaller.channel_groups] == [g.channels // 2 for g in view.channel_groups]
    assert output_shapes(student, specimen.examples) == output_shapes(model, specimen.examples)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(
        torch.equal(tensor, student.state_dict()[name])
        for name, tensor in model.state_dict().items()
        if name.endswith("weight") and tensor.dim() > 1
    )


def test_a_student_depends_on_the_random_seed_alone() -> None:
    specimen = SPECIMENS["residual"]
    students = []
    for _ in range(2):
        torch.manual_seed(3)
        students.append(scaled_copy(specimen.model(), specimen.examples, 0.5, 4))
    assert all(torch.equal(*pair) for pair in zip(students[0].parameters(), students[1].parameters(), strict=True))


def test_a_student_forgets_the_statistics_of_batch_norm() -> None:
    specimen = SPECIMENS["depthwise"]
    student = scaled_copy(specimen.model(), specimen.examples, 0.5, 4)
    assert not student.get_submodule("0.1").running_mean.any()


def test_a_width_that_nothing_can_follow_is_refused() -> None:
    with pytest.raises(InfeasiblePlan, match="no channel group"):
        scaled_copy(nn.Linear(8, 4), (np.zeros((1, 8), np.float32),), 0.5, 4)
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        scaled_copy(mlp(), (np.zeros((1, 8), np.float32),), 1.5, 4)


def test_replace_keeps_the_place_and_the_mode() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4))).eval()
    new = nn.Linear(4, 4)
    replace(model, "0.0", new)
    assert model.get_submodule("0.0") is new
    assert not new.training
