"""Channel pruning: what is offered, what is removed, what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autocompress.errors import InfeasiblePlan
from autocompress.graph.channel_groups import importances, kept_channels
from autocompress.graph.inspect import layer_view
from autocompress.methods.channel_pruning import ChannelPruning, distinct_ratios
from autocompress.plan import Scalar
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, Knob, MethodSpace
from tests.conftest import PROFILE, SPECIMENS, context_of

RESIDUAL = SPECIMENS["residual"]


def prune(group: str, ratio: Scalar, profile: HardwareProfile, **more: Scalar) -> nn.Module:
    settings = {group: {"pruning_ratio": ratio, **more}}
    return ChannelPruning()(RESIDUAL.model(), settings, context_of(RESIDUAL, profile))


def choices(space: MethodSpace, profile: HardwareProfile) -> dict[str, Knob]:
    asked: dict[str, Knob] = {}
    view = layer_view(RESIDUAL.model(), RESIDUAL.examples)
    ChannelPruning().propose(view, lambda name, knob: asked.setdefault(name, knob) and 0.0, space, profile)
    return asked


@given(st.integers(2, 300), st.lists(st.floats(0, 0.95), max_size=6), st.sampled_from([1, 4, 16]))
def test_ratios_offered_leave_different_channels(channels: int, ratios: list[float], multiple: int) -> None:
    offered = distinct_ratios(channels, tuple(ratios), multiple)
    kept = [kept_channels(channels, ratio, multiple) for ratio in offered]
    assert kept == sorted(set(kept), reverse=True)
    assert kept[0] == channels
    assert {kept_channels(channels, ratio, multiple) for ratio in ratios} <= set(kept)


def test_the_channels_with_the_smallest_weights_of_the_whole_group_go(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["mlp"]
    first, second = (specimen.model().get_submodule(name).weight for name in ("0", "2"))
    importance = first.square().sum(1) + second.square().sum(0)
    kept = importance.argsort()[16:].sort().values
    pruned = ChannelPruning()(specimen.model(), {"0": {"pruning_ratio": 0.5}}, context_of(specimen, profile))
    assert torch.equal(pruned.get_submodule("0").weight, first[kept])
    assert torch.equal(pruned.get_submodule("2").weight, second[:, kept])


@pytest.mark.parametrize("importance", ["l1", "l2", "bn_scale", "taylor", "activation"])
def test_every_importance_removes_as_many_as_planned(importance: str, profile: HardwareProfile) -> None:
    pruned = prune("layers.1.conv1", 0.25, profile, importance=importance)
    assert pruned.get_submodule("layers.1.conv1").out_channels == 24
    assert pruned.get_submodule("layers.1.bn1").num_features == 24
    assert pruned.get_submodule("layers.1.conv2").in_channels == 24


def test_batch_norm_scale_decides_when_asked(profile: HardwareProfile) -> None:
    model = RESIDUAL.model()
    scale = model.get_submodule("layers.1.bn1").weight
    expected = scale.abs().argsort()[16:].sort().values
    settings = {"layers.1.conv1": {"pruning_ratio": 0.5, "importance": "bn_scale"}}
    pruned = ChannelPruning()(model, settings, context_of(RESIDUAL, profile))
    assert torch.equal(pruned.get_submodule("layers.1.bn1").weight, scale[expected])


def test_batch_norm_scale_needs_a_batch_norm(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["mlp"]
    settings = {"0": {"pruning_ratio": 0.5, "importance": "bn_scale"}}
    with pytest.raises(InfeasiblePlan, match="choose l1 or l2"):
        ChannelPruning()(specimen.model(), settings, context_of(specimen, profile))


@pytest.mark.parametrize(
    ("group", "ratio", "reason"),
    [
        ("layers.1.conv1", 0.01, "rounds to none"),
        ("layers.1.conv1", 0, "0 < ratio < 1"),
        ("layers.1.conv1", 1, "0 < ratio < 1"),
        ("layers.1.conv1", "half", "0 < ratio < 1"),
        ("fc", 0.5, "no channel group 'fc'"),
        ("layers.1.bn1", 0.5, "no channel group 'layers.1.bn1'"),
    ],
)
def test_what_can_not_be_done_is_refused(group: str, ratio: Scalar, reason: str, profile: HardwareProfile) -> None:
    with pytest.raises(InfeasiblePlan, match=reason):
        prune(group, ratio, profile)


def test_an_unknown_importance_is_refused(profile: HardwareProfile) -> None:
    with pytest.raises(InfeasiblePlan, match="bn_scale, taylor or activation"):
        prune("layers.1.conv1", 0.5, profile, importance="luck")


def test_pruned_channels_are_multiples_that_the_machine_likes() -> None:
    profile = HardwareProfile("wide", channel_multiple=16)
    assert prune("layers.1.conv1", 0.4, profile).get_submodule("layers.1.conv1").out_channels == 16


def test_a_group_is_left_out_if_one_of_its_layers_is_excluded(profile: HardwareProfile) -> None:
    asked = choices(MethodSpace(exclude=("layers.0.conv2",)), profile)
    assert set(asked) == {f"channel_pruning/layers.{name}/pruning_ratio" for name in ("0.conv1", "1.conv1", "1.conv2")}


def test_importance_is_asked_only_where_the_space_offers_it(profile: HardwareProfile) -> None:
    view = layer_view(RESIDUAL.model(), RESIDUAL.examples)
    space = MethodSpace({"pruning_ratio": (0, 0.5), "importance": ("l1", "l2")})
    settings = ChannelPruning().propose(view, lambda _, knob: knob.options[-1], space, profile)  # type: ignore[union-attr]
    assert settings["stem"] == {"pruning_ratio": 0.5, "importance": "l2"}
    assert not any("importance" in name for name in choices(MethodSpace(), profile))


def test_a_group_goes_by_any_of_its_layers(profile: HardwareProfile) -> None:
    wanted, got = (prune(name, 0.5, profile) for name in ("stem", "layers.0.conv2"))
    assert all(torch.equal(tensor, got.state_dict()[name]) for name, tensor in wanted.state_dict().items())
    settings = {"stem": {"pruning_ratio": 0.5}, "layers.0.conv2": {"pruning_ratio": 0.25}}
    with pytest.raises(InfeasiblePlan, match="layers of one channel group"):
        ChannelPruning()(RESIDUAL.model(), settings, context_of(RESIDUAL, profile))


def test_whole_heads_go_and_are_not_rounded_to_the_multiple() -> None:
    specimen = SPECIMENS["handwritten"]
    context = context_of(specimen, HardwareProfile("wide", channel_multiple=16))
    settings = {"blocks.0.attn.qkv:heads": {"pruning_ratio": 0.25}}
    pruned = ChannelPruning()(specimen.model(), settings, context)
    assert pruned.get_submodule("blocks.0.attn").num_heads == 3
    assert pruned.get_submodule("blocks.0.attn.qkv").weight.shape == (36, 16)


def test_activation_keeps_the_channels_that_say_most(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["mlp"]
    model, context = specimen.model(), context_of(specimen, profile)
    first: nn.Linear = model.get_submodule("0")  # type: ignore[assignment]
    with torch.no_grad():
        samples = torch.from_numpy(next(context.calibration.batches(32)).inputs[0])
        kept = first(samples).abs().mean(0).argsort()[16:].sort().values
    settings = {"0": {"pruning_ratio": 0.5, "importance": "activation"}}
    assert torch.equal(ChannelPruning()(model, settings, context).get_submodule("0").weight, first.weight[kept])


def test_taylor_removes_channels_that_no_loss_depends_on(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["mlp"]
    model = specimen.model()
    with torch.no_grad():
        model.get_submodule("2").weight[:, ::2] = 0
    settings = {"0": {"pruning_ratio": 0.5, "importance": "taylor"}}
    pruned = ChannelPruning()(model, settings, context_of(specimen, profile))
    assert torch.equal(pruned.get_submodule("0").weight, model.get_submodule("0").weight[1::2])


def test_importances_are_offered_only_to_groups_that_have_what_they_go_by() -> None:
    every = ("l2", "bn_scale", "activation")
    offered: dict[str, tuple[Scalar, ...]] = {}

    def suggest(name: str, knob: Knob) -> Scalar:
        assert isinstance(knob, Choice)
        if name.endswith("/importance"):
            offered[name.split("/")[1]] = knob.options
        return knob.options[-1]

    space = MethodSpace({"pruning_ratio": (0, 0.5), "importance": every})
    for name in SPECIMENS:
        specimen = SPECIMENS[name]
        view = layer_view(specimen.model(), specimen.examples)
        settings = ChannelPruning().propose(view, suggest, space, PROFILE)
        for group, setting in settings.items():
            for importance in offered.get(group, (setting["importance"],)):
                calibration = context_of(specimen, PROFILE).calibration
                importances(specimen.model(), specimen.examples, {group: importance}, calibration=calibration)
    assert set(offered.values()) >= {every, ("l2", "activation")}
