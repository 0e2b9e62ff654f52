"""Which operator set a graph may be moved to as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autocompress.graph.onnx_fields import has_subgraphs

if TYPE_CHECKING:
    from onnx import ModelProto

NEWEST = 25
"""The operator set that brought the last of the small integer types."""

OLDEST = 20
"""The oldest that is looked at: what the exporter writes. It has all operators of the encodings."""

CHANGED = frozenset({"GroupNormalization"})
"""Operators that mean something else somewhere between the two; all others only took more types or attributes."""


def opset_of(graph: ModelProto) -> int:
    """The version of ONNX's own operators that a graph uses."""
    return next((entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")), 0)


def newest_opset(graph: ModelProto) -> int:
    """The newest operator set, up to 25, in which every operator of a graph means what it means now."""
    import onnx

    own = opset_of(graph)
    operators = {node.op_type for node in graph.graph.node if node.domain in ("", "ai.onnx")}
    if own < OLDEST or graph.functions or has_subgraphs(graph) or operators & CHANGED:
        return own
    return max(own, min(NEWEST, onnx.defs.onnx_opset_version()))


def raise_opset(graph: ModelProto, opset: int) -> None:
    """Declare an operator set that a graph may be moved to, and the file format that goes with it, in place."""
    from onnx import helper

    if opset <= opset_of(graph):
        return
    for entry in graph.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    graph.ir_version = max(graph.ir_version, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
