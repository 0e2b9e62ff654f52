"""Axes unified by traces, and what is found, removed and refused in models of many kinds."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.errors import InfeasiblePlan
from autocompress.graph.axes import (
    Axis,
    concat,
    factorize,
    fixed,
    leaves,
    mask,
    positions,
    product,
    reshape,
    split,
    unify,
)
from autocompress.graph.channel_groups import channel_groups, importances, remove_channels
from autocompress.graph.running import outputs
from autocompress.graph.tracing import trace
from tests.conftest import SPECIMENS, Specimen

# Axes


@given(st.lists(st.integers(2, 4), min_size=1, max_size=4), st.integers(0, 2**16))
def test_what_is_kept_of_a_product_is_what_reshape_keeps(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    axes = [Axis(size) for size in sizes]
    kept = {axis: rng.random(axis.size) < 0.7 for axis in axes}
    grid = np.arange(prod(sizes)).reshape(sizes)
    for dim, axis in enumerate(axes):
        grid = grid.compress(kept[axis], axis=dim)
    assert np.flatnonzero(mask(product(axes), kept)).tolist() == grid.flatten().tolist()


@given(st.lists(st.integers(2, 5), min_size=2, max_size=4), st.integers(2, 3))
def test_splitting_undoes_joining(sizes: list[int], times: int) -> None:
    parts = [product((Axis(size), Axis(times))) for size in sizes]
    pieces = split(concat(parts), [size * times for size in sizes])
    assert [list(leaves(piece)) for piece in pieces] == [list(leaves(part)) for part in parts]


@given(st.permutations([2, 3, 4]))
def test_reshaping_there_and_back_keeps_the_leaves(sizes: list[int]) -> None:
    axis = Axis(24)
    found = factorize(axis, sizes)
    assert [leaf.size for leaf in found] == sizes
    assert list(leaves(reshape(found, [24])[0])) == found
    assert not any(leaf.fixed for leaf in found)


def test_joined_thirds_and_a_product_with_three_are_one() -> None:
    query, key, value = Axis(8), Axis(8), Axis(8)
    heads = factorize(concat((query, key, value)), (3, 2, 4))
    assert factorize(query, (2, 4)) == factorize(value, (2, 4)) == heads[1:]


def test_what_does_not_come_out_even_is_fixed() -> None:
    one, other = concat((Axis(10), Axis(6))), Axis(16)
    factorize(other, (4, 4))
    unify(one, other)
    assert all(leaf.fixed for axis in (one, other) for leaf in leaves(axis))


def test_a_fixed_axis_fixes_what_it_meets() -> None:
    axis = product((Axis(2), Axis(3)))
    unify(axis, fixed(6))
    assert all(leaf.fixed for leaf in leaves(axis))


def test_places_of_a_leaf_are_where_its_mask_says() -> None:
    heads, width = Axis(2), Axis(3)
    axis = concat((product((heads, width)), Axis(4)))
    assert positions(axis, heads).tolist() == [0, 0, 0, 1, 1, 1, -1, -1, -1, -1]
    assert positions(axis, width).tolist() == [0, 1, 2, 0, 1, 2, -1, -1, -1, -1]


# Models


class Shuffled(nn.Module):
    """Grouped convolutions around a channel shuffle; images (batch, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1, groups=4)
        self.third, self.fc = nn.Conv2d(16, 8, 1, groups=4), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        mixed = nn.functional.channel_shuffle(torch.relu(self.second(self.first(image))), 4)
        return self.fc(self.third(mixed).mean((2, 3)))


