"""Low rank: what the decompositions promise, what is offered, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.data import as_split
from autocompress.errors import InfeasiblePlan
from autocompress.graph import factorization as make
from autocompress.graph.factorization import Factorized, input_moments
from autocompress.graph.inspect import layer_view, weighted_modules
from autocompress.graph.running import outputs
from autocompress.graph.view import Layer, LayerView
from autocompress.methods import METHODS
from autocompress.methods.low_rank import Geometry, LowRank, distinct_ratios, planned_ranks, rounded_rank
from autocompress.plan import ORIGINAL, Scalar
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, Knob, MethodSpace
from tests.conftest import SPECIMENS, Specimen, context_of

RESIDUAL = SPECIMENS["residual"]


def linear(outputs: int, inputs: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs).requires_grad_(False)


def error(layer: nn.Module, factors: Factorized) -> float:
    return float((layer.weight - factors.weight).detach().norm())  # type: ignore[operator]


def same(layer: nn.Module, factors: nn.Module, *shape: int) -> None:
    """The factors give what the layer gives."""
    value = torch.randn(2, *shape)
    wanted, got = layer(value), factors(value)
    assert wanted.shape == got.shape
    assert torch.allclose(wanted, got, atol=1e-5)


@given(st.integers(2, 20), st.integers(2, 20), st.data())
@settings(max_examples=25)
def test_the_error_of_the_singular_values_is_the_tail_of_the_spectrum(rows: int, columns: int, data: Any) -> None:
    layer = linear(rows, columns)
    rank = data.draw(st.integers(1, min(rows, columns)))
    values = torch.linalg.svdvals(layer.weight)
    assert error(layer, make.svd(layer, rank)) == pytest.approx(float(values[rank:].norm()), abs=1e-5)


@given(st.integers(1, 11), st.integers(0, 5))
@settings(max_examples=25)
def test_whitened_factors_have_the_smaller_error_of_the_outputs(rank: int, seed: int) -> None:
    layer = linear(12, 16, seed)
    inputs = torch.randn(200, 16) @ torch.randn(16, 16) + torch.randn(16)
    moment = (inputs.T @ inputs / len(inputs)).double()
    plain, whitened = make.svd(layer, rank), make.whitened_svd(layer, rank, moment)
    wrong = [float((layer(inputs) - factors(inputs)).square().mean()) for factors in (whitened, plain)]
    assert wrong[0] <= wrong[1] * (1 + 1e-6)
    assert error(layer, plain) <= error(layer, whitened) + 1e-6, "the price is the error of the weights"


def test_inputs_that_never_come_are_not_given_up() -> None:
    layer = linear(8, 8)
    moment = torch.diag(torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.float64))
    factors = make.whitened_svd(layer, 8, moment)
    assert torch.allclose(factors.weight, layer.weight, atol=1e-5)
    assert torch.isfinite(make.whitened_svd(layer, 4, torch.zeros_like(moment)).weight).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_non_negative_factors_of_a_weight_of_one_sign_have_one_sign_each(sign: int) -> None:
    layer = linear(12, 10)
    layer.weight.data = sign * layer.weight.data.abs()
    factors = make.nmf(layer, 4)
    reduce, expand = (factor.weight for factor in factors)
    assert bool((reduce >= 0).all())  # type: ignore[operator]
    assert bool((sign * expand >= 0).all())  # type: ignore[operator]
    assert factors.ranks == (4,)
    assert error(layer, factors) < 0.5 * float(layer.weight.norm())


@pytest.mark.parametrize("rank", [2, 5, 8])
def test_a_weight_of_both_signs_shares_the_rank_between_them(rank: int) -> None:
    layer = linear(12, 10)
    factors = make.nmf(layer, rank)
    reduce, expand = (factor.weight for factor in factors)
    assert bool((reduce >= 0).all())  # type: ignore[operator]
    assert [bool((column >= 0).all()) for column in expand.T] == [True] * (rank - rank // 2) + [False] * (rank // 2)  # type: ignore[operator,union-attr]
    assert error(layer, factors) < error(layer, make.nmf(layer, 2)) + 1e-6 < float(layer.weight.norm())


def test_one_non_negative_factor_is_not_enough_for_both_signs() -> None:
    with pytest.raises(InfeasiblePlan, match="at least 2"):
        make.nmf(linear(4, 4), 1)


CONVOLUTIONS = [
    nn.Conv2d(6, 10, 3, padding=1),
    nn.Conv2d(10, 6, 3, stride=2, bias=False),
    nn.Conv2d(6, 8, (5, 3), stride=(1, 2), padding=(3, 0), dilation=(1, 2)),
    nn.Conv2d(6, 8, (3, 4), padding="same", dilation=2),
    nn.Conv2d(6, 8, 3, padding="valid"),
    nn.Conv2d(6, 8, 3, padding=(2, 1), padding_mode="reflect"),
    nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"),
    nn.Conv2d(6, 8, 5, stride=2, padding=2, padding_mode="replicate"),
    nn.ConvTranspose2d(6, 10, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(
        10, 6, (3, 4), stride=(1, 3), padding=(0, 1), output_padding=(0, 2), dilation=(2, 1), bias=False
    ),
]
OTHER_AXES = [
    nn.Conv1d(6, 10, 5, stride=2, padding=3, dilation=2),
    nn.ConvTranspose1d(6, 10, 4, stride=3, output_padding=1),
    nn.Conv3d(4, 6, 3, padding=(0, 1, 2)),
    nn.Conv2d(6, 10, 1, stride=2),
]


def shape_of(conv: Any) -> tuple[int, ...]:
    return (conv.in_channels, 15, 14, 13)[: 1 + len(conv.kernel_size)]


def full_ranks(conv: Any) -> tuple[int, int, int]:
    """Of the channel split, and of the inputs and outputs of Tucker's."""
    positions = int(np.prod(conv.kernel_size))
    reads, writes = (
        min(conv.in_channels, conv.out_channels * positions),
        min(conv.out_channels, conv.in_channels * positions),
    )
    return writes, reads, writes


