"""Layer names found again in exported graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autocompress.formats.onnx_export import export
from autocompress.graph.constraints import release
from autocompress.graph.inspect import used_layers
from autocompress.graph.scopes import scope_is_beneath, weight_nodes
from tests.conftest import SPECIMENS, AttentionNet


class Nested(nn.Module):
    """Containers of all kinds, a module called twice, and a parameter of its own; inputs (batch, 3, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 8))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8))) for _ in range(11)])
        self.heads = nn.ModuleDict({"left": nn.Linear(8, 8), "right": nn.Linear(8, 8)})
        self.twice = nn.Linear(8, 8)
        self.bare = nn.Parameter(torch.randn(8, 8))

    def forward(self, value: Tensor) -> Tensor:
        value = self.stem(value)
        for block in self.blocks:
            value = block(value)
        value = self.heads["left"](value) + self.heads["right"](value)
        return self.twice(self.twice(value).relu()) @ self.bare


@pytest.mark.parametrize("name", sorted(SPECIMENS))
def test_every_layer_with_a_matrix_product_has_its_nodes(name: str) -> None:
    model, examples = release(SPECIMENS[name].model()), SPECIMENS[name].examples
    layers = [layer.name for layer in used_layers(model, examples) if layer.kind != "recurrent"]
    found = weight_nodes(export(model, examples), layers)
    names = [node.name for nodes in found.values() for node in nodes]
    assert all(found.values())
    assert len(set(names)) == len(names), "a node belongs to one layer"


def test_containers_of_all_kinds_are_followed() -> None:
    examples = (torch.randn(1, 3, 8).numpy(),)
    model = Nested().eval()
    layers = [layer.name for layer in used_layers(model, examples)]
    found = {name: len(nodes) for name, nodes in weight_nodes(export(model, examples), layers).items()}
    assert found.pop("twice") == 2
    assert set(found.values()) == {1}
    assert len(found) == 2 + 22 + 2


def test_products_of_activations_are_no_weights_of_attention() -> None:
    specimen = SPECIMENS["attention"]
    graph = export(specimen.model(), specimen.examples)
    (nodes,) = weight_nodes(graph, ["encoder.layers.0.self_attn"]).values()
    assert len(nodes) == 2, "one product for queries, keys and values, one for the output"
    products = [node for node in graph.graph.node if node.op_type in ("MatMul", "Gemm") and "self_attn" in node.name]
    assert len(products) > 4


def test_a_name_stands_for_all_modules_beneath_it() -> None:
    specimen = SPECIMENS["residual"]
    graph = export(specimen.model(), specimen.examples)
    assert len(weight_nodes(graph, ["layers.1"])["layers.1"]) == 3
    assert len(weight_nodes(graph, ["layers"])["layers"]) == 5


def test_an_unknown_layer_has_no_nodes() -> None:
    specimen = SPECIMENS["attention"]
    assert isinstance(specimen.model(), AttentionNet)
    assert weight_nodes(export(specimen.model(), specimen.examples), ["no.such"]) == {"no.such": ()}


@pytest.mark.parametrize(
    ("node", "layer", "expected"),
    [
        ("/layers/layers.1/short/short.0/Conv", "layers.1.short.0", True),
        ("/layers/layers.1/short/short.0/Conv", "layers.1", True),
        ("/layers/layers.1/short/short.0/Conv", "layers.1.short.1", False),
        ("/layers/layers.11/Conv", "layers.1", False),
        ("/enc/layers.0/self_attn/Gemm", "enc.layers.0.self_attn", True),
        ("/enc/layers.0/self_attn/Gemm", "enc.layers.1.self_attn", False),
        ("/fc_1/MatMul", "fc", True),
        ("/stem/stem.0/stem.0.0/MatMul", "stem.0.0", True),
        ("/left/MatMul", "heads.left", True),
        ("/other/left/MatMul", "heads.left", False),
        ("/MatMul", "fc", False),
    ],
)
def test_scopes_are_read_as_the_exporter_writes_them(node: str, layer: str, expected: bool) -> None:
    assert scope_is_beneath(node, layer) is expected


class Tied(nn.Module):
    """A linear layer that shares the table of an embedding; ids (batch, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 8)
        self.head = nn.Linear(8, 12)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids).mean(1))


def test_a_layer_that_shares_a_table_has_its_own_node() -> None:
    found = weight_nodes(export(Tied().eval(), (torch.zeros(1, 5, dtype=torch.int64).numpy(),)), ["words", "head"])
    assert {name: [node.op_type for node in nodes] for name, nodes in found.items()} == {
        "words": ["Gather"],
        "head": ["Gemm"],
    }