class Gated(nn.Module):
    """Halves of one layer multiplied; features (batch, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 16
        self.both, self.norm, self.fc = nn.Linear(8, 32), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, value: Tensor) -> Tensor:
        one, other = self.both(value).split(self.hidden, 1)
        return self.fc(self.norm(one * torch.sigmoid(other)))


class GroupedQuery(nn.Module):
    """Two heads of the queries share one of the keys and values; rotary positions, RMS norms; tokens (batch, 6, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(heads=4, shared=2, width=6)
        self.embed, self.norm = nn.Linear(8, 20), nn.RMSNorm(20)
        self.query, self.key, self.value = nn.Linear(20, 24), nn.Linear(20, 12), nn.Linear(20, 12)
        self.out, self.fc = nn.Linear(24, 20), nn.Linear(20, 4)
        self.register_buffer("rotation", torch.randn(6, 6))

    def heads(self, value: Tensor, count: int) -> Tensor:
        return value.view(len(value), 6, count, self.config.width).transpose(1, 2) * self.rotation

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.embed(tokens)
        read = self.norm(stream)
        query = self.heads(self.query(read), self.config.heads)
        key, value = (self.heads(layer(read), self.config.shared) for layer in (self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        stream = stream + self.out(mixed.transpose(1, 2).flatten(2))
        return self.fc(stream.mean(1))


class Transposed(nn.Module):
    """Weights stored (in, out), as in GPT-2; features (batch, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Stored(8, 32), Stored(32, 4)

    def forward(self, value: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(value)))


class Stored(nn.Module):
    """A linear layer with its weight (in, out)."""

    def __init__(self, inputs: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, count)), nn.Parameter(torch.randn(count))

    def forward(self, value: Tensor) -> Tensor:
        return torch.addmm(self.bias, value.view(-1, value.shape[-1]), self.weight).view(len(value), self.count)


class Mixer(nn.Module):
    """Layers over tokens beside layers over channels; tokens (batch, 6, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.down, self.up, self.fc = nn.Linear(8, 16), nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.embed(tokens)
        stream = stream + self.up(torch.relu(self.down(stream.transpose(1, 2)))).transpose(1, 2)
        return self.fc(stream.mean(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "shuffled": (
        Shuffled,
        (3, 8, 8),
        {"first:width": 4, "second:width": 4, "third:width": 2},
    ),
    "gated": (Gated, (8,), {"both:part": 16}),
    "grouped_query": (GroupedQuery, (6, 8), {"embed": 20, "query:heads": 2}),
    "transposed": (Transposed, (8,), {"first": 32}),
    "mixer": (Mixer, (6, 8), {"embed": 16, "down": 12}),
}


def build(name: str) -> tuple[nn.Module, Specimen, dict[str, int]]:
    constructor, shape, wanted = MODELS[name]
    specimen = Specimen(constructor, shape)
    return specimen.model(), specimen, wanted


@pytest.mark.parametrize("name", MODELS)
def test_models_of_many_kinds_have_their_groups(name: str) -> None:
    model, specimen, wanted = build(name)
    found = {group.name: group.channels for group in channel_groups(model, specimen.examples)}
    assert wanted.items() <= found.items(), found


@pytest.mark.parametrize("name", [*MODELS, *SPECIMENS])
def test_every_group_can_be_halved_alone_and_all_together(name: str) -> None:
    if name in MODELS:
        model, specimen, _ = build(name)
    else:
        specimen = SPECIMENS[name]
        model = specimen.model()
    groups = channel_groups(model, specimen.examples)
    halves = {group.name: range(0, group.channels - 1, 2) for group in groups}
    assert halves
    before = sum(parameter.numel() for parameter in model.parameters())
    for victims in (*({group: chosen} for group, chosen in halves.items()), halves):
        smaller = copy.deepcopy(model)
        remove_channels(smaller, specimen.examples, victims)
        assert sum(parameter.numel() for parameter in smaller.parameters()) < before
        assert [o.shape for o in outputs(smaller, specimen.examples)] == [
            o.shape for o in outputs(model, specimen.examples)
        ]


def test_a_model_without_channels_is_the_model_whose_readers_are_zero() -> None:
    specimen = SPECIMENS["residual"]
    model, silenced = specimen.model(), specimen.model()
    with torch.no_grad():
        silenced.get_submodule("layers.1.conv2").weight[:, [1, 7]] = 0  # type: ignore[index,operator]
    remove_channels(model, specimen.examples, {"layers.1.conv1": [1, 7]})
    (wanted,), (got,) = outputs(silenced, specimen.examples), outputs(model, specimen.examples)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_sizes_in_attributes_and_settings_objects_are_mended_in_this_model_alone() -> None:
    model, specimen, _ = build("grouped_query")
    shared = model.config
    remove_channels(model, specimen.examples, {"query:heads": [1]})
    assert (model.config.heads, model.config.shared) == (2, 1)  # type: ignore[union-attr]
    assert (shared.heads, shared.shared) == (4, 2)  # type: ignore[union-attr]


def test_nothing_is_changed_if_removal_fails() -> None:
    specimen = SPECIMENS["mlp"]
    model = specimen.model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InfeasiblePlan, match="no channel group 'nothing'"):
        remove_channels(model, specimen.examples, {"0": [1], "nothing": [0]})
    with pytest.raises(InfeasiblePlan, match="would leave none"):
        remove_channels(model, specimen.examples, {"0": range(32)})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Counting(nn.Module):
    """A size that no attribute holds: the code says 32; features (batch, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, value: Tensor) -> Tensor:
        return self.fc(torch.relu(self.first(value)).view(-1, 4, 8).transpose(1, 2).reshape(-1, 32))


def test_a_size_written_into_the_code_keeps_its_channels() -> None:
    model = Counting().eval()
    assert channel_groups(model, (np.ones((1, 8), np.float32),)) == ()


class Scaled(nn.Module):
    """Divides by the number of its channels, which no rule of an operator shows; features (batch, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, value: Tensor) -> Tensor:
        hidden = self.first(value)
        return self.fc(hidden / hidden.shape[-1])


def test_a_group_whose_removal_changes_other_numbers_is_left_out() -> None:
    model = Scaled().eval()
    assert channel_groups(model, (np.ones((1, 8), np.float32),)) == ()
    with pytest.raises(InfeasiblePlan, match="does not give the model without these channels"):
        remove_channels(model, (np.ones((1, 8), np.float32),), {"first": [0]})


def test_weights_of_zero_do_not_hide_a_wrong_group() -> None:
    model = Scaled().eval()
    nn.init.zeros_(model.fc.weight)
    assert channel_groups(model, (np.ones((1, 8), np.float32),)) == ()


def test_a_random_model_is_refused_with_the_reason() -> None:
    class Noisy(nn.Sequential):
        def forward(self, value: Any) -> Any:
            return super().forward(value) + torch.rand(4)

    with pytest.raises(InfeasiblePlan, match="random or not finite"):
        channel_groups(Noisy(nn.Linear(8, 16), nn.Linear(16, 4)), (np.ones((1, 8), np.float32),))


def test_tracing_ends_when_its_time_is_up() -> None:
    specimen = SPECIMENS["mlp"]
    with pytest.raises(InfeasiblePlan, match="too long"):
        trace(specimen.model(), (torch.from_numpy(specimen.examples[0]),), limit_s=0.0)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_importances_have_a_mean_of_one(kind: Any) -> None:
    specimen = SPECIMENS["dense"]
    names = {group.name: kind for group in channel_groups(specimen.model(), specimen.examples)}
    for scores in importances(specimen.model(), specimen.examples, names).values():
        assert np.mean(scores) == pytest.approx(1)
        assert min(scores) > 0
