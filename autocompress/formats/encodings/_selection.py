"""Which encoding each weight of a graph is stored in."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from autocompress.data import Array
from autocompress.errors import ConversionError
from autocompress.formats.encodings._base import ENCODINGS, Encoded, Encoding, Writer, bit_patterns, file_bytes, plain
from autocompress.formats.encodings._kernels import optimized_operators
from autocompress.formats.encodings._opset import OLDEST, newest_opset, opset_of, raise_opset
from autocompress.graph.onnx_fields import has_subgraphs, replace_entries

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_Content = tuple[int, tuple[int, ...], bytes]
"""Type, shape and digest of a tensor."""

MIN_BYTES = 64
"""Tensors of fewer bytes are stored as they are."""

MAX_SHARED_BYTES = 1024
"""Parts of encodings up to this size are stored once for all weights that have them."""

MIN_GAIN = 0.15
"""Share of its bytes that an encoding has to save on a tensor: it costs time and memory when the file is loaded.

For an 8-bit weight of 7 used bits, the saving of an eighth doubled both for ResNet-20.
"""

READERS = frozenset(
    (
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU", "RNN", "Add", "Mul", "Sub", "Div"),
        *("Cast", "DequantizeLinear", "MatMulInteger", "ConvInteger", "Transpose", "PRelu", "Where", "Concat"),
        *("Expand", "LayerNormalization", "BatchNormalization", "InstanceNormalization", "Einsum", "Pow"),
    )
)
"""Operators of ONNX that read weights as values like any others; what others read stays plain."""


def encode_weights(graph: ModelProto) -> ModelProto:
    """Store each weight of a graph in the smallest form that changes neither its values nor the kernels that read them.

    Equal tensors are stored once, and one that is another one transposed as that. The operator set is raised if a
    smaller type needs it and every operator means the same there. The result is held against the plain graph: ONNX
    Runtime has to optimize both to the same operators on this machine.

    Args:
        graph: A lowered model; left as it is. One older than operator set 20, or with subgraphs, is not changed.

    Returns:
        A smaller graph, or the one that was given where there is none.

    Raises:
        ConversionError: If ONNX Runtime refuses the graph that was given, or that graph with encoded weights.
    """
    own = opset_of(graph)
    if own < OLDEST or has_subgraphs(graph):
        return graph
    wanted = None
    for opset in sorted({own, newest_opset(graph)}, reverse=True):
        encoded = _encoded(graph, opset)
        if encoded.ByteSize() >= graph.ByteSize():
            break  # an older operator set has no smaller forms
        wanted = wanted or optimized_operators(graph)
        if _runs_as(encoded, wanted, may_be_refused=opset_of(encoded) > own):
            return encoded
    return graph


def _runs_as(graph: ModelProto, wanted: Mapping[str, int], *, may_be_refused: bool) -> bool:
    """True if a graph is optimized to the wanted operators.

    Args:
        graph: An encoded one.
        wanted: Operators of the plain one.
        may_be_refused: True if its operator set was raised, for which this runtime may be too old.

    Raises:
        ConversionError: If ONNX Runtime refuses it though its operator set is that of the plain one.
    """
    try:
        return optimized_operators(graph) == wanted
    except ConversionError:
        if may_be_refused:
            return False
        raise


def _encoded(graph: ModelProto, opset: int) -> ModelProto:
    """The graph with every weight in its smallest form that an operator set allows."""
    graph = copy.deepcopy(graph)
    _store_once(graph)
    weights, fresh = _weights(graph), _fresh_names(graph)
    encodings = [ENCODINGS[name]() for name in ENCODINGS]
    store = _Store(tensor for tensor in graph.graph.initializer if tensor.name not in weights)
    for tensor in graph.graph.initializer:
        if tensor.name in weights:
            store.add(tensor.name, _smallest(tensor, next(fresh), opset, encodings, store))
    replace_entries(graph.graph.initializer, store.tensors)
    replace_entries(graph.graph.node, [*store.nodes, *graph.graph.node])
    raise_opset(graph, store.opset)
    return graph


class _Store:
    """What a graph stores, as one weight after the other comes to it."""

    def __init__(self, tensors: Iterable[TensorProto]) -> None:
        self.tensors = list(tensors)
        self.nodes: list[NodeProto] = []
        self.opset = 0
        self._names = {_content(tensor): tensor.name for tensor in self.tensors if _is_small(tensor)}
        self._matrices: dict[tuple[int, ...], list[tuple[str, Array]]] = {}

    def matrix(self, array: Array) -> str | None:
        """The name of a matrix that was added and has these values, if there is one."""
        alike = self._matrices.get(array.shape, ())
        return next((name for name, other in alike if _same_bits(array, other)), None)

    def growth(self, encoded: Encoded) -> int:
        """Bytes that something adds to the file; tensors that are stored already add none."""
        tensors = [tensor for tensor in encoded.initializers if self._known(tensor) is None]
        return file_bytes((*tensors, *encoded.nodes))

    def add(self, name: str, choice: tuple[Encoded, Array]) -> None:
        """Store a weight under its name."""
        encoded, array = choice
        if array.ndim == 2:
            self._matrices.setdefault(array.shape, []).append((name, array))
        if not encoded.nodes:
            encoded.initializers[0].name = name
            self.tensors += encoded.initializers
            return
        renamed = {}
        for tensor in encoded.initializers:
            known = self._known(tensor)
            if known is None:
                self.tensors.append(tensor)
                if _is_small(tensor):
                    self._names[_content(tensor)] = tensor.name
            renamed[tensor.name] = known or tensor.name
        for node in encoded.nodes:
            node.input[:] = [renamed.get(value, value) for value in node.input]
        encoded.nodes[-1].output[0] = name
        self.nodes += encoded.nodes
        self.opset = max(self.opset, encoded.opset)

    def _known(self, tensor: TensorProto) -> str | None:
        """The name of an equal tensor that is stored already; large ones are never equal, and slow to compare."""
        return self._names.get(_content(tensor)) if _is_small(tensor) else None


def _is_small(tensor: TensorProto) -> bool:
    return bool(tensor.ByteSize() <= MAX_SHARED_BYTES)


def _same_bits(one: Array, other: Array) -> bool:
    if one.dtype != other.dtype or not np.array_equal(bit_patterns(one[:1]), bit_patterns(other[:1])):
        return False
    return np.array_equal(bit_patterns(one), bit_patterns(other))


def _smallest(
    tensor: TensorProto, name: str, opset: int, encodings: Sequence[Encoding], store: _Store
) -> tuple[Encoded, Array]:
    """A weight in the form that adds the fewest bytes to what is stored, and its values."""
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)
    as_it_is = plain(array, name)
    found = [encoding.encode(array, name, opset) for encoding in encodings]
    other = store.matrix(array.T) if array.ndim == 2 else None
    if other is not None:
        found.append(_transposed(other, name))
    best = min((one for one in found if one is not None), key=store.growth, default=as_it_is)
    return (best if store.growth(best) <= (1 - MIN_GAIN) * as_it_is.size_bytes else as_it_is), array


def _transposed(other: str, name: str) -> Encoded:
    """A matrix as another one transposed, as when an embedding is also the last layer."""
    writer = Writer(name)
    writer.apply("Transpose", other, perm=(1, 0))
    return writer.finish()


def _weights(graph: ModelProto) -> set[str]:
    """Names of the initializers that may be encoded: read as values only, and of a type that encodings take."""
    body = graph.graph
    fixed = {value.name for value in (*body.input, *body.output)}
    for node in body.node:
        known = node.domain in ("", "ai.onnx") and node.op_type in READERS
        fixed.update(node.input[1:] if known and node.op_type == "DequantizeLinear" else () if known else node.input)
    return {
        tensor.name
        for tensor in body.initializer
        if tensor.name not in fixed and tensor.data_type in _types() and tensor.ByteSize() >= MIN_BYTES
    }


def _types() -> tuple[int, ...]:
    from onnx import TensorProto

    return TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8


def _store_once(graph: ModelProto) -> None:
    """Have all readers of equal tensors read one of them, in place."""
    body = graph.graph
    fixed = {value.name for value in (*body.input, *body.output)}
    first: dict[_Content, str] = {}
    names = {one.name: first.setdefault(_content(one), one.name) for one in body.initializer if one.name not in fixed}
    for node in body.node:
        node.input[:] = [names.get(value, value) for value in node.input]
    replace_entries(body.initializer, [one for one in body.initializer if names.get(one.name, one.name) == one.name])


def _content(tensor: TensorProto) -> _Content:
    """What makes two tensors the same but for their names."""
    from onnx import numpy_helper

    data = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
    return tensor.data_type, tuple(tensor.dims), hashlib.sha256(data).digest()


def _fresh_names(graph: ModelProto) -> Iterator[str]:
    """Short names that no value of a graph starts with."""
    body = graph.graph
    taken = {value for node in body.node for value in (*node.input, *node.output)}
    taken |= {value.name for value in (*body.input, *body.output, *body.initializer)}
    prefix = next(f"w{'_' * length}" for length in itertools.count() if not _starts(taken, f"w{'_' * length}"))
    return (f"{prefix}{number}_" for number in itertools.count())


def _starts(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
