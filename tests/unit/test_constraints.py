"""Constraints: what is put on a weight, trained under and taken off again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from autocompress.graph.codebooks import cluster
from autocompress.graph.constraints import Constraint, constrain, constraints, free_weight, release, users
from autocompress.graph.masks import Mask


class Halved(Constraint):
    """Gives half of the free weight."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Tied(nn.Module):
    """An embedding whose weight is that of the linear layer at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(32, 8)
        self.head = nn.Linear(8, 32)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids))


def weight_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def test_the_layer_sees_the_obeying_weight_and_the_optimizer_the_free_one() -> None:
    layer = nn.Linear(4, 4)
    before = weight_of(layer).detach().clone()
    constrain(layer, Halved())
    constrain(layer, Halved())
    torch.testing.assert_close(weight_of(layer), before / 4)
    assert free_weight(layer).equal(before)
    assert len(list(constraints(layer))) == 2


def test_release_leaves_the_obeying_weight_as_a_plain_parameter() -> None:
    layer = nn.Linear(4, 4)
    layer.weight.requires_grad_(False)
    constrain(layer, Halved())
    wanted = weight_of(layer).clone()
    release(layer)
    assert not parametrize.is_parametrized(layer)
    assert layer.weight.equal(wanted)
    assert isinstance(layer.weight, nn.Parameter)
    assert not layer.weight.requires_grad


def test_a_released_weight_can_be_trained_though_its_free_one_had_another_shape() -> None:
    layer = nn.Linear(16, 16)
    cluster(layer, layer, 2)
    layer(torch.ones(2, 16)).sum().backward()
    release(layer)
    layer(torch.ones(2, 16)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.shape == (16, 16)


def test_release_takes_off_what_the_user_put_on_too() -> None:
    layer = parametrizations.weight_norm(nn.Linear(8, 8))
    wanted = weight_of(layer).detach().clone()
    assert users(layer, layer) == ((layer, "weight"),)
    constrain(layer, Mask(wanted, 32))
    release(layer)
    assert int((weight_of(layer) == 0).sum()) == 32
    assert not parametrize.is_parametrized(layer)


def test_all_users_of_a_tied_weight_are_found() -> None:
    model = Tied()
    assert users(model, model.head) == ((model.words, "weight"), (model.head, "weight"))
    for module in (model.words, model.head):
        constrain(module, Halved())
    assert users(model, model.words) == ((model.words, "weight"), (model.head, "weight"))


@pytest.mark.parametrize("copied", [False, True])
def test_a_tied_weight_stays_tied_through_a_codebook(copied: bool) -> None:
    model = Tied()
    cluster(model, model.head, 3)
    model = copy.deepcopy(model) if copied else model
    assert len(list(constraints(model))) == 1
    model(torch.arange(4)).square().sum().backward()
    assert free_weight(model.words).grad is not None
    release(model)
    assert model.words.weight is model.head.weight
    assert len(model.head.weight.unique()) == 8