@pytest.mark.parametrize("conv", [*CONVOLUTIONS, *OTHER_AXES], ids=str)
def test_splits_into_channels_of_full_rank_are_exact(conv: Any) -> None:
    rank, reads, writes = full_ranks(conv)
    for factors in (make.channel_split(conv, rank), make.tucker_split(conv, (reads, writes))):
        same(conv, factors, *shape_of(conv))
        assert torch.allclose(factors.weight, conv.weight, atol=1e-5)


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_spatial_splits_of_full_rank_are_exact(conv: Any) -> None:
    rank = min(conv.in_channels * conv.kernel_size[0], conv.out_channels * conv.kernel_size[1])
    factors = make.spatial_split(conv, rank)
    same(conv, factors, *shape_of(conv))
    assert torch.allclose(factors.weight, conv.weight, atol=1e-5)


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_the_error_of_a_split_is_the_tail_of_its_spectrum(conv: Any) -> None:
    weight = (conv.weight.transpose(0, 1) if conv.transposed else conv.weight).detach()
    outputs, inputs, height, width = weight.shape
    matrices = {
        make.channel_split: weight.flatten(1),
        make.spatial_split: weight.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width),
    }
    for split, matrix in matrices.items():
        tail = torch.linalg.svdvals(matrix)[4:].norm()
        assert error(conv, split(conv, 4)) == pytest.approx(float(tail), abs=1e-5)


def test_tuckers_error_is_within_its_bound() -> None:
    conv = nn.Conv2d(8, 10, 3).requires_grad_(False)
    tails = [torch.linalg.svdvals(conv.weight.transpose(0, axis).flatten(1))[4:].norm() for axis in (0, 1)]
    found = error(conv, make.tucker_split(conv, (4, 4)))
    assert max(map(float, tails)) - 1e-5 <= found <= float(torch.stack(tails).norm()) + 1e-5


