"""Taking bytes out of a graph that no runtime reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto


def compact(graph: ModelProto) -> ModelProto:
    """Give the values inside a graph short names and drop shape hints and comments; changed in place.

    Exporter and quantizer name values by whole module paths, several times over: a twelfth of the file of a quantized
    network with 0.2 million weights. Names of inputs, outputs and nodes stay; by the nodes' names layers are found
    again.

    Args:
        graph: A model without subgraphs; one with subgraphs (If, Loop, Scan) keeps its names, since inner graphs see
            outer values by name.
    """
    body = graph.graph
    del body.value_info[:]
    for node in body.node:
        node.doc_string = ""
    if any(attribute.HasField("g") or attribute.graphs for node in body.node for attribute in node.attribute):
        return graph
    kept = {"", *(value.name for value in (*body.input, *body.output))}
    short: dict[str, str] = {}

    def rename(name: str) -> str:
        return name if name in kept else short.setdefault(name, _fresh(len(short), kept))

    for tensor in body.initializer:
        tensor.name = rename(tensor.name)
    for node in body.node:
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
    return graph


def _fresh(number: int, taken: set[str]) -> str:
    name = f"v{number}"
    while name in taken:
        name = f"_{name}"
    return name
