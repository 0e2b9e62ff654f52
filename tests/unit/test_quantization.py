"""Quantization: which nodes become integers, what is offered, what is refused."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from autocompress.errors import InfeasiblePlan
from autocompress.formats.onnx_export import export
from autocompress.formats.onnx_runtime import predictor
from autocompress.graph.inspect import used_layers
from autocompress.graph.view import Layer, LayerView
from autocompress.methods.quantization import Quantization
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, Knob, MethodSpace
from tests.conftest import SPECIMENS, Specimen, context_of

INTEGER = {"QLinearConv", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}


def quantized(specimen: Specimen, profile: HardwareProfile, **precisions: str) -> onnx.ModelProto:
    settings = {layer.replace("__", "."): {"precision": value} for layer, value in precisions.items()}
    model = specimen.model()
    context = context_of(specimen, profile)
    return Quantization().lower(export(Quantization()(model, settings, context), specimen.examples), settings, context)


def layers_of(specimen: Specimen, *kinds: str) -> list[str]:
    return [layer.name for layer in used_layers(specimen.model(), specimen.examples) if layer.kind in kinds]


def ran(graph: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operators of the graph as ONNX Runtime optimized it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def float_weights(graph: onnx.ModelProto) -> list[str]:
    """Float initializers with more than one axis: weights that were left."""
    return [t.name for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1]


@pytest.mark.parametrize("name", sorted(SPECIMENS))
def test_all_static_layers_run_on_integer_kernels(name: str, profile: HardwareProfile, tmp_path: Path) -> None:
    specimen = SPECIMENS[name]
    chosen = layers_of(specimen, "conv", "linear", "attention")
    graph = quantized(specimen, profile, **dict.fromkeys(chosen, "int8"))
    kinds = ran(graph, tmp_path)
    assert sum(kinds[kind] for kind in INTEGER) >= len(chosen)
    assert kinds["Conv"] == kinds["Gemm"] == kinds["FusedGemm"] == 0
    if name != "recurrent":
        assert float_weights(graph) == []


def test_sums_and_means_between_integer_convolutions_are_integer_too(profile: HardwareProfile, tmp_path: Path) -> None:
    specimen = SPECIMENS["residual"]
    kinds = ran(quantized(specimen, profile, **dict.fromkeys(layers_of(specimen, "conv", "linear"), "int8")), tmp_path)
    assert kinds["QLinearAdd"] == 2
    assert kinds["QLinearGlobalAveragePool"] == 1
    assert kinds["Add"] == kinds["Relu"] == kinds["ReduceMean"] == 0


@pytest.mark.parametrize("name", ["attention", "mlp", "residual"])
def test_all_dynamic_layers_run_on_integer_kernels(name: str, profile: HardwareProfile, tmp_path: Path) -> None:
    specimen = SPECIMENS[name]
    chosen = layers_of(specimen, "linear", "attention")
    graph = quantized(specimen, profile, **dict.fromkeys(chosen, "dynamic_int8"))
    attention = len(layers_of(specimen, "attention"))
    assert ran(graph, tmp_path)["DynamicQuantizeMatMul"] == len(chosen) + attention


def test_static_dynamic_and_float_layers_live_in_one_graph(profile: HardwareProfile, tmp_path: Path) -> None:
    specimen = SPECIMENS["mlp"]
    kinds = ran(quantized(specimen, profile, **{"0": "int8", "2": "dynamic_int8"}), tmp_path)
    assert (kinds["QGemm"], kinds["DynamicQuantizeMatMul"], kinds["Gemm"]) == (1, 1, 1)


def test_a_single_static_layer_before_an_activation_is_integer(profile: HardwareProfile, tmp_path: Path) -> None:
    kinds = ran(quantized(SPECIMENS["mlp"], profile, **{"0": "int8"}), tmp_path)
    assert kinds["QGemm"] == 1


def test_layers_that_were_not_chosen_keep_their_float_weights(profile: HardwareProfile) -> None:
    graph = quantized(SPECIMENS["residual"], profile, layers__1__conv1="int8")
    assert len(float_weights(graph)) == len(layers_of(SPECIMENS["residual"], "conv", "linear")) - 1


def test_logits_are_not_rounded(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["mlp"]
    graph = quantized(specimen, profile, **dict.fromkeys(layers_of(specimen, "linear"), "int8"))
    outputs = predictor(graph)((specimen.samples(512),))
    assert len(np.unique(outputs)) > 1024


def test_a_narrow_product_keeps_weights_within_seven_bits() -> None:
    profile = HardwareProfile("avx2", reduce_range=True)
    for precision in ("int8", "dynamic_int8"):
        graph = quantized(SPECIMENS["mlp"], profile, **{"0": precision})
        weights = [
            onnx.numpy_helper.to_array(t) for t in graph.graph.initializer if t.data_type == onnx.TensorProto.INT8
        ]
        assert 32 <= max(np.abs(weight.astype(int)).max() for weight in weights) <= 64


def test_a_layer_called_twice_is_integer_both_times(profile: HardwareProfile, tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.fc(self.fc(value).relu())

    for precision, kind in (("int8", "QGemm"), ("dynamic_int8", "DynamicQuantizeMatMul")):
        graph = quantized(Specimen(Twice, (8,)), profile, fc=precision)
        assert ran(graph, tmp_path)[kind] == 2


def test_nothing_is_printed_and_nothing_left_behind(
    profile: HardwareProfile, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    specimen = SPECIMENS["residual"]
    with caplog.at_level(logging.WARNING):
        graph = quantized(specimen, profile, **dict.fromkeys(layers_of(specimen, "conv", "linear"), "int8"))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert not graph.metadata_props
    assert not graph.graph.value_info
    used = {name for node in graph.graph.node for name in node.input}
    assert all(tensor.name in used for tensor in graph.graph.initializer)


def test_quantized_files_are_about_a_quarter(profile: HardwareProfile) -> None:
    model = Specimen(lambda: nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)), (256,))
    size = export(model.model(), model.examples).ByteSize()
    for precision in ("int8", "dynamic_int8"):
        assert quantized(model, profile, **{"0": precision, "2": precision}).ByteSize() < 0.28 * size


@pytest.mark.parametrize(
    ("layer", "precision", "reason"),
    [
        ("stem", "dynamic_int8", "expected int8"),
        ("stem", "fp32", "expected int8"),
        ("fc", "int4", "expected dynamic_int8 or int8"),
        ("layers.0.bn1", "int8", "expected a layer"),
    ],
)
def test_a_precision_that_a_layer_can_not_have_is_refused(
    layer: str, precision: str, reason: str, profile: HardwareProfile
) -> None:
    specimen = SPECIMENS["residual"]
    with pytest.raises(InfeasiblePlan, match=reason):
        Quantization()(specimen.model(), {layer: {"precision": precision}}, context_of(specimen, profile))


def test_a_recurrent_layer_is_refused(profile: HardwareProfile) -> None:
    with pytest.raises(InfeasiblePlan, match="lstm"):
        quantized(SPECIMENS["recurrent"], profile, lstm="int8")


def test_a_transposed_convolution_is_refused_for_want_of_a_kernel(profile: HardwareProfile) -> None:
    specimen = Specimen(lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Flatten()), (3, 4, 4))
    with pytest.raises(InfeasiblePlan, match="no kernel for ConvTranspose"):
        quantized(specimen, profile, **{"0": "int8"})


def test_a_layer_missing_from_the_graph_is_refused(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["mlp"]
    graph = export(specimen.model(), specimen.examples)
    with pytest.raises(InfeasiblePlan, match="no node of the exported graph"):
        Quantization().lower(graph, {"head": {"precision": "int8"}}, context_of(specimen, profile))


def offered(kernels: dict[str, tuple[str, ...]], space: MethodSpace) -> dict[str, Knob]:
    view = LayerView(
        "original",
        tuple(Layer(kind, kind, 1, 1) for kind in ("conv", "linear", "attention", "recurrent")),
        (),
    )
    asked: dict[str, Knob] = {}
    profile = HardwareProfile("machine", kernels=kernels)  # type: ignore[arg-type]
    Quantization().propose(view, lambda name, knob: asked.setdefault(name, knob) and "fp32", space, profile)
    return {name.split("/")[1]: knob for name, knob in asked.items()}


def test_only_what_is_fast_on_the_machine_is_offered() -> None:
    both = ("int8", "dynamic_int8")
    assert offered({"conv": both, "linear": both}, MethodSpace()) == {
        "conv": Choice(("fp32", "int8")),
        "linear": Choice(("fp32", "int8", "dynamic_int8")),
        "attention": Choice(("fp32", "int8", "dynamic_int8")),
    }
    assert offered({"linear": ("dynamic_int8",)}, MethodSpace(layers=("lin*",))) == {
        "linear": Choice(("fp32", "dynamic_int8"))
    }
    assert offered({}, MethodSpace()) == {}


def test_only_what_the_space_names_is_offered() -> None:
    space = MethodSpace({"precision": ("fp32", "int8")})
    assert offered({"linear": ("int8", "dynamic_int8")}, space)["linear"] == Choice(("fp32", "int8"))
