"""What holds for every device in the registry."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.artifact import Artifact
from autocompress.devices import DEVICES, Device, open_device
from autocompress.devices.agent.messages import Limits
from autocompress.errors import MeasurementError
from autocompress.measurement import Measurement
from autocompress.profile import HardwareProfile, Protocol
from autocompress.serialization import from_json, to_json
from tests.agents import running_agent

QUICK = Protocol(warmup_runs=1, block_ms=1.0, min_cpu_s=0.02, max_cpu_s=0.05, interval=0.5)
EXAMPLES = (np.ones((1, 64), np.float32),)


def mlp(path: Path, width: int) -> Artifact:
    """Two linear layers, 64 to `width` to 10, with a batch dimension of any size."""
    rng = np.random.default_rng(width)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((64, width), (width, 10))]
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return Artifact.of(path)


@contextmanager
def here(name: str, _: Path) -> Iterator[HardwareProfile]:
    """The profile of a device that needs nothing but this machine."""
    yield HardwareProfile(name="conformance", device=name, protocol=QUICK)


@contextmanager
def through_an_agent(name: str, folder: Path) -> Iterator[HardwareProfile]:
    """The profile of a device that is reached through an agent, which runs meanwhile."""
    with running_agent(folder, limits=Limits()) as agent:
        yield HardwareProfile(name="conformance", device=name, protocol=QUICK, addresses=(agent.address,))


MACHINES = {"remote": through_an_agent}
"""How the machine is set up that a device measures on, where it is not this one as it is."""


@pytest.fixture(scope="module", params=list(DEVICES))
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """Each device in turn, with the machine it needs."""
    machine = MACHINES.get(request.param, here)
    with machine(request.param, tmp_path_factory.mktemp("machine")) as profile:
        yield open_device(profile)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A small model, a big one, and a copy of the small one."""
    folder = tmp_path_factory.mktemp("models")
    small, big = mlp(folder / "small.onnx", 16), mlp(folder / "big.onnx", 4096)
    copy = Path(shutil.copy(small.path, folder / "copy.onnx"))
    return {"small": small, "big": big, "copy": Artifact.of(copy)}


@pytest.fixture(scope="module")
def measured(device: Device, models: dict[str, Artifact]) -> dict[str, Measurement]:
    """All models with the small one as the reference."""
    measurements = device.measure(list(models.values()), models["small"], examples=EXAMPLES)
    return dict(zip(models, measurements, strict=True))


def test_more_work_takes_longer_and_more_memory(measured: dict[str, Measurement]) -> None:
    assert measured["big"].latency_ms > measured["small"].latency_ms
    assert measured["big"].latency_ratio > 1
    assert measured["big"].peak_memory_bytes > measured["small"].peak_memory_bytes


def test_batches_are_measured_as_one_inference(device: Device, models: dict[str, Artifact]) -> None:
    batch = (np.ones((16, 64), np.float32),)
    (measurement,) = device.measure([models["big"]], models["small"], examples=batch)
    assert measurement.batch_size == 16
    assert measurement.throughput_per_s == pytest.approx(16_000 / measurement.latency_ms)


def test_the_reference_relative_to_itself_is_one(measured: dict[str, Measurement]) -> None:
    assert measured["small"].latency_ratio == 1


def test_files_of_equal_bytes_share_one_measurement(measured: dict[str, Measurement]) -> None:
    assert measured["copy"] == measured["small"]


def test_the_ratio_lies_in_its_interval(measured: dict[str, Measurement]) -> None:
    for measurement in measured.values():
        low, high = measurement.latency_ratio_interval
        assert 0 < low <= measurement.latency_ratio <= high


def test_samples_protocol_and_machine_are_kept(measured: dict[str, Measurement]) -> None:
    for measurement in measured.values():
        assert measurement.samples is not None
        assert measurement.samples.cpu_ms
        assert measurement.reference_samples == measured["small"].samples
        assert measurement.protocol == QUICK
        assert measurement.machine


def test_nodes_are_counted_and_none_of_a_float_model_is_integer(measured: dict[str, Measurement]) -> None:
    assert all(one.nodes > 0 and one.integer_nodes == 0 for one in measured.values())


