from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import ConversionError
from autocompress.formats import parity
from autocompress.formats.compact import compact
from autocompress.formats.onnx_export import export
from autocompress.formats.onnx_runtime import predictor, random_inputs, save
from tests.tasks.stripes import task

IMAGES = task.split("validation").samples.inputs  # type: ignore[attr-defined]


def test_an_export_computes_what_torch_computes_in_any_batch_size() -> None:
    graph = export(task.build_model(), task.examples)
    for size in (1, 3, 64):
        difference = parity.compare(torch_side(), predictor(graph), IMAGES, batch_size=size)
        assert difference.relative_error < parity.FLOAT_TOLERANCE
        assert difference.agreement == 1


def torch_side() -> parity.Predict:
    return parity.torch_predictor(task.build_model())


def test_exporting_leaves_the_model_in_its_mode() -> None:
    model = task.build_model().train()
    export(model, task.examples)
    assert model.training
    assert all(module.training for module in model.modules())


def test_a_model_that_cannot_be_traced_is_refused_with_the_reason() -> None:
    class Stubborn(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            raise RuntimeError("no forward today")

    with pytest.raises(ConversionError, match="no forward today"):
        export(Stubborn(), task.examples)


def test_equal_initializers_are_not_shared() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
            nn.init.zeros_(self.one.bias)
            nn.init.zeros_(self.two.bias)

        def forward(self, image: Tensor) -> Tensor:
            return self.two(self.one(image)).mean((2, 3))

    graph = export(Twins(), task.examples)
    assert not [node for node in graph.graph.node if node.op_type == "Identity"]


def test_compacting_saves_bytes_and_changes_no_output() -> None:
    graph = export(task.build_model(), task.examples)
    before, expected = graph.ByteSize(), predictor(graph)(IMAGES)
    nodes = [node.name for node in graph.graph.node]
    smaller = compact(graph)
    onnx.checker.check_model(smaller)
    assert smaller.ByteSize() < before
    assert [node.name for node in smaller.graph.node] == nodes
    assert [value.name for value in smaller.graph.input] == ["input_0"]
    np.testing.assert_array_equal(predictor(smaller)(IMAGES), expected)


def test_a_file_holds_the_graph(tmp_path: Path) -> None:
    graph = export(task.build_model(), task.examples)
    save(graph, tmp_path / "new" / "model.onnx")
    np.testing.assert_array_equal(predictor(tmp_path / "new" / "model.onnx")(IMAGES), predictor(graph)(IMAGES))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.onnx"]


def test_a_corrupt_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ConversionError, match="ONNX Runtime can't load it"):
        predictor(path)


def test_wrong_shapes_are_named() -> None:
    graph = export(task.build_model(), task.examples)
    with pytest.raises(ConversionError, match=r"float32\[2, 3, 12, 12\]"):
        predictor(graph)((np.zeros((2, 3, 12, 12), np.float32),))


def test_made_up_inputs_fit_the_model(tmp_path: Path) -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(7, 4)

        def forward(self, tokens: Tensor, extra: Tensor) -> Tensor:
            return self.words(tokens).mean(1) + extra

    examples = (np.zeros((1, 5), np.int64), np.zeros((1, 4), np.float32))
    save(export(Lookup(), examples), tmp_path / "model.onnx")
    inputs = random_inputs(tmp_path / "model.onnx")
    assert [array.shape for array in inputs] == [(1, 5), (1, 4)]
    assert predictor(tmp_path / "model.onnx")(inputs).shape == (1, 4)


def test_parity_refuses_what_is_not_a_number() -> None:
    with pytest.raises(ConversionError, match="outputs differ"):
        parity.require(parity.Parity(float("nan"), 1.0), 0.5, "this")
    parity.require(parity.Parity(0.4, 1.0), 0.5, "this")


def test_torch_models_predict_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(144, 2)).train()
    torch.manual_seed(0)
    predict = parity.torch_predictor(model)
    np.testing.assert_array_equal(predict(IMAGES), predict(IMAGES))
