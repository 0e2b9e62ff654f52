from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from autocompress.data import Array
from autocompress.formats.compact import compact
from autocompress.formats.encodings import ENCODINGS, encode_weights
from autocompress.formats.encodings import _selection as selection
from autocompress.formats.encodings._kernels import optimized_operators
from autocompress.formats.encodings._opset import CHANGED, NEWEST, OLDEST, newest_opset, opset_of
from autocompress.formats.onnx_export import export
from autocompress.formats.onnx_runtime import predictor
from autocompress.methods import METHODS
from tests.conftest import PROFILE, SPECIMENS, Specimen, context_of

BIG = 256
"""Values from which on a weight of the test models is worth an encoding."""


def codebook(values: int) -> Callable[[Array], Array]:
    def rounded(weight: Array) -> Array:
        book = np.linspace(-1, 1, values, dtype=np.float32) * np.abs(weight).max()
        return book[np.abs(weight[..., None] - book).argmin(-1)]

    return rounded


def sparse(weight: Array) -> Array:
    return np.where(np.abs(weight) < np.quantile(np.abs(weight), 0.9), np.float32(0), weight)


def half(weight: Array) -> Array:
    return weight.astype(np.float16).astype(np.float32)


CHANGES = {"half": half, "codebook16": codebook(16), "codebook4": codebook(4), "codebook7": codebook(7)} | {
    "sparse": sparse
}


def changed(graph: ModelProto, change: Callable[[Array], Array]) -> ModelProto:
    """The graph with other values in its large float weights."""
    graph = copy.deepcopy(graph)
    for tensor in graph.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= BIG:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    return graph


def assert_same_model(encoded: ModelProto, plain: ModelProto, specimen: Specimen) -> None:
    onnx.checker.check_model(encoded, full_check=True)
    assert optimized_operators(encoded) == optimized_operators(plain)
    inputs = specimen.samples(5)
    np.testing.assert_array_equal(predictor(encoded)(inputs), predictor(plain)(inputs))


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_smaller_file_runs_the_same_kernels_and_gives_the_same_bits(specimen: Specimen, change: str) -> None:
    graph = changed(export(specimen.model(), specimen.examples), CHANGES[change])
    before = graph.SerializeToString()
    encoded = encode_weights(graph)
    assert graph.SerializeToString() == before
    assert encoded.ByteSize() < 0.9 * len(before)
    assert_same_model(encoded, graph, specimen)
    assert_same_model(compact(encoded), graph, specimen)


def test_weights_without_a_pattern_stay_as_they_are(specimen: Specimen) -> None:
    graph = export(specimen.model(), specimen.examples)
    encoded = encode_weights(graph)
    assert encoded.ByteSize() <= graph.ByteSize()
    assert_same_model(encoded, graph, specimen)


def quantized(
    specimen: Specimen, precision: str, kinds: tuple[str, ...] = ("conv", "linear", "attention")
) -> ModelProto:
    from autocompress.graph.inspect import used_layers

    model = specimen.model()
    layers = [layer for layer in used_layers(model, specimen.examples) if layer.kind in kinds and not layer.transposed]
    settings = {layer.name: {"precision": precision} for layer in layers}
    method = METHODS["quantization"]()
    return method.lower(export(model, specimen.examples), settings, context_of(specimen, PROFILE))


def narrowed(graph: ModelProto, low: int, high: int) -> ModelProto:
    """The graph with its int8 weights in a small range, as quantization to fewer bits gives them."""
    graph = copy.deepcopy(graph)
    for tensor in graph.graph.initializer:
        if tensor.data_type == TensorProto.INT8:
            values = numpy_helper.to_array(tensor) // max(1, 64 // high)
            tensor.CopyFrom(numpy_helper.from_array(values.clip(low, high), tensor.name))
    return graph


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("precision", ["int8", "dynamic_int8"])
def test_integer_weights_of_few_bits_keep_their_kernels(bits: int, precision: str) -> None:
    specimen = SPECIMENS["residual" if precision == "int8" else "handwritten"]
    kinds = ("conv", "linear", "attention") if precision == "int8" else ("linear",)
    plain = narrowed(quantized(specimen, precision, kinds), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    encoded = encode_weights(plain)
    assert encoded.ByteSize() < plain.ByteSize()
    assert_same_model(encoded, plain, specimen)


def test_scales_zero_points_and_biases_of_integer_layers_stay_plain() -> None:
    plain = quantized(SPECIMENS["residual"], "int8")
    encoded = encode_weights(narrowed(plain, -8, 7))
    made = {output for node in encoded.graph.node for output in node.output if node.op_type == "Cast"}
    parameters = {name for node in plain.graph.node if "Linear" in node.op_type for name in node.input[1:]}
    biases = {tensor.name for tensor in plain.graph.initializer if tensor.data_type == TensorProto.INT32}
    assert made
    assert made.isdisjoint(parameters | biases)


def test_equal_tensors_are_stored_once() -> None:
    graph = export(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)), (np.zeros((1, 16), np.float32),))
    first, second = (tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2)
    second.raw_data = first.raw_data
    encoded = encode_weights(graph)
    assert len([tensor for tensor in encoded.graph.initializer if len(tensor.dims) == 2]) == 1


