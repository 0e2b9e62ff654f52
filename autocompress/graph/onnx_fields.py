"""Reading and changing what the nodes and lists of an ONNX graph hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node by name."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def replace_entries(field: Any, entries: Iterable[Any]) -> None:
    """Make a repeated field hold these entries alone."""
    kept = list(entries)
    del field[:]
    field.extend(kept)


def has_subgraphs(graph: ModelProto) -> bool:
    """True if a node (If, Loop, Scan) holds a graph of its own, which may read any value of the outer one."""
    return any(attribute.HasField("g") or attribute.graphs for node in graph.graph.node for attribute in node.attribute)