def test_factors_can_be_read_like_the_layer() -> None:
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1)
    factors = make.spatial_split(conv, 4)
    for fact in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups", "padding_mode"):
        assert getattr(factors, fact) == getattr(conv, fact)
    assert torch.equal(factors.bias, conv.bias)  # type: ignore[arg-type]
    assert make.svd(linear(5, 7), 2).in_features == 7
    assert make.svd(nn.Linear(7, 5, bias=False), 2).bias is None


def test_factors_of_a_frozen_layer_are_frozen() -> None:
    layer = linear(8, 8)
    layer.bias.requires_grad_(True)
    trained = {name for name, parameter in make.svd(layer, 2).named_parameters() if parameter.requires_grad}
    assert trained == {"expand.bias"}


def test_moments_are_those_of_what_the_layers_read() -> None:
    specimen = SPECIMENS["mlp"]
    (samples,) = specimen.samples(50)
    model = specimen.model().train()
    moments = input_moments(model, ["0", "2"], as_split((samples, np.zeros(50)), "calibration"))
    hidden = outputs(nn.Sequential(*list(model)[:2]), (samples,))[0].double()  # type: ignore[call-overload]
    assert torch.allclose(moments["2"], hidden.T @ hidden / 50, atol=1e-5)
    assert torch.allclose(moments["0"], torch.from_numpy(samples.T @ samples / 50).double(), atol=1e-5)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


@given(st.integers(1, 300), st.floats(0.01, 0.99), st.sampled_from([1, 4, 8, 16]))
def test_ranks_are_rounded_up_to_what_the_machine_likes(full: int, ratio: float, multiple: int) -> None:
    rank = rounded_rank(full, ratio, multiple)
    step = multiple if full >= 2 * multiple else min(4, multiple) if full >= 8 else 1
    assert rank == full or rank % step == 0
    assert ratio * full - 1e-6 <= rank <= full
    assert rank - ratio * full < step


KERNELS = st.sampled_from([(), (1, 1), (3,), (3, 3), (5, 3), (2, 2)])


@given(st.integers(2, 100), st.integers(2, 100), KERNELS, st.lists(st.floats(0.02, 1), max_size=6))
@settings(max_examples=50)
def test_ratios_offered_give_distinct_ranks_that_break_even(
    rows: int, columns: int, kernel: tuple[int, ...], ratios: list[float]
) -> None:
    geometry = Geometry(rows, columns, kernel)
    for decomposition in geometry.decompositions:
        first, *offered = distinct_ratios(geometry, decomposition, tuple(ratios), 8)
        ranks = [planned_ranks(geometry, decomposition, ratio, 8) for ratio in offered]
        assert first == 1
        assert len(set(ranks)) == len(ranks)
        assert all(geometry.factor_weights(decomposition, found) < geometry.weights for found in ranks)


@pytest.mark.parametrize(
    ("layer", "decomposition"),
    [
        *((layer, name) for layer in (CONVOLUTIONS[0], CONVOLUTIONS[8]) for name in ("spatial", "channel", "tucker")),
        (nn.Conv2d(4, 6, (3, 5)), "spatial"),
        (nn.Conv1d(6, 4, 3), "tucker"),
        (nn.Linear(9, 8), "svd"),
        (nn.Linear(9, 8), "nmf"),
    ],
    ids=str,
)
def test_weights_are_counted_as_they_are(layer: Any, decomposition: Any) -> None:
    shape = (1, *shape_of(layer)) if hasattr(layer, "kernel_size") else (1, 9)
    model = nn.Sequential(copy.deepcopy(layer))
    examples = (np.random.default_rng(0).standard_normal(shape).astype(np.float32),)
    geometry = Geometry.of(layer_view(model, examples).layers[0])
    ranks = planned_ranks(geometry, decomposition, 0.3, 1)
    profile = HardwareProfile("fine", channel_multiple=1)
    context = context_of(Specimen(lambda: copy.deepcopy(model), shape[1:]), profile)
    changed = LowRank()(model, {"0": {"rank_ratio": 0.3, "decomposition": decomposition}}, context)
    weights = sum(module.weight.numel() for _, module in weighted_modules(changed, "0"))  # type: ignore[union-attr,operator]
    assert weights == geometry.factor_weights(decomposition, ranks) < geometry.weights == layer.weight.numel()
    assert changed.get_submodule("0").ranks == ranks


