"""Taking bytes out of a graph that no runtime reads."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autocompress.graph.onnx_fields import has_subgraphs, replace_entries

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto

ONES = ("dilations", "strides")
"""Attributes of convolutions and pools that are 1 along each axis if not given."""

ZEROS = ("pads", "output_padding")
"""The same for 0."""


def compact(graph: ModelProto) -> ModelProto:
    """Give the values inside a graph short names and drop all that says nothing to a runtime; changed in place.

    That is names of nodes, shape hints, comments, attributes that have the value they would have anyway, and operator
    sets without an operator. Exporter and quantizer name values by whole module paths, several times over. Names of
    inputs and outputs stay. The names of nodes are gone afterwards, by which layers are found in a graph: this comes
    last.

    Args:
        graph: A model without subgraphs; one with subgraphs (If, Loop, Scan) keeps its names, since inner graphs see
            outer values by name.
    """
    body = graph.graph
    del body.value_info[:]
    _drop_defaults(graph)
    used = {node.domain for node in body.node} | {"", "ai.onnx"}
    if not graph.functions:
        replace_entries(graph.opset_import, [entry for entry in graph.opset_import if entry.domain in used])
    for node in body.node:
        node.ClearField("doc_string")
        node.ClearField("name")
        del node.metadata_props[:]
    if not has_subgraphs(graph):
        _rename(graph)
    return graph


def _rename(graph: ModelProto) -> None:
    body = graph.graph
    kept = {"", *(value.name for value in (*body.input, *body.output))}
    fresh = (name for name in _names() if name not in kept)
    short: dict[str, str] = {name: name for name in kept}

    def rename(name: str) -> str:
        return short[name] if name in short else short.setdefault(name, next(fresh))

    for tensor in body.initializer:
        tensor.name = rename(tensor.name)
    for node in body.node:
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]


def _names() -> Iterator[str]:
    """Every word of letters, the shortest first."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_letters, repeat=length))


def _drop_defaults(graph: ModelProto) -> None:
    from onnx import defs

    versions = {entry.domain: entry.version for entry in graph.opset_import}
    for node in graph.graph.node:
        if node.domain in versions and defs.has(node.op_type, node.domain):
            schema = defs.get_schema(node.op_type, versions[node.domain], node.domain)
            replace_entries(node.attribute, [one for one in node.attribute if not _is_default(node, one, schema)])


def _is_default(node: NodeProto, attribute: AttributeProto, schema: Any) -> bool:
    """True if an attribute has the value that it has where it is missing."""
    from onnx import helper

    name = attribute.name
    if name in ONES + ZEROS and node.op_type.endswith(("Conv", "ConvTranspose", "Pool")):
        return set(attribute.ints) == {int(name in ONES)}
    default = schema.attributes[name].default_value if name in schema.attributes else None
    if default is None or not default.name or default.type != attribute.type:
        return False
    return bool(helper.get_attribute_value(default) == helper.get_attribute_value(attribute))
