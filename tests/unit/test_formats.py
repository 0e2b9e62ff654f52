from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import ConversionError, InvalidInput
from autocompress.formats import parity
from autocompress.formats.compact import compact
from autocompress.formats.encodings._kernels import optimized_operators
from autocompress.formats.onnx_export import export
from autocompress.formats.onnx_runtime import predictor, random_inputs, save
from tests.conftest import SPECIMENS, Specimen
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


def test_an_operator_that_onnx_lacks_is_one_line_and_no_printed_graph(capfd: pytest.CaptureFixture[str]) -> None:
    uneven = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(7), nn.Flatten())
    with pytest.raises(ConversionError, match="adaptive_avg_pool2d"):
        export(uneven, task.examples)
    assert capfd.readouterr() == ("", "")


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


def test_every_kind_of_model_is_exported_with_its_inputs_and_any_batch(specimen: Specimen) -> None:
    model = specimen.model()
    graph = export(model, specimen.examples)
    assert [value.name for value in graph.graph.input] == [f"input_{i}" for i in range(len(specimen.examples))]
    for size in (1, 3):
        with torch.no_grad():
            expected = specimen.outputs(model, size).numpy()
        np.testing.assert_allclose(predictor(graph)(specimen.samples(size)), expected, atol=1e-5)


def test_the_same_batch_axis_is_named_in_every_input() -> None:
    specimen = SPECIMENS["two_inputs"]
    graph = export(specimen.model(), specimen.examples)
    names = {value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.graph.input, *graph.graph.output)}
    assert names == {"batch"}


class Shared(nn.Module):
    """One linear layer used twice, and another that has the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight

    def forward(self, features: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(torch.relu(self.one(features)))))


def test_shared_weights_are_exported_once() -> None:
    graph = export(Shared(), (np.zeros((1, 8), np.float32),))
    assert len([tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2]) == 1


def test_compacting_saves_bytes_and_changes_no_output() -> None:
    graph = export(task.build_model(), task.examples)
    before, expected, kernels = graph.ByteSize(), predictor(graph)(IMAGES), optimized_operators(graph)
    smaller = compact(graph)
    onnx.checker.check_model(smaller)
    assert smaller.ByteSize() < before
    assert not any(node.name or node.doc_string for node in smaller.graph.node)
    assert [value.name for value in smaller.graph.input] == ["input_0"]
    assert optimized_operators(smaller) == kernels
    np.testing.assert_array_equal(predictor(smaller)(IMAGES), expected)


def test_compacting_any_model_changes_neither_kernels_nor_outputs(specimen: Specimen) -> None:
    graph = export(specimen.model(), specimen.examples)
    inputs = specimen.samples(3)
    expected, kernels = predictor(graph)(inputs), optimized_operators(graph)
    smaller = compact(graph)
    assert optimized_operators(smaller) == kernels
    np.testing.assert_array_equal(predictor(smaller)(inputs), expected)


def test_compacting_twice_changes_nothing_more() -> None:
    once = compact(export(task.build_model(), task.examples)).SerializeToString()
    assert compact(onnx.load_from_string(once)).SerializeToString() == once


def test_attributes_are_dropped_only_where_they_say_the_default() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten())
    graph = compact(export(net, task.examples))
    kept = [{one.name for one in node.attribute} for node in graph.graph.node if node.op_type == "Conv"]
    assert kept == [{"strides", "pads", "kernel_shape"}, {"group", "kernel_shape"}]


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
    batch = random_inputs(tmp_path / "model.onnx", batch_size=3)
    assert [array.shape for array in batch] == [(3, 5), (3, 4)]


def test_a_model_of_fixed_batches_takes_no_others(tmp_path: Path) -> None:
    graph = export(nn.Linear(4, 2), (np.zeros((1, 4), np.float32),))
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    save(graph, tmp_path / "model.onnx")
    assert random_inputs(tmp_path / "model.onnx")[0].shape == (2, 4)
    assert random_inputs(tmp_path / "model.onnx", batch_size=2)[0].shape == (2, 4)
    with pytest.raises(InvalidInput, match=r"batch size 8: .*model.onnx takes batches of 2"):
        random_inputs(tmp_path / "model.onnx", batch_size=8)


def test_two_models_are_compared_in_steps_of_an_8_bit_output_and_by_place() -> None:
    wanted = np.zeros((2, 3, 10), np.float32)
    wanted[:, 0], wanted[:, 1] = 1.0, -1.55  # a range of 255 steps of 0.01
    found = wanted + np.float32(0.02)
    found[0, 1, 0] = 1.5  # one of 60 outputs, and the largest class of one of 20 places
    apart = parity.compare(lambda _: wanted, lambda _: found, (np.zeros(2),), batch_size=2)
    assert apart.relative_error == pytest.approx(3.05 / 1.55)
    assert apart.agreement == 0.95
    assert apart.steps == pytest.approx(2, rel=1e-4)


def test_a_graph_can_be_run_as_it_is_written() -> None:
    graph = export(task.build_model(), task.examples)
    literal, usual = (predictor(graph, optimized=optimized)(IMAGES) for optimized in (False, True))
    np.testing.assert_allclose(literal, usual, rtol=1e-4, atol=1e-5)


def test_parity_refuses_what_is_not_a_number() -> None:
    with pytest.raises(ConversionError, match="outputs differ"):
        parity.require(parity.Parity(float("nan"), 1.0, 0.0), 0.5, "this")
    parity.require(parity.Parity(0.4, 1.0, 100.0), 0.5, "this")


def test_torch_models_predict_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(144, 2)).train()
    torch.manual_seed(0)
    predict = parity.torch_predictor(model)
    np.testing.assert_array_equal(predict(IMAGES), predict(IMAGES))