class TiedLanguageModel(nn.Module):
    """Scores of words by the vectors that words are read as."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(ids)))


def test_a_tied_weight_is_stored_once() -> None:
    graph = export(TiedLanguageModel(), (np.zeros((1, 5), np.int64),))
    encoded = encode_weights(graph)
    assert len([tensor for tensor in encoded.graph.initializer if 50 in tensor.dims]) == 1
    assert optimized_operators(encoded) == optimized_operators(graph)
    ids = np.arange(10).reshape(2, 5)
    np.testing.assert_array_equal(predictor(encoded)((ids,)), predictor(graph)((ids,)))


def packed_product() -> ModelProto:
    """A product with 4-bit weights of a block format, whose bytes are all the same."""
    tensors = [
        numpy_helper.from_array(np.full((32, 2, 16), 0x99, np.uint8), "packed"),
        numpy_helper.from_array(np.ones((32, 2), np.float32), "scales"),
    ]
    node = helper.make_node(
        "MatMulNBits", ["x", "packed", "scales"], ["y"], domain="com.microsoft", K=64, N=32, bits=4, block_size=32
    )
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 64), ("y", 32))
    ]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def test_packed_blocks_stay_as_they_are() -> None:
    graph = packed_product()
    assert encode_weights(graph) is graph


def test_a_graph_is_returned_where_the_runtime_would_run_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    specimen = SPECIMENS["mlp"]
    graph = changed(export(specimen.model(), specimen.examples), half)
    assert encode_weights(graph) is not graph
    monkeypatch.setattr(selection, "_runs_as", lambda graph, wanted, may_be_refused: False)
    assert encode_weights(graph) is graph


@pytest.mark.parametrize(("values", "opset"), [(200, 20), (16, 21), (4, 25)])
def test_the_operator_set_is_raised_only_as_far_as_needed(values: int, opset: int) -> None:
    specimen = SPECIMENS["mlp"]
    graph = changed(export(specimen.model(), specimen.examples), codebook(values))
    assert opset_of(encode_weights(graph)) == opset


def test_an_operator_whose_meaning_changes_keeps_the_operator_set() -> None:
    graph = export(SPECIMENS["mlp"].model(), SPECIMENS["mlp"].examples)
    assert newest_opset(graph) == NEWEST
    graph.graph.node.append(helper.make_node("GroupNormalization", ["a", "b", "c"], ["d"], num_groups=2))
    assert newest_opset(graph) == opset_of(graph)


def test_all_other_operators_only_took_types_and_optional_attributes() -> None:
    names = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain} - CHANGED
    for name in sorted(names):
        if not onnx.defs.has(name, OLDEST):
            continue
        old, new = onnx.defs.get_schema(name, OLDEST), onnx.defs.get_schema(name, NEWEST)
        assert [one.name for one in old.inputs] == [one.name for one in new.inputs][: len(old.inputs)], name
        assert not any(new.attributes[one].required for one in new.attributes.keys() - old.attributes.keys()), name
        assert old.attributes.keys() <= new.attributes.keys(), name


def test_a_graph_with_subgraphs_is_returned_as_it_is() -> None:
    graph = changed(export(SPECIMENS["mlp"].model(), SPECIMENS["mlp"].examples), half)
    inner = helper.make_graph([], "inner", [], [])
    graph.graph.node.append(helper.make_node("If", ["c"], [], then_branch=inner, else_branch=inner))
    assert encode_weights(graph) is graph


def test_the_same_graph_gives_the_same_bytes() -> None:
    graph = changed(export(SPECIMENS["residual"].model(), SPECIMENS["residual"].examples), sparse)
    first, second = (encode_weights(graph).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_names_of_a_graph_are_never_taken() -> None:
    graph = changed(export(SPECIMENS["mlp"].model(), SPECIMENS["mlp"].examples), codebook(16))
    for node in graph.graph.node:
        node.output[:] = [f"w0_{name}" if name != "output" else name for name in node.output]
        node.input[:] = [f"w0_{name}" if name.startswith("/") else name for name in node.input]
    encoded = encode_weights(graph)
    onnx.checker.check_model(encoded, full_check=True)
    assert encoded.ByteSize() < graph.ByteSize()


def test_a_weight_stays_plain_where_little_is_saved() -> None:
    plain = quantized(SPECIMENS["residual"], "int8")
    seven_bits, four_bits = (encode_weights(narrowed(plain, low, -low - 1)) for low in (-64, -8))
    assert not any(node.op_type == "Gather" for node in seven_bits.graph.node)
    assert any(tensor.data_type == TensorProto.INT4 for tensor in four_bits.graph.initializer)


def test_encodings_of_other_packages_have_a_group_of_their_own() -> None:
    assert ENCODINGS.group == "autocompress.encodings"
    assert {"codebook", "constant", "float16", "integers", "sparse"} <= set(ENCODINGS)
