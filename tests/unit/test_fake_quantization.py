"""Quantization-aware training: grids that are held, scales that learn, ranges that reach the graph."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.data import as_split
from autocompress.formats.onnx_export import export
from autocompress.formats.onnx_runtime import predictor
from autocompress.graph.constraints import constraints, release
from autocompress.graph.fake_quantization import (
    INPUT,
    FakeQuantized,
    QuantizedInput,
    learned_step,
    quantize_weights,
)
from autocompress.graph.grids import Layout
from autocompress.methods import Context
from autocompress.methods._qdq import take_ranges
from autocompress.methods.quantization import Quantization
from autocompress.plan import Scalar
from autocompress.profile import HardwareProfile
from tests.conftest import SPECIMENS, Specimen, context_of


def held(model: nn.Module, bits: int, *, learned: bool = False, symmetric: bool = True) -> nn.Module:
    """The model with every weight on a grid."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            quantize_weights(model, name, Layout, bits, symmetric=symmetric, learned=learned)
    return model


def train(model: nn.Module, inputs: Tensor, targets: Tensor, *, steps: int = 30, rate: float = 0.01) -> float:
    """Loss after a few steps of training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model.eval()(inputs), targets))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 8, generator=generator)
    return inputs, (inputs[:, :4] * inputs[:, 4:]).argmax(1)


@given(st.integers(0, 2**16), st.sampled_from([2, 3, 4, 8]))
def test_the_gradients_of_learned_steps_are_those_of_the_paper(seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(50, generator=generator, requires_grad=True)
    scale = torch.tensor(0.1, requires_grad=True)
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    (learned_step(value, scale, (torch.tensor(float(least)), torch.tensor(float(most))), 50)).sum().backward()
    steps = (value / scale).detach()
    of_scale = torch.where(steps <= least, least, torch.where(steps >= most, most, steps.round() - steps))
    wanted = of_scale.sum() / (50 * most) ** 0.5
    assert scale.grad is not None
    assert torch.allclose(scale.grad, wanted, atol=1e-4, rtol=1e-3)
    assert value.grad is not None
    assert torch.equal(value.grad, ((steps >= least) & (steps <= most)).float())


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_there_are_at_most_two_to_the_bits_weights_a_channel_after_training(
    bits: int, symmetric: bool, learned: bool
) -> None:
    model = held(SPECIMENS["mlp"].model(), bits, learned=learned, symmetric=symmetric)
    train(model, *data())
    shown = model[0].weight.detach().clone()
    release(model)
    assert torch.equal(model[0].weight, shown)
    for layer in (model[0], model[2], model[4]):
        assert all(len(row.unique()) <= 2**bits for row in layer.weight)
    assert not list(constraints(model))


def test_learned_scales_are_not_worse_than_observed_ones() -> None:
    losses = {}
    for learned in (False, True):
        torch.manual_seed(0)
        model = SPECIMENS["mlp"].model()
        train(model, *data(), steps=60)
        losses[learned] = train(held(model, 2, learned=learned), *data(), rate=0.003)
    assert losses[True] <= losses[False] * 1.05


def test_observed_scales_follow_the_weights() -> None:
    weight = torch.randn(4, 64)
    constraint = FakeQuantized(weight, Layout(0), 4).train()
    before = constraint.scale.clone()
    constraint(3 * weight)
    assert torch.all(constraint.scale > 1.2 * before)
    constraint.eval()
    settled = constraint.scale.clone()
    constraint(weight)
    assert torch.equal(constraint.scale, settled)


def test_weights_of_a_codebook_share_one_scale() -> None:
    layer = nn.Sequential(nn.Linear(32, 16))
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([-0.5, 0.0, 0.1, 0.7])[torch.randint(4, (16, 32))])
    quantize_weights(layer, "0", Layout, 4, symmetric=True, learned=False)
    assert len(layer[0].weight.unique()) <= 4


def learned_settings(specimen: Specimen, **more: Scalar) -> dict[str, dict[str, Scalar]]:
    names = [name for name, module in specimen.model().named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return {name: {"precision": "int8", "scales": "learned", **more} for name in names}


def test_learned_ranges_reach_the_graph(profile: HardwareProfile) -> None:
    specimen, method = SPECIMENS["mlp"], Quantization()
    settings, context = learned_settings(specimen), context_of(SPECIMENS["mlp"], profile)
    model = method(specimen.model(), settings, context)
    quantizer = model[2].get_submodule(INPUT)
    assert isinstance(quantizer, QuantizedInput)
    with torch.no_grad():
        quantizer.ratio.fill_(0.37)
    graph = method.lower(export(method.finalize(model), specimen.examples), settings, context)
    scales = [float(onnx_scale) for onnx_scale in scalars(graph)]
    assert any(abs(scale - 0.37 * float(quantizer.scale)) < 1e-6 for scale in scales)
    assert all(node.op_type != "Clip" for node in graph.graph.node)


def test_a_range_learned_behind_a_pool_is_that_before_it_too(profile: HardwareProfile) -> None:
    specimen = Specimen(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)
        ),
        (2, 6, 6),
    )
    method, settings, context = Quantization(), learned_settings(specimen), context_of(specimen, profile)
    model = method(specimen.model(), settings, context)
    quantizer = model[4].get_submodule(INPUT)
    assert isinstance(quantizer, QuantizedInput)
    with torch.no_grad():
        quantizer.ratio.fill_(0.5)
    graph = method.lower(export(method.finalize(model), specimen.examples), settings, context)
    assert sum(abs(scale - 0.5 * float(quantizer.scale)) < 1e-7 for scale in scalars(graph)) == 3


def scalars(graph: object) -> list[float]:
    from onnx import numpy_helper

    tensors = graph.graph.initializer  # type: ignore[attr-defined]
    return [float(numpy_helper.to_array(one)) for one in tensors if not one.dims]


def test_layers_that_read_the_same_share_a_range(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["residual"]
    model = Quantization()(specimen.model(), learned_settings(specimen), context_of(specimen, profile))
    block = model.get_submodule("layers.1")
    assert block.get_submodule(f"conv1.{INPUT}") is block.get_submodule(f"short.0.{INPUT}")
    assert block.get_submodule(f"conv1.{INPUT}") is not block.get_submodule(f"conv2.{INPUT}")
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["mlp", "residual", "handwritten"])
def test_the_graph_computes_what_training_saw(name: str, profile: HardwareProfile) -> None:
    """Rounded inputs and weights in torch against the lowered graph: 2 steps of u8 in 99 of 100 outputs."""
    specimen, method = SPECIMENS[name], Quantization()
    samples = specimen.samples(128)
    context = Context(specimen.examples, as_split((samples[0], np.zeros(128, np.int64)), "calibration"), profile)
    settings = learned_settings(specimen, bits=4)
    model = method(specimen.model(), settings, context)
    with torch.no_grad():
        wanted = specimen.outputs(model.eval(), 128).numpy()
    got = predictor(method.lower(export(method.finalize(model), specimen.examples), settings, context))(samples)
    step = np.ptp(wanted) / 255
    assert (np.abs(got - wanted) <= 2 * step).mean() >= 0.99


def test_a_settled_model_is_plain_but_for_the_ends_of_ranges(profile: HardwareProfile) -> None:
    specimen, method = SPECIMENS["mlp"], Quantization()
    model = method(specimen.model(), learned_settings(specimen), context_of(specimen, profile))
    graph = export(method.finalize(model), specimen.examples)
    assert sum(node.op_type == "Clip" for node in graph.graph.node) == 3
    assert len(take_ranges(graph, INPUT)) == 3
    assert {node.op_type for node in graph.graph.node} <= {"Gemm", "Relu", "Constant"}
