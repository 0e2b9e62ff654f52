"""What every weight encoding promises, on every kind of tensor."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autocompress.data import Array
from autocompress.formats.encodings import ENCODINGS, Encoded
from autocompress.formats.encodings._kernels import optimized_operators
from autocompress.formats.onnx_runtime import predictor

OPSETS = (20, 21, 25)
DTYPES = (np.float32, np.float16, np.int8, np.uint8)
SPECIAL = (0.0, -0.0, 1e-45, 6e-8, 65504.0, 65520.0, np.inf, -np.inf)


def constants(rng: np.random.Generator, size: int, dtype: type) -> Array:
    return np.full(size, rng.integers(0, 100), dtype)


def few_values(rng: np.random.Generator, size: int, dtype: type) -> Array:
    book = rng.standard_normal(int(rng.choice([2, 3, 4, 7, 16, 40, 256]))) * 30
    return book.clip(0, 100).astype(dtype)[rng.integers(0, len(book), size)]


def halves(rng: np.random.Generator, size: int, dtype: type) -> Array:
    return (rng.standard_normal(size) * 20).astype(np.float16).clip(0, 100).astype(dtype)


def mostly_one_value(rng: np.random.Generator, size: int, dtype: type) -> Array:
    values = (rng.standard_normal(size) * 30).clip(0, 100).astype(dtype)
    ground = 0 if issubclass(dtype, np.floating) else 7
    values[rng.random(size) < rng.choice([0.2, 0.5, 0.9, 0.99])] = ground
    return values


def small_integers(rng: np.random.Generator, size: int, dtype: type) -> Array:
    bits = int(rng.integers(1, 8))
    low = -(2 ** (bits - 1)) if dtype == np.int8 else 0
    return rng.integers(low, low + 2**bits, size).astype(dtype)


def anything(rng: np.random.Generator, size: int, dtype: type) -> Array:
    return np.frombuffer(rng.bytes(size * np.dtype(dtype).itemsize), dtype).copy()


def special(rng: np.random.Generator, size: int, dtype: type) -> Array:
    with np.errstate(over="ignore"):
        return rng.choice(SPECIAL if issubclass(dtype, np.floating) else (0, 1), size).astype(dtype)


KINDS = (constants, few_values, halves, mostly_one_value, small_integers, anything, special)


@st.composite
def tensors(draw: st.DrawFn) -> Array:
    shape = draw(st.lists(st.integers(1, 9), min_size=0, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = int(np.prod(shape, dtype=int))
    return draw(st.sampled_from(KINDS))(rng, size, draw(st.sampled_from(DTYPES))).reshape(shape)


def graph_of(encoded: Encoded, tensor: Array, opset: int) -> ModelProto:
    """A model without inputs that gives the decoded tensor."""
    kind = helper.np_dtype_to_tensor_dtype(tensor.dtype)
    output = helper.make_tensor_value_info("w", kind, tensor.shape)
    body = helper.make_graph(encoded.nodes, "decode", [], [output], encoded.initializers)
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(body, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports))


every_encoding = pytest.mark.parametrize("name", sorted(ENCODINGS))


@every_encoding
@given(tensor=tensors(), opset=st.sampled_from(OPSETS))
def test_decoding_gives_every_bit_back(name: str, tensor: Array, opset: int) -> None:
    before = tensor.tobytes()
    encoded = ENCODINGS[name]().encode(tensor, "w", opset)
    assert tensor.tobytes() == before
    if encoded is None:
        return
    assert encoded.opset <= opset
    graph = graph_of(encoded, tensor, opset)
    onnx.checker.check_model(graph, full_check=True)
    decoded = predictor(graph)(())
    assert decoded.dtype == tensor.dtype
    assert decoded.shape == tensor.shape
    assert decoded.tobytes() == before


@every_encoding
@given(tensor=tensors(), opset=st.sampled_from(OPSETS))
def test_the_bytes_foretold_are_those_in_the_file(name: str, tensor: Array, opset: int) -> None:
    encoded = ENCODINGS[name]().encode(tensor, "w", opset)
    if encoded is not None:
        empty = graph_of(Encoded((), ()), tensor, opset).ByteSize()
        assert abs(graph_of(encoded, tensor, opset).ByteSize() - empty - encoded.size_bytes) <= 4


@every_encoding
@given(tensor=tensors(), opset=st.sampled_from(OPSETS))
def test_names_are_unique_and_start_with_that_of_the_tensor(name: str, tensor: Array, opset: int) -> None:
    encoded = ENCODINGS[name]().encode(tensor, "w", opset)
    if encoded is not None:
        made = [one.name for one in encoded.initializers] + [one.output[0] for one in encoded.nodes]
        assert len(set(made)) == len(made)
        assert all(one.startswith("w") for one in made)
        assert encoded.nodes[-1].output[0] == "w"


def suited(name: str, dtype: type) -> Array | None:
    """A convolution's weight (64, 16, 3, 3) that an encoding makes smaller; None for a type it has no use for."""
    rng = np.random.default_rng(0)
    for kind in KINDS:
        tensor = kind(rng, 64 * 16 * 9, dtype).reshape(64, 16, 3, 3)
        encoded = ENCODINGS[name]().encode(tensor, "w", 25)
        if encoded is not None and encoded.size_bytes < tensor.nbytes:
            return tensor
    return None


def convolution(weight: TensorProto | Encoded, dtype: type) -> ModelProto:
    """A float convolution, or one between roundings to 8 bits, with its weight plain or encoded."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16, 8, 8])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64, 6, 6])
    tensors = [weight] if isinstance(weight, TensorProto) else list(weight.initializers)
    nodes = [] if isinstance(weight, TensorProto) else list(weight.nodes)
    nodes += [helper.make_node("Conv", ["x", "w"], ["y"])] if dtype == np.float32 else rounded_convolution()
    tensors += [numpy_helper.from_array(np.array(0.1, np.float32), "s"), numpy_helper.from_array(np.uint8(128), "z")]
    tensors.append(numpy_helper.from_array(np.array(0, dtype), "zw"))
    imports = [helper.make_opsetid("", 25)]
    body = helper.make_graph(nodes, "conv", [image], [output], tensors)
    return helper.make_model(body, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports))


def rounded_convolution() -> list[NodeProto]:
    links = [
        ("QuantizeLinear", ["x", "s", "z"], "xq"),
        ("DequantizeLinear", ["xq", "s", "z"], "xd"),
        ("DequantizeLinear", ["w", "s", "zw"], "wd"),
        ("Conv", ["xd", "wd"], "c"),
        ("QuantizeLinear", ["c", "s", "z"], "cq"),
        ("DequantizeLinear", ["cq", "s", "z"], "y"),
    ]
    return [helper.make_node(operator, inputs, [output]) for operator, inputs, output in links]


@every_encoding
@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8])
def test_the_kernels_are_those_of_the_plain_weight(name: str, dtype: type) -> None:
    tensor = suited(name, dtype)
    if tensor is None:
        return
    wanted = optimized_operators(convolution(numpy_helper.from_array(tensor, "w"), dtype))
    for opset in OPSETS:
        encoded = ENCODINGS[name]().encode(tensor, "w", opset)
        assert encoded is None or optimized_operators(convolution(encoded, dtype)) == wanted
    assert dtype == np.float32 or wanted["com.microsoft.QLinearConv"]


@every_encoding
def test_every_encoding_makes_some_weight_smaller(name: str) -> None:
    assert any(suited(name, dtype) is not None for dtype in DTYPES)