@pytest.mark.parametrize("shape", [(300, 420), (420, 300)])
def test_large_matrices_are_split_as_well_as_small_ones(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(*shape, generator=generator) @ torch.diag(torch.linspace(1, 1e-3, shape[1]))
    linear = nn.Linear(*reversed(shape))
    linear.weight.data.copy_(weight)
    factors = make.svd(linear, 40)
    tail = torch.linalg.svdvals(weight.double())[40:].square().sum()
    error = (factors.weight.detach() - weight).double().square().sum()
    assert float(error) == pytest.approx(float(tail), rel=1e-5)


def view_of(*layers: Layer) -> LayerView:
    return LayerView(ORIGINAL, layers, ())


def offered(space: MethodSpace, *layers: Layer, multiple: int = 8) -> dict[str, tuple[Scalar, ...]]:
    """What is asked where every layer gets its smallest ratio."""
    asked: dict[str, tuple[Scalar, ...]] = {}

    def suggest(name: str, knob: Knob) -> Scalar:
        assert isinstance(knob, Choice)
        asked[name.removeprefix("low_rank/")] = knob.options
        return knob.options[-1]

    LowRank().propose(view_of(*layers), suggest, space, HardwareProfile("any", channel_multiple=multiple))
    return asked


def test_only_layers_where_it_can_pay_are_offered() -> None:
    asked = offered(
        MethodSpace(),
        Layer("square", "linear", 4160, 4096, (64, 64)),
        Layer("tiny", "linear", 272, 256, (16, 16)),
        Layer("conv", "conv", 9216, 1, (32, 32, 3, 3)),
        Layer("depthwise", "conv", 2048, 1, (64, 1, 5, 5), groups=64),
        Layer("words", "embedding", 6400, 0, (100, 64)),
        Layer("lstm", "recurrent", 6400, 1),
        Layer("attention", "attention", 6400, 1),
    )
    assert asked == {"square/rank_ratio": (1.0, 0.25), "conv/rank_ratio": (1.0, 0.75, 0.5, 0.25)}


def test_decompositions_are_asked_only_where_the_space_names_them_and_fit_every_ratio() -> None:
    space = MethodSpace({"rank_ratio": (1, 0.75, 0.25), "decomposition": ("channel", "spatial", "tucker", "svd")})
    conv, dense = Layer("conv", "conv", 9216, 1, (32, 32, 3, 3)), Layer("dense", "linear", 4160, 4096, (64, 64))
    assert offered(space, conv, dense) == {
        "conv/rank_ratio": (1.0, 0.75, 0.25),
        "conv/decomposition": ("spatial", "channel", "tucker"),
        "dense/rank_ratio": (1.0, 0.25),
    }, "a single one is taken without asking"
    other = MethodSpace({"rank_ratio": (1, 0.25), "decomposition": ("spatial",)})
    settings = LowRank().propose(view_of(dense), lambda *_: 0.25, other, HardwareProfile("any", channel_multiple=8))
    assert settings["dense"]["decomposition"] == "whitened_svd", "its default, where none fits"


def apply(name: str, profile: HardwareProfile, specimen: Specimen = RESIDUAL, **setting: Scalar) -> nn.Module:
    return LowRank()(specimen.model(), {name: setting}, context_of(specimen, profile))


@pytest.mark.parametrize(
    ("name", "setting", "reason"),
    [
        ("layers.1.conv2", {"rank_ratio": 0}, "0 < ratio < 1"),
        ("layers.1.conv2", {"rank_ratio": 1}, "0 < ratio < 1"),
        ("layers.1.conv2", {"rank_ratio": True}, "0 < ratio < 1"),
        ("layers.1.conv2", {"decomposition": "tucker"}, "no rank_ratio; expected 0 < ratio < 1"),
        ("layers.1.conv2", {"rank_ratio": 0.5, "decomposition": "svd"}, "expected spatial or channel or tucker"),
        ("layers.1.short.0", {"rank_ratio": 0.5, "decomposition": "spatial"}, "expected channel"),
        ("layers.1.short.0", {"rank_ratio": 0.9}, "gives rank 16 and 768 weights; expected fewer than the 512"),
        ("layers.1.bn1", {"rank_ratio": 0.5}, "expected a linear layer or an ungrouped convolution"),
        ("layers.1", {"rank_ratio": 0.5}, "expected a linear layer or an ungrouped convolution"),
    ],
)
def test_what_can_not_be_done_is_refused(
    name: str, setting: dict[str, Scalar], reason: str, profile: HardwareProfile
) -> None:
    with pytest.raises(InfeasiblePlan, match=reason):
        apply(name, profile, **setting)


class OwnLinear(nn.Linear):
    """Standardizes its weight, so that it is more than its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight / self.weight.std())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.head = nn.Embedding(32, 32), OwnLinear(32, 32), nn.Linear(32, 32)
        self.head.weight = self.words.weight

    def forward(self, value: Tensor) -> Tensor:
        return self.head(self.inner(value)) + self.words(value.argmax(-1))


@pytest.mark.parametrize(("name", "reason"), [("head", "shares its weight"), ("inner", "a way of its own")])
def test_layers_that_are_more_than_their_weight_are_refused(name: str, reason: str, profile: HardwareProfile) -> None:
    with pytest.raises(InfeasiblePlan, match=f"low_rank: layer '{name}'.*{reason}"):
        apply(name, profile, Specimen(Tied, (32,)), rank_ratio=0.25)


def test_layers_that_are_more_than_their_weight_are_not_offered() -> None:
    view = layer_view(Tied().eval(), Specimen(Tied, (32,)).examples)
    assert {layer.name: layer.replaceable for layer in view.layers} == {"words": True, "inner": False, "head": False}
    assert offered(MethodSpace(), *view.layers) == {}


def test_a_linear_layer_that_only_casts_what_it_reads_is_as_good_as_any(profile: HardwareProfile) -> None:
    class Casting(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.linear(input.float(), self.weight, self.bias)

    specimen = Specimen(lambda: nn.Sequential(Casting(32, 32)), (32,))
    assert layer_view(specimen.model(), specimen.examples).layers[0].replaceable
    assert isinstance(apply("0", profile, specimen, rank_ratio=0.25)[0], Factorized)  # type: ignore[index]


def test_a_layer_is_replaced_under_all_of_its_names(profile: HardwareProfile) -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(32, 32)
            self.layers = nn.Sequential(self.first, nn.Linear(32, 4))

        def forward(self, value: Tensor) -> Any:
            return self.layers(value)

    changed = apply("first", profile, Specimen(Aliased, (32,)), rank_ratio=0.25)
    assert isinstance(changed.layers[0], Factorized)  # type: ignore[index]


def test_ranks_that_are_no_longer_those_planned_are_noticed(profile: HardwareProfile) -> None:
    changed = apply("layers.1.conv2", profile, rank_ratio=0.5)
    settings = {"layers.1.conv2": {"rank_ratio": 0.5}}
    LowRank().verify(changed, settings)
    factors = changed.get_submodule("layers.1.conv2")
    factors.vertical = nn.Conv2d(32, 8, (3, 1))  # type: ignore[assignment]
    with pytest.raises(InfeasiblePlan, match=r"has ranks \(8,\); planned were \(16,\)"):
        LowRank().verify(changed, settings)
    with pytest.raises(InfeasiblePlan, match="is a Conv2d; expected its factors"):
        LowRank().verify(RESIDUAL.model(), settings)


def test_a_pruned_layer_is_factorized_by_the_size_it_has_left(profile: HardwareProfile) -> None:
    context = context_of(RESIDUAL, profile)
    pruned = METHODS["channel_pruning"]()(RESIDUAL.model(), {"layers.1.conv1": {"pruning_ratio": 0.5}}, context)
    factors = LowRank()(pruned, {"layers.1.conv2": {"rank_ratio": 0.5}}, context).get_submodule("layers.1.conv2")
    assert factors.ranks == (8,)
    assert factors.in_channels == 16
