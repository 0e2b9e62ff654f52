"""Which nodes of an exported graph hold the weights of which layer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

FLOAT = 1
"""`TensorProto.FLOAT`, written out so that this module needs no ONNX."""

WEIGHT_INPUTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
"""Operators that read the weight of a layer, with the place of the weight among their inputs."""

_REPEAT = re.compile(r"_\d+$")


def weight_nodes(graph: ModelProto, layers: Iterable[str]) -> dict[str, tuple[NodeProto, ...]]:
    """The nodes beneath each layer that multiply with a constant weight or look rows of it up.

    A product of two activations, as in attention, is none of them. A layer that the model calls twice has two nodes;
    one that was split into several modules has a node for each.

    Args:
        graph: Exported by the TorchScript exporter, which names nodes by module scope; left as it is.
        layers: Names of layers in the user's model.

    Returns:
        Layer name to its nodes in the order of the graph; an empty tuple for a layer without any.
    """
    floats = {tensor.name: len(tensor.dims) for tensor in graph.graph.initializer if tensor.data_type == FLOAT}
    nodes = [node for node in graph.graph.node if floats.get(weight_of(node), 0) >= 2 and _is_layer(node, floats)]
    tables = {weight_of(node) for node in nodes if node.op_type == "Gather"}
    return {layer: tuple(node for node in nodes if _belongs(node, layer, tables)) for layer in layers}


def weight_of(node: NodeProto) -> str:
    """The name of the input in which a node reads a weight, empty for operators without one."""
    place = WEIGHT_INPUTS.get(node.op_type)
    return "" if place is None else str(node.input[place])


def _is_layer(node: NodeProto, floats: dict[str, int]) -> bool:
    """False for a Gather that is no table of embeddings."""
    rows = all(attribute.i == 0 for attribute in node.attribute if attribute.name == "axis")
    return node.op_type != "Gather" or (rows and floats[weight_of(node)] == 2)


def _belongs(node: NodeProto, layer: str, tables: set[str]) -> bool:
    """A linear layer that shares the table of an embedding is told by its scope alone."""
    if node.op_type != "Gather" and weight_of(node) in tables:
        return scope_is_beneath(node.name, layer)
    return is_beneath(node, layer)


def is_beneath(node: NodeProto, layer: str) -> bool:
    """True if a node with a constant weight belongs to a layer or a module inside it.

    A weight that kept the name of its parameter decides; the exporter renames what it transposes or folds, and then
    the scope does.
    """
    weight = weight_of(node)
    if "." in weight and not weight.startswith("onnx::"):
        return weight.startswith(f"{layer}.")
    return scope_is_beneath(node.name, layer)


def scope_is_beneath(name: str, layer: str) -> bool:
    """True if a node name such as `/layers/layers.1/short/short.0/Conv` lies beneath a layer.

    The exporter names a scope by the last part of the module's name, with the parent's before it if that part is a
    number. Containers that are not called themselves leave no scope, and the second call of a module appends `_1`.

    >>> scope_is_beneath("/layers/layers.1/short/short.0/Conv", "layers.1.short.0")
    True
    >>> scope_is_beneath("/blocks.1/fc/MatMul", "blocks.1.fc")
    True
    >>> scope_is_beneath("/fc_1/MatMul", "fc")
    True
    >>> scope_is_beneath("/layers/layers.1/Conv", "layers.10")
    False
    """
    *scope, _ = name.strip("/").split("/")
    labels = _labels(layer)
    for end in range(1, len(scope) + 1):
        if _same(scope[end - 1], labels[-1]) and _is_subsequence(scope[: end - 1], labels[:-1]):
            return True
    return False


def _labels(layer: str) -> list[str]:
    """The scopes of a layer and the modules around it, outermost first: `stem.0.fc` gives stem, stem.0, fc."""
    labels: list[str] = []
    for part in layer.split("."):
        labels.append(f"{labels[-1]}.{part}" if part.isdigit() and labels else part)
    return labels


def _same(scope: str, label: str) -> bool:
    return scope == label or _REPEAT.sub("", scope) == label


def _is_subsequence(scope: list[str], labels: list[str]) -> bool:
    rest = iter(labels)
    return all(any(_same(part, label) for label in rest) for part in scope)
