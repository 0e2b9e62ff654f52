"""Attention written out as linear layers computes what torch's own does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.formats.onnx_export import export
from autocompress.formats.onnx_runtime import predictor
from autocompress.graph.attention import Attention, expand_attention
from autocompress.graph.channel_groups import channel_groups, remove_channels
from tests.conftest import SPECIMENS

VARIANTS: list[dict[str, Any]] = [{}, {"batch_first": True}, {"bias": False}, {"kdim": 6, "vdim": 10}]


def inputs(kdim: int = 16, vdim: int = 16, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Three sequences of four tokens whichever way the first two axes are read."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(4, 4, width, generator=generator) for width in (16, kdim, vdim))
    return query, key, value


def pair(**options: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    original = nn.MultiheadAttention(16, 4, **options).eval()
    if options.get("bias", True):
        nn.init.normal_(original.in_proj_bias)
        nn.init.normal_(original.out_proj.bias)
    return original, expand_attention(copy.deepcopy(original))


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"key_padding_mask": torch.eye(4, dtype=torch.bool)},
        {"attn_mask": torch.ones(4, 4, dtype=torch.bool).triu(1)},
        {"attn_mask": torch.linspace(-1, 1, 256).reshape(16, 4, 4)},
        {"attn_mask": torch.ones(4, 4, dtype=torch.bool).triu(1), "is_causal": True},
    ],
)
def test_every_way_of_calling_gives_the_same(options: dict[str, Any], how: dict[str, Any]) -> None:
    original, expanded = pair(**options)
    for wanted, got in zip(original(*inputs(**options), **how), expanded(*inputs(**options), **how), strict=True):
        assert (wanted is None) == (got is None)
        if wanted is not None:
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_sequences_without_a_batch_axis_are_taken() -> None:
    original, expanded = pair()
    query = inputs()[0][0]
    for wanted, got in zip(original(query, query, query), expanded(query, query, query), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("batch_first", [True, False])
def test_encoder_and_decoder_layers_work_with_it(batch_first: bool) -> None:
    torch.manual_seed(0)
    model = nn.Transformer(16, 2, 1, 1, 32, batch_first=batch_first).eval()
    mask = model.generate_square_subsequent_mask(4)
    source, target, _ = inputs()
    wanted = model(source, target, tgt_mask=mask)
    expand_attention(model)
    with torch.no_grad():
        torch.testing.assert_close(model(source, target, tgt_mask=mask), wanted, atol=1e-5, rtol=1e-4)
    assert not any(isinstance(module, nn.MultiheadAttention) for module in model.modules())


def test_attention_that_appends_to_keys_is_left_alone() -> None:
    model = nn.ModuleList(
        [nn.MultiheadAttention(8, 2, add_bias_kv=True), nn.MultiheadAttention(8, 2, add_zero_attn=True)]
    )
    assert [type(module) for module in expand_attention(model)] == [nn.MultiheadAttention] * 2  # type: ignore[call-overload]


def test_modes_frozen_parameters_and_shared_modules_are_kept() -> None:
    attention = nn.MultiheadAttention(8, 2).eval().requires_grad_(False)
    model = expand_attention(nn.ModuleList([attention, attention]))
    first, second = model.children() if len(list(model.children())) == 2 else (model.get_submodule("0"),) * 2
    assert first is second
    assert isinstance(first, Attention)
    assert not first.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_heads_can_go_and_the_rest_is_exported() -> None:
    specimen = SPECIMENS["attention"]
    model = expand_attention(specimen.model())
    heads = [group for group in channel_groups(model, specimen.examples) if group.kind == "heads"]
    assert [(group.name, group.channels) for group in heads] == [
        (f"encoder.layers.{index}.self_attn.query:heads", 2) for index in range(2)
    ]
    remove_channels(model, specimen.examples, {group.name: [0] for group in heads})
    layer: Any = model.get_submodule("encoder.layers.0.self_attn")
    assert (layer.num_heads, layer.query.out_features, layer.out.in_features) == (1, 8, 8)
    with torch.no_grad():
        wanted = model(torch.from_numpy(specimen.examples[0])).numpy()
    got = predictor(export(model, specimen.examples))(specimen.examples)
    assert np.abs(got - wanted).max() <= 1e-4
