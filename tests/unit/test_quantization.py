"""Quantization: which nodes become integers, what is offered, what is refused."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from autocompress.data import Array, ArraySplit, Batch
from autocompress.errors import InfeasiblePlan
from autocompress.formats.onnx_export import export
from autocompress.formats.onnx_runtime import predictor
from autocompress.graph.constraints import constraints
from autocompress.graph.fake_quantization import INPUT
from autocompress.graph.inspect import used_layers
from autocompress.graph.view import Layer, LayerView
from autocompress.methods import METHODS
from autocompress.methods.quantization import Quantization
from autocompress.plan import Scalar, Settings
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, Knob, MethodSpace, neutral
from tests.conftest import PROFILE, SPECIMENS, Specimen, context_of, normed_net

INTEGER = {"QLinearConv", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}


def quantized(specimen: Specimen, profile: HardwareProfile, **precisions: str) -> onnx.ModelProto:
    settings = {layer.replace("__", "."): {"precision": value} for layer, value in precisions.items()}
    model = specimen.model()
    context = context_of(specimen, profile)
    finished = Quantization().finalize(Quantization()(model, settings, context))
    return Quantization().lower(export(finished, specimen.examples), settings, context)


def layers_of(specimen: Specimen, *kinds: str) -> list[str]:
    layers = used_layers(specimen.model(), specimen.examples)
    return [layer.name for layer in layers if layer.kind in kinds and not layer.transposed]


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
    if name not in (
        "recurrent",
        "unet",
        "two_inputs",
        "tied",
    ):  # an LSTM, transposed convolutions and an embedding stay
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
    outputs = predictor(graph)(specimen.samples(512))
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


def lowered(specimen: Specimen, profile: HardwareProfile, layer: str, **setting: Scalar) -> onnx.ModelProto:
    """The graph of a specimen with one layer quantized, from the model to the export."""
    method, settings, context = Quantization(), {layer: setting}, context_of(specimen, profile)
    model = method.finalize(method(specimen.model(), settings, context))
    method.verify(model, settings)
    return method.lower(export(model, specimen.examples), settings, context)


def integers(graph: onnx.ModelProto) -> list[Array]:
    return [onnx.numpy_helper.to_array(t) for t in graph.graph.initializer if t.data_type == onnx.TensorProto.INT8]


def agreement(graph: onnx.ModelProto, specimen: Specimen) -> float:
    """Largest difference from the float model, as a share of its largest output."""
    samples = specimen.samples(32)
    wanted = predictor(export(specimen.model(), specimen.examples))(samples)
    return float(np.abs(predictor(graph)(samples) - wanted).max() / np.abs(wanted).max())


CONVOLUTIONS = {
    "1d": Specimen(lambda: nn.Sequential(nn.Conv1d(4, 8, 3)), (4, 9)),
    "3d": Specimen(lambda: nn.Sequential(nn.Conv3d(4, 8, 2)), (4, 3, 3, 3)),
    "grouped": Specimen(lambda: nn.Sequential(nn.Conv2d(8, 12, 3, groups=2)), (8, 5, 5)),
    "depthwise": Specimen(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)), (8, 5, 5)),
    "transposed": Specimen(lambda: nn.Sequential(nn.ConvTranspose2d(8, 12, 3, groups=2)), (8, 5, 5)),
}


@pytest.mark.parametrize("name", sorted(CONVOLUTIONS))
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_alone_become_integers_that_are_folded_when_the_file_is_loaded(
    name: str, symmetric: bool, profile: HardwareProfile, tmp_path: Path
) -> None:
    specimen = CONVOLUTIONS[name]
    graph = lowered(specimen, profile, "0", precision="weight_only", symmetric=symmetric)
    assert agreement(graph, specimen) < 0.02
    assert len(integers(graph)) == 1
    kinds = ran(graph, tmp_path)
    assert kinds["Cast"] == kinds["Mul"] == kinds["Sub"] == 0
    assert float_weights(graph) == [] or all("scales" in one or "zeros" in one for one in float_weights(graph))


@pytest.mark.parametrize("name", sorted(CONVOLUTIONS.keys() - {"transposed"}))
def test_convolutions_of_all_kinds_run_on_integers(name: str, profile: HardwareProfile, tmp_path: Path) -> None:
    graph = lowered(CONVOLUTIONS[name], profile, "0", precision="int8")
    assert ran(graph, tmp_path)["QLinearConv"] == 1
    assert agreement(graph, CONVOLUTIONS[name]) < 0.05


@pytest.mark.parametrize("precision", ["weight_only", "int8", "dynamic_int8"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_few_bits_give_few_integers_on_the_same_kernels(
    precision: str, bits: int, profile: HardwareProfile, tmp_path: Path
) -> None:
    graph = lowered(SPECIMENS["mlp"], profile, "2", precision=precision, bits=bits)
    (weight,) = (one for one in integers(graph) if one.ndim == 2)
    assert -(2 ** (bits - 1)) <= weight.min() < weight.max() <= 2 ** (bits - 1) - 1
    kind = {"weight_only": "FusedGemm", "int8": "QGemm", "dynamic_int8": "DynamicQuantizeMatMul"}[precision]
    assert ran(graph, tmp_path)[kind] >= 1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_blocks_of_few_bits_compute_what_training_saw(bits: int, profile: HardwareProfile, tmp_path: Path) -> None:
    specimen = Specimen(lambda: nn.Sequential(nn.Linear(96, 24)), (96,))
    method, settings = Quantization(), {"0": {"precision": "nbits", "bits": bits}}
    model = method.finalize(method(specimen.model(), settings, context_of(specimen, profile)))
    graph = method.lower(export(model, specimen.examples), settings, context_of(specimen, profile))
    samples = specimen.samples(64)
    wanted = specimen.outputs(model, 64).detach().numpy()
    assert np.abs(predictor(graph)(samples) - wanted).max() < 0.02 * np.abs(wanted).max()
    assert ran(graph, tmp_path)["MatMulNBits"] == 1


def test_an_embedding_is_a_table_of_integers(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["two_inputs"]
    graph = lowered(specimen, profile, "words", precision="weight_only")
    assert [one.shape for one in integers(graph)] == [(24, 16)]
    assert agreement(graph, specimen) < 0.02


def test_sixteen_bit_weights_are_numbers_that_sixteen_bits_hold(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["residual"]
    graph = lowered(specimen, profile, "layers.1.conv1", precision="fp16")
    weight = next(onnx.numpy_helper.to_array(t) for t in graph.graph.initializer if t.name.endswith("half"))
    assert weight.dtype == np.float32
    assert np.array_equal(weight, weight.astype(np.float16))
    assert 0 < agreement(graph, specimen) < 1e-3


def test_a_weight_too_large_for_sixteen_bits_is_refused(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["mlp"]
    model = specimen.model()
    with torch.no_grad():
        model[0].weight[0, 0] = 1e6
    with pytest.raises(InfeasiblePlan, match="65504"):
        Quantization().lower(
            export(model, specimen.examples), {"0": {"precision": "fp16"}}, context_of(specimen, profile)
        )


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy", "mse"])
def test_every_calibration_gives_a_graph_that_works(calibration: str, profile: HardwareProfile) -> None:
    specimen = SPECIMENS["depthwise"]
    for layer in ("0.0", "2.0"):
        assert agreement(lowered(specimen, profile, layer, precision="int8", calibration=calibration), specimen) < 0.15


def test_several_inputs_are_calibrated_together(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["two_inputs"]
    settings = {name: {"precision": "int8"} for name in layers_of(specimen, "conv", "linear")}
    data = Batch(specimen.samples(32), np.zeros(32, np.int64))
    context = replace(context_of(specimen, profile), calibration=ArraySplit(data))
    graph = Quantization().lower(export(specimen.model(), specimen.examples), settings, context)
    assert agreement(graph, specimen) < 0.1


@pytest.mark.parametrize("precision", ["int8", "weight_only", "dynamic_int8"])
def test_a_codebook_stays_one_and_zeros_stay_zero(precision: str, profile: HardwareProfile) -> None:
    specimen = Specimen(lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)), (64,))
    model, rng = specimen.model(), np.random.default_rng(0)
    weight = np.append(0, rng.standard_normal(15)).astype(np.float32)[rng.integers(0, 16, (32, 64))]
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(weight))
    settings, context = {"0": {"precision": precision}}, context_of(specimen, profile)
    graph = Quantization().lower(export(model, specimen.examples), settings, context)
    (found,) = (one for one in integers(graph) if one.size == 32 * 64)
    assert len(np.unique(found)) <= 16
    assert np.array_equal(
        found.reshape(-1) == 0, (weight.T if precision == "dynamic_int8" else weight).reshape(-1) == 0
    )


def test_integers_of_a_grid_are_found_again_exactly(profile: HardwareProfile) -> None:
    rng = np.random.default_rng(0)
    steps = rng.integers(-8, 8, (32, 64)).astype(np.int8)
    scales = np.exp(rng.uniform(-4, 0, (32, 1))).astype(np.float32)
    specimen = Specimen(lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU()), (64,))
    model = specimen.model()
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(steps * scales))
    settings = {"0": {"precision": "int8", "bits": 4}}
    graph = Quantization().lower(export(model, specimen.examples), settings, context_of(specimen, profile))
    assert any(np.array_equal(one, steps) for one in integers(graph))


def test_a_weight_read_twice_is_stored_once(profile: HardwareProfile) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.fc(self.fc(value).relu())

    for precision in ("weight_only", "dynamic_int8", "fp16"):
        graph = lowered(Specimen(Tied, (8,)), profile, "fc", precision=precision)
        assert sum(one.dims == [8, 8] for one in graph.graph.initializer) == 1


@pytest.mark.parametrize(
    ("setting", "trained"),
    [
        ({"precision": "int8"}, False),
        ({"precision": "weight_only", "bits": 8}, False),
        ({"precision": "fp16"}, False),
        ({"precision": "int8", "bits": 4}, True),
        ({"precision": "dynamic_int8", "scales": "learned"}, True),
    ],
)
def test_what_is_trained_needs_recovery(setting: dict[str, Scalar], trained: bool, profile: HardwareProfile) -> None:
    assert Quantization().needs_recovery({"2": setting}) is trained
    model = Quantization()(SPECIMENS["mlp"].model(), {"2": setting}, context_of(SPECIMENS["mlp"], profile))
    assert bool(list(constraints(model))) is trained


def test_a_model_whose_weights_left_their_grid_is_found_out(profile: HardwareProfile) -> None:
    with pytest.raises(InfeasiblePlan, match="different weights share a scale"):
        Quantization().verify(SPECIMENS["mlp"].model(), {"2": {"precision": "int8", "bits": 4}})


@pytest.mark.parametrize(
    ("layer", "setting", "reason"),
    [
        ("0", {"precision": "int8", "bits": 9}, "bits 9; expected"),
        ("0", {"precision": "int8", "bits": 4.0}, "bits 4.0; expected"),
        ("0", {"precision": "int8", "symmetric": False}, "means nothing to precision 'int8'"),
        ("0", {"precision": "fp16", "bits": 4}, "means nothing to precision 'fp16'"),
        ("0", {"precision": "weight_only", "calibration": "mse"}, "means nothing"),
        ("0", {"precision": "int8", "block_size": 32}, "choose nbits"),
        ("2", {"precision": "nbits", "bits": 3}, "bits 3; expected"),
        ("0", {"precision": "nbits"}, "block_size 32 does not divide its 8 inputs"),
        ("0", {"precision": "int8", "scales": "guessed"}, "expected observed"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    layer: str, setting: dict[str, Scalar], reason: str, profile: HardwareProfile
) -> None:
    with pytest.raises(InfeasiblePlan, match=reason):
        lowered(SPECIMENS["mlp"], profile, layer, **setting)


@pytest.mark.parametrize(
    ("layer", "precision", "reason"),
    [
        ("stem", "dynamic_int8", "expected fp16 or int8 or weight_only"),
        ("stem", "nbits", "expected fp16 or int8 or weight_only"),
        ("stem", "fp32", "expected fp16 or int8 or weight_only"),
        ("fc", "int4", "expected dynamic_int8 or fp16 or int8 or nbits or weight_only"),
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
    context, settings = context_of(specimen, profile), {"0": {"precision": "int8"}}
    with pytest.raises(InfeasiblePlan, match="expected fp16 or weight_only"):
        Quantization()(specimen.model(), settings, context)
    with pytest.raises(InfeasiblePlan, match="no kernel for ConvTranspose"):
        Quantization().lower(export(specimen.model(), specimen.examples), settings, context)


def test_a_layer_missing_from_the_graph_is_refused(profile: HardwareProfile) -> None:
    specimen = SPECIMENS["mlp"]
    graph = export(specimen.model(), specimen.examples)
    with pytest.raises(InfeasiblePlan, match="no node of the exported graph"):
        Quantization().lower(graph, {"head": {"precision": "int8"}}, context_of(specimen, profile))


def offered(kernels: dict[str, tuple[str, ...]], space: MethodSpace) -> dict[str, Knob]:
    view = LayerView(
        "original",
        tuple(Layer(kind, kind, 1, 1) for kind in ("conv", "linear", "attention", "embedding", "recurrent")),
        (),
    )
    asked: dict[str, Knob] = {}
    profile = HardwareProfile("machine", kernels=kernels)  # type: ignore[arg-type]
    Quantization().propose(view, lambda name, knob: asked.setdefault(name, knob) and "fp32", space, profile)
    return {name.split("/")[1]: knob for name, knob in asked.items()}


def test_what_is_faster_or_smaller_on_the_machine_is_offered() -> None:
    both = ("int8", "dynamic_int8")
    assert offered({"conv": both, "linear": both}, MethodSpace()) == {
        "conv": Choice(("fp32", "weight_only", "int8")),
        "linear": Choice(("fp32", "weight_only", "int8", "dynamic_int8")),
        "attention": Choice(("fp32", "weight_only", "int8", "dynamic_int8")),
        "embedding": Choice(("fp32", "weight_only")),
    }
    assert offered({"linear": ("dynamic_int8",)}, MethodSpace(layers=("lin*",))) == {
        "linear": Choice(("fp32", "weight_only", "dynamic_int8"))
    }
    assert offered({}, MethodSpace({"precision": ("fp32", "int8")})) == {}


def test_depthwise_convolutions_and_attention_may_have_kernels_of_their_own() -> None:
    layers = (Layer("deep", "conv", 8, 64, (8, 1, 3, 3), groups=8), Layer("attention", "attention", 64, 64))
    general = {"conv": ("int8",), "linear": ("int8", "dynamic_int8")}
    own = {"depthwise": (), "attention": ("dynamic_int8",)}
    for kernels, deep, attention in (
        (general, ("int8",), ("int8", "dynamic_int8")),
        (general | own, (), ("dynamic_int8",)),
    ):
        asked: dict[str, Knob] = {}
        profile = HardwareProfile("machine", kernels=kernels)  # type: ignore[arg-type]
        Quantization().propose(
            LayerView("original", layers, ()),
            lambda name, knob, asked=asked: asked.setdefault(name, knob) and "fp32",  # type: ignore[misc]
            MethodSpace(),
            profile,
        )
        offers = {name.split("/")[1]: knob for name, knob in asked.items()}
        assert offers["deep"] == Choice(("fp32", "weight_only", *deep))
        assert offers["attention"] == Choice(("fp32", "weight_only", *attention))


def test_only_what_the_space_names_is_offered() -> None:
    space = MethodSpace({"precision": ("fp32", "int8")})
    assert offered({"linear": ("int8", "dynamic_int8")}, space)["linear"] == Choice(("fp32", "int8"))


def chosen(layer: Layer, kernels: tuple[str, ...], space: MethodSpace, **answers: Scalar) -> dict[str, Scalar]:
    """The settings of one layer if its knobs get these answers, the neutral one for others."""
    profile = HardwareProfile("machine", kernels={"conv": kernels, "linear": kernels})  # type: ignore[dict-item]
    view = LayerView("original", (layer,), ())

    def suggest(name: str, knob: Knob) -> Scalar:
        return answers.get(name.split("/")[2], neutral(knob))

    return dict(Quantization().propose(view, suggest, space, profile).get(layer.name, {}))


def test_bits_and_other_parameters_are_asked_where_the_space_names_them() -> None:
    layer, kernels = Layer("fc", "linear", 1, 64, (8, 8)), ("int8",)
    assert chosen(layer, kernels, MethodSpace(), bits=4) == {}
    assert chosen(layer, kernels, MethodSpace(), precision="int8", bits=4) == {"precision": "int8"}
    several = MethodSpace({"bits": (8, 4)})
    assert chosen(layer, kernels, several, precision="int8", bits=4) == {"precision": "int8", "bits": 4}
    assert chosen(layer, kernels, MethodSpace(), precision="int8", scales="learned") == {"precision": "int8"}
    space = MethodSpace({"scales": ("observed", "learned"), "bits": (8,), "calibration": ("mse",)})
    wanted = {"precision": "int8", "scales": "learned", "calibration": "mse"}
    assert chosen(layer, kernels, space, precision="int8", scales="learned", bits=4) == wanted


def test_convolutions_that_are_slower_on_integers_are_not_offered_them() -> None:
    space = MethodSpace({"precision": ("fp32", "int8")})
    for shape, groups, offered_int8 in (
        ((8, 8, 3, 3), 1, True),
        ((8, 1, 3, 3), 8, True),
        ((8, 4, 3, 3), 2, False),
        ((8, 8, 3, 3, 3), 1, False),
    ):
        layer = Layer("conv", "conv", 1, 1, shape, groups)
        assert bool(chosen(layer, ("int8",), space, precision="int8")) is offered_int8


def test_blocks_are_offered_for_products_of_one_row() -> None:
    space = MethodSpace({"precision": ("fp32", "nbits"), "bits": (8, 6, 4)})
    one, many = (Layer("fc", "linear", 1, rows * 64 * 32, (32, 64)) for rows in (1, 16))
    assert chosen(one, ("nbits",), space, precision="nbits", bits=6) == {"precision": "nbits"}
    assert chosen(one, ("nbits",), space, precision="nbits", bits=4) == {"precision": "nbits", "bits": 4}
    assert chosen(many, ("nbits",), space, precision="nbits") == {}


def tied(**settings: dict[str, Scalar]) -> nn.Module:
    """The finished model whose embedding is also its last layer."""
    specimen, method = SPECIMENS["tied"], Quantization()
    return method.finalize(method(specimen.model(), settings, context_of(specimen, PROFILE)))


@pytest.mark.parametrize("name", ["head", "words"])
def test_tied_layers_get_one_grid_whichever_of_them_is_named(name: str) -> None:
    model = tied(**{name: {"precision": "weight_only", "bits": 4}})
    assert model.get_parameter("words.weight") is model.get_parameter("head.weight")
    assert all(len(row.unique()) <= 16 for row in model.get_parameter("head.weight"))


def test_tied_layers_that_want_different_grids_are_refused_before_any_training() -> None:
    four, two = ({"precision": "weight_only", "bits": bits} for bits in (4, 2))
    tied(words=four, head=four)
    with pytest.raises(InfeasiblePlan, match="'head' shares its weight with another one, which has 4 bits"):
        tied(words=four, head=two)


def test_tied_layers_may_store_their_weight_in_different_forms() -> None:
    specimen, method = SPECIMENS["tied"], Quantization()
    settings: Settings = {
        "words": {"precision": "weight_only"},
        "head": {"precision": "weight_only", "granularity": "per_tensor"},
    }
    graph = method.lower(export(specimen.model(), specimen.examples), settings, context_of(specimen, PROFILE))
    onnx.checker.check_model(graph)
    wanted = predictor(export(specimen.model(), specimen.examples))(specimen.samples(16))
    assert np.abs(predictor(graph)(specimen.samples(16)) - wanted).max() < 0.02 * np.abs(wanted).max()


def test_blocks_do_not_break_up_a_codebook() -> None:
    specimen = SPECIMENS["mlp"]
    context = context_of(specimen, PROFILE)
    model = METHODS["clustering"]()(specimen.model(), {"2": {"bits": 3}}, context)
    with pytest.raises(InfeasiblePlan, match="'2' has a codebook, and the scales of nbits"):
        Quantization()(model, {"2": {"precision": "nbits"}}, context)


def test_a_learned_range_reaches_no_farther_than_the_activation_before_it() -> None:
    specimen, method = Specimen(normed_net, (3, 8, 8)), Quantization()
    context = context_of(specimen, PROFILE)
    settings: Settings = {name: {"precision": "int8", "scales": "learned"} for name in ("0", "3", "6")}
    model = method(specimen.model(), settings, context)
    for name in ("3", "6"):
        model.get_submodule(f"{name}.{INPUT}").ratio.data.fill_(2.0)  # type: ignore[union-attr,operator]
    model = method.finalize(model)
    plain = export(model, specimen.examples)
    wanted, got = (predictor(one)(specimen.samples(32)) for one in (plain, method.lower(plain, settings, context)))
    assert np.abs(wanted - got).max() < 0.1 * np.abs(wanted).max()


def test_weights_that_become_floats_at_load_want_no_integer_kernels() -> None:
    for precision, wanted in (("int8", True), ("dynamic_int8", True), ("nbits", True), ("fp16", False)):
        assert Quantization().wants_integer_kernels({"a": {"precision": precision}}) == wanted
    assert not Quantization().wants_integer_kernels({"a": {"precision": "weight_only"}})
