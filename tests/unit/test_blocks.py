"""Residual blocks: what is one, and how it is dropped."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import InfeasiblePlan
from autocompress.graph.blocks import Dropped, drop_blocks, residual_blocks
from autocompress.graph.inspect import layer_view, used_layers
from autocompress.graph.running import outputs
from tests.conftest import SPECIMENS

EXAMPLES = (np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32),)


def names(*modules: nn.Module) -> list[str]:
    return [block.name for block in residual_blocks(nn.Sequential(*modules), EXAMPLES)]


class Adding(nn.Module):
    """Something of the input added to it, with what a subclass does before and after."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, value: Tensor) -> Any:
        return value + self.inner(self.norm(value))


class AfterNorm(Adding):
    def forward(self, value: Tensor) -> Tensor:
        return self.norm(value + self.inner(value))


class InPlace(Adding):
    def forward(self, value: Tensor) -> Tensor:
        value = torch.relu_(value)
        return self.norm(self.inner(value)).add_(value)


class Pair(Adding):
    """Gives a tuple, as layers with a cache do."""

    def forward(self, value: Tensor) -> tuple[Tensor, None]:
        return super().forward(value), None


class WithScores(Adding):
    """Gives another tensor that somebody may read."""

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(value), value.mean()


class Gate(Adding):
    def forward(self, value: Tensor) -> Tensor:
        return value * torch.sigmoid(self.inner(value))


class Position(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 8))

    def forward(self, value: Tensor) -> Tensor:
        return value + self.table


class Mixing(Adding):
    """The way of the input goes through a product."""

    def forward(self, value: Tensor) -> Tensor:
        value = self.norm(value) @ torch.ones(8, 8)
        return value + self.inner(value)


class First(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, value: Tensor) -> Tensor:
        first: Tensor = self.block(value)[0]
        return first


class Outer(Adding):
    """A block of which one half is a block."""

    def __init__(self) -> None:
        super().__init__()
        self.before = Adding()

    def forward(self, value: Tensor) -> Tensor:
        return super().forward(self.before(value))


class Aliased(nn.Module):
    """Calls its first block by another name than the first."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Adding(), Adding())
        self.first = self.blocks[0]

    def forward(self, value: Tensor) -> Any:
        return self.blocks[1](self.first(value))


class Keyword(nn.Module):
    """Calls its layers by keyword, with a mask, and asks them how they are made."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3)]
        self.layers = nn.ModuleList(layers)

    def forward(self, value: Tensor) -> Tensor:
        for layer in self.layers:
            assert layer.self_attn.num_heads == 2  # type: ignore[union-attr]
            value = layer(src=value, src_mask=torch.zeros(3, 3))
        return value


def test_an_addition_to_the_input_makes_a_block_whatever_follows() -> None:
    assert names(Adding(), AfterNorm(), InPlace(), First(Pair())) == ["0", "1", "2", "3.block"]


@pytest.mark.parametrize("other", [Gate, Position, Mixing, lambda: nn.Linear(8, 8)])
def test_what_does_not_add_to_its_input_is_none(other: Any) -> None:
    assert names(Adding(), other(), Adding()) == ["0", "2"]


def test_a_chain_of_blocks_is_none_itself() -> None:
    assert names(nn.Sequential(nn.Sequential(Adding(), Adding()), Adding())) == ["0.0.0", "0.0.1", "0.1"]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, nn.LayerNorm(8), enable_nested_tensor=False)
    assert names(encoder) == ["0.layers.0", "0.layers.1"]


def test_a_block_inside_another_is_dropped_with_it() -> None:
    assert names(Outer(), Adding()) == ["0", "1"]


def test_a_block_that_gives_more_than_the_sum_is_dropped_by_what_uses_the_sum_alone() -> None:
    assert names(First(WithScores()), Adding()) == ["0", "1"]


def test_a_block_that_is_called_twice_is_left_out() -> None:
    twice = Adding()
    assert names(Adding(), twice, twice) == ["0"]


def test_a_block_whose_size_changes_is_left_out() -> None:
    view = layer_view(SPECIMENS["residual"].model(), SPECIMENS["residual"].examples)
    assert [block.name for block in view.blocks] == ["layers.0"]


def test_a_block_counts_what_is_in_it() -> None:
    specimen = SPECIMENS["residual"]
    (block,) = residual_blocks(specimen.model(), specimen.examples)
    macs = {layer.name: layer.macs for layer in used_layers(specimen.model(), specimen.examples)}
    assert block.layers == ("layers.0.conv1", "layers.0.conv2")
    assert block.macs == macs["layers.0.conv1"] + macs["layers.0.conv2"]
    assert block.parameters == sum(p.numel() for p in specimen.model().get_submodule("layers.0").parameters())


def test_the_model_is_left_as_it_is() -> None:
    model = SPECIMENS["attention"].model().train()
    next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    residual_blocks(model, SPECIMENS["attention"].examples)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert not next(model.parameters()).requires_grad


def test_a_model_that_has_no_gradients_is_refused_with_the_reason() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, value: Tensor) -> Tensor:
            return torch.from_numpy(self.inner(value).numpy())

    with pytest.raises(InfeasiblePlan, match=r"RuntimeError.*leave layer drop out"):
        residual_blocks(Failing(), EXAMPLES)


@pytest.mark.parametrize("dropped", [["layers.0"], ["layers.1", "layers.2"]])
def test_without_blocks_a_model_gives_what_the_others_give(dropped: list[str]) -> None:
    model = Keyword().eval()
    fewer = copy.deepcopy(model)
    fewer.layers = nn.ModuleList(
        layer
        for name, layer in model.named_modules()
        if name.startswith("layers.") and name.count(".") == 1 and name not in dropped
    )
    wanted = outputs(fewer, EXAMPLES)[0]
    drop_blocks(model, EXAMPLES, dropped)
    assert torch.equal(outputs(model, EXAMPLES)[0], wanted)


def test_a_dropped_block_gives_its_input_in_the_form_of_its_output() -> None:
    model = nn.Sequential(First(Pair()), First(Pair()))
    drop_blocks(model, EXAMPLES, ["0.block"])
    value = torch.ones(1, 8)
    assert model[0].block(value) == (value, None)


def test_a_dropped_block_has_no_weights_but_still_tells_how_it_was_made() -> None:
    model = Keyword()
    drop_blocks(model, EXAMPLES, ["layers.1"])
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        dropped = one.layers[1]
        assert isinstance(dropped, Dropped)
        assert list(dropped.modules()) == [dropped]
        assert dropped.linear1.out_features == 16
        assert dropped.linear1.weight.is_meta
        assert not hasattr(dropped, "no_such_thing")
        assert outputs(one, EXAMPLES)[0].shape == (2, 3, 8)


def test_a_block_is_dropped_under_all_of_its_names() -> None:
    model = Aliased()
    value = torch.ones(1, 3, 8)
    wanted = model.blocks[1](value)
    drop_blocks(model, EXAMPLES, ["blocks.0"])
    assert torch.equal(model(value), wanted)


@pytest.mark.parametrize(
    ("dropped", "reason"),
    [
        (["layers.0", "layers.1", "layers.2"], "keep at least one"),
        (["layers.3"], "no residual block 'layers.3'"),
        (["layers.0.linear1"], "no residual block"),
    ],
)
def test_what_can_not_be_dropped_is_refused(dropped: list[str], reason: str) -> None:
    with pytest.raises(InfeasiblePlan, match=reason):
        drop_blocks(Keyword(), EXAMPLES, dropped)