def test_a_measurement_survives_json(measured: dict[str, Measurement]) -> None:
    for measurement in measured.values():
        assert from_json(Measurement, to_json(measurement)) == measurement


def test_measuring_leaves_the_file_as_it_is(measured: dict[str, Measurement], models: dict[str, Artifact]) -> None:
    assert measured
    assert all(Artifact.of(Path(model.path)) == model for model in models.values())


def test_a_file_that_is_no_model_is_a_measurement_error_that_names_it(
    device: Device, models: dict[str, Artifact], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"this is no model")
    with pytest.raises(MeasurementError, match=r"broken\.onnx"):
        device.measure([Artifact.of(broken)], models["small"], examples=EXAMPLES)


@pytest.mark.parametrize("examples", [(), (*EXAMPLES, *EXAMPLES), (np.ones((1, 3), np.float32),)])
def test_examples_that_do_not_fit_are_a_measurement_error(
    device: Device, models: dict[str, Artifact], examples: tuple[np.ndarray, ...]
) -> None:
    with pytest.raises(MeasurementError, match=r"small\.onnx"):
        device.measure([], models["small"], examples=examples)


# -- running ---------------------------------------------------------------------------------------------------------

SAMPLES = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)


def outputs_here(model: Artifact, samples: np.ndarray) -> np.ndarray:
    """What ONNX Runtime in this process makes of samples."""
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": samples})[0])


@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
def test_outputs_are_those_of_onnx_runtime_here_whatever_the_batches(
    device: Device, models: dict[str, Artifact], batch_size: int | None
) -> None:
    (found,) = device.run(models["small"], (SAMPLES,), batch_size=batch_size)
    np.testing.assert_allclose(found, outputs_here(models["small"], SAMPLES), rtol=1e-5, atol=1e-5)


def test_a_model_that_takes_one_sample_at_a_time_is_run_sample_by_sample(
    device: Device, models: dict[str, Artifact], tmp_path: Path
) -> None:
    model = onnx.load(models["small"].path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "single.onnx")
    single = Artifact.of(tmp_path / "single.onnx")
    (found,) = device.run(single, (SAMPLES,), batch_size=1)
    np.testing.assert_allclose(found, outputs_here(models["small"], SAMPLES), rtol=1e-5, atol=1e-5)
    with pytest.raises(MeasurementError, match=r"single\.onnx: can't be run"):
        device.run(single, (SAMPLES,))


def test_all_outputs_are_given_in_order_and_inputs_are_cast(device: Device, tmp_path: Path) -> None:
    one, two = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "ab")
    less, is_less = (
        helper.make_tensor_value_info("less", TensorProto.FLOAT, ["n", 2]),
        helper.make_tensor_value_info("is_less", TensorProto.BOOL, ["n", 2]),
    )
    nodes = [helper.make_node("Sub", ["a", "b"], ["less"]), helper.make_node("Less", ["a", "b"], ["is_less"])]
    graph = helper.make_graph(nodes, "two", [one, two], [less, is_less])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "two.onnx"
    )
    given = (np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 2.0], [1.0, 5.0]]))
    found = device.run(Artifact.of(tmp_path / "two.onnx"), given, batch_size=1)
    assert [output.tolist() for output in found] == [[[-1, 0], [2, -1]], [[True, False], [False, True]]]
    assert found[0].dtype == np.float32


def test_a_file_that_is_no_model_can_not_be_run_and_is_named(device: Device, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"this is no model")
    with pytest.raises(MeasurementError, match=r"broken\.onnx"):
        device.run(Artifact.of(broken), EXAMPLES)


@pytest.mark.parametrize("inputs", [(), (*EXAMPLES, *EXAMPLES), (np.ones((1, 3), np.float32),)])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_inputs_that_do_not_fit_can_not_be_run(
    device: Device, models: dict[str, Artifact], inputs: tuple[np.ndarray, ...], batch_size: int | None
) -> None:
    with pytest.raises(MeasurementError, match=r"small\.onnx"):
        device.run(models["small"], inputs, batch_size=batch_size)
