"""The local and the fake device, beyond what holds for every device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from filelock import FileLock
from onnx import NodeProto, TensorProto, helper, numpy_helper

import autocompress.devices
from autocompress.artifact import Artifact
from autocompress.devices import open_device
from autocompress.devices._lease import lease_path
from autocompress.devices._measuring import BLOCKS_KEPT, SAMPLES_KEPT, spaced
from autocompress.devices._session import counted_clock
from autocompress.devices.fake import count_macs
from autocompress.devices.local import LocalDevice
from autocompress.errors import DeviceUnavailable, MeasurementError, UnknownName
from autocompress.profile import HardwareProfile, Protocol, load_profile
from tests.agents import artifact, endless

ROOT = Path(autocompress.devices.__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
QUICK = Protocol(warmup_runs=1, block_ms=1.0, min_cpu_s=0.02, max_cpu_s=0.05, interval=0.5)
EXAMPLES = (np.ones((1, 16, 8, 8), np.float32),)
LOCAL = HardwareProfile(name="test", protocol=QUICK)
FAKE = HardwareProfile(name="test", device="fake", protocol=QUICK, kernels={"conv": ("int8",)})


def quantized(name: str, stored: str, scale: str, zero: str) -> list[NodeProto]:
    """A tensor through QuantizeLinear and DequantizeLinear, as `stored`_dq."""
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{stored}_q"]),
        helper.make_node("DequantizeLinear", [f"{stored}_q", scale, zero], [f"{stored}_dq"]),
    ]


def conv(path: Path, *, int8: bool = False, operator: str = "Conv") -> Artifact:
    """One 3×3 convolution of 16 to 16 channels on 8×8, in fp32 or in QDQ form."""
    info = [16, 8, 8]
    float_weight = np.full((16, 16, 3, 3), 0.01, np.float32)
    constants: dict[str, np.ndarray | np.generic] = {"w": float_weight}
    nodes = [helper.make_node(operator, ["x", "w"], ["y"], pads=[1, 1, 1, 1])]
    if int8:
        constants = {
            "w": np.full((16, 16, 3, 3), 10, np.int8),
            "scale": np.float32(0.05),
            "zero": np.uint8(0),
            "w_zero": np.int8(0),
        }
        nodes = [
            *quantized("x", "x", "scale", "zero"),
            helper.make_node("DequantizeLinear", ["w", "scale", "w_zero"], ["w_dq"]),
            helper.make_node(operator, ["x_dq", "w_dq"], ["c"], pads=[1, 1, 1, 1]),
            *quantized("c", "c", "scale", "zero"),
            helper.make_node("Identity", ["c_dq"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *info])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *info])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return Artifact.of(path)


@pytest.mark.parametrize("profile", [LOCAL, FAKE], ids=["local", "fake"])
def test_integer_nodes_of_a_quantized_model_are_counted(profile: HardwareProfile, tmp_path: Path) -> None:
    model, reference = conv(tmp_path / "int8.onnx", int8=True), conv(tmp_path / "fp32.onnx")
    quantized_one, float_one = open_device(profile).measure([model, reference], reference, examples=EXAMPLES)
    assert quantized_one.integer_nodes == 1
    assert float_one.integer_nodes == 0


@pytest.mark.parametrize("module", ["autocompress.devices.local", "autocompress.devices._measuring"])
def test_devices_start_without_torch_optuna_and_pandas(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules.keys() & {{'torch', 'optuna', 'pandas', 'onnx'}})"
    run = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_an_operator_that_the_runtime_lacks_is_named(tmp_path: Path) -> None:
    model, reference = conv(tmp_path / "odd.onnx", operator="Convolve"), conv(tmp_path / "fp32.onnx")
    with pytest.raises(MeasurementError, match=r"odd\.onnx: can't be loaded: .*Convolve") as raised:
        LocalDevice(LOCAL).measure([model], reference, examples=EXAMPLES)
    assert "\n" not in str(raised.value)


def test_a_provider_that_is_not_installed_is_not_replaced_silently(tmp_path: Path) -> None:
    profile = HardwareProfile(name="test", provider="NoSuchExecutionProvider")
    with pytest.raises(DeviceUnavailable, match=r"no NoSuchExecutionProvider here; it has .*CPUExecutionProvider"):
        LocalDevice(profile).measure([], conv(tmp_path / "fp32.onnx"), examples=EXAMPLES)


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "openvino"])
def test_a_shipped_profile_whose_provider_is_absent_is_refused_with_those_that_are_there(
    name: str, tmp_path: Path
) -> None:
    profile, available = load_profile(name), onnxruntime.get_available_providers()
    if profile.provider in available:
        pytest.skip(f"{profile.provider} is installed here")
    with pytest.raises(DeviceUnavailable, match=f"no {profile.provider} here; it has {', '.join(available)}"):
        LocalDevice(profile).measure([], conv(tmp_path / "fp32.onnx"), examples=EXAMPLES)


def test_the_time_of_the_calling_thread_counts_only_where_it_does_all_the_work() -> None:
    assert counted_clock("CPUExecutionProvider", 1) == "cpu_ms"
    assert counted_clock("CPUExecutionProvider", 2) == "wall_ms"
    assert counted_clock("OpenVINOExecutionProvider", 1) == "wall_ms"


def test_loading_and_the_slowest_inferences_are_in_the_measurement(tmp_path: Path) -> None:
    model = conv(tmp_path / "fp32.onnx")
    (local,) = LocalDevice(LOCAL).measure([model], model, examples=EXAMPLES)
    assert local.session_ms > 0
    assert local.wall_p50_ms <= local.wall_p95_ms <= local.wall_p99_ms
    (fake,) = open_device(FAKE).measure([model], model, examples=EXAMPLES)
    assert (fake.session_ms, fake.wall_p99_ms) == (0.0, fake.wall_p50_ms)


def test_examples_are_cast_to_the_precision_of_the_model_but_not_to_another_kind(tmp_path: Path) -> None:
    reference, device = conv(tmp_path / "fp32.onnx"), LocalDevice(LOCAL)
    assert device.measure([reference], reference, examples=(EXAMPLES[0].astype(np.float64),))
    with pytest.raises(MeasurementError, match="complex128"):
        device.measure([reference], reference, examples=(EXAMPLES[0].astype(np.complex128),))


def test_a_measurement_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    device = LocalDevice(LOCAL, time_limit_s=0.001)
    with pytest.raises(MeasurementError, match=r"limit of 0\.001 s"):
        device.measure([], conv(tmp_path / "fp32.onnx"), examples=EXAMPLES)


def test_a_run_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"endless\.onnx: not done within the limit of 1 s"):
        LocalDevice(LOCAL, time_limit_s=1.0).run(
            artifact(tmp_path / "endless.onnx", endless()), (np.ones((1, 4), np.float32),)
        )


def test_inputs_of_different_lengths_can_not_be_cut_into_batches(tmp_path: Path) -> None:
    model = conv(tmp_path / "fp32.onnx")
    with pytest.raises(MeasurementError, match=r"fp32\.onnx: inputs of shapes \(1, 16, 8, 8\), \(2,\)"):
        open_device(FAKE).run(model, (*EXAMPLES, np.ones(2)), batch_size=1)


@pytest.fixture
def own_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temp directory, and so a lease, that no other test waits for; of processes that are started here, too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_measurement_leaves_nothing_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, home = conv(tmp_path / "fp32.onnx"), tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert LocalDevice(LOCAL).measure([model], model, examples=EXAMPLES)
    assert not list(home.rglob("*"))


def test_a_device_that_is_held_is_waited_for_and_then_unavailable(own_temp: Path) -> None:
    model = conv(own_temp / "fp32.onnx")
    device = LocalDevice(replace(LOCAL, wait_s=0.1))
    with FileLock(lease_path()), pytest.raises(DeviceUnavailable, match=r"0\.1 s"):
        device.measure([], model, examples=EXAMPLES)


def test_a_run_disturbs_no_measurement(own_temp: Path) -> None:
    model = conv(own_temp / "fp32.onnx")
    device = LocalDevice(replace(LOCAL, wait_s=0.1))
    with FileLock(lease_path()), pytest.raises(DeviceUnavailable, match=r"0\.1 s"):
        device.run(model, EXAMPLES)
    assert device.run(model, EXAMPLES)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_models_are_loaded_while_others_measure(own_temp: Path) -> None:
    model = conv(own_temp / "fp32.onnx")
    with ThreadPoolExecutor(1) as pool:
        with FileLock(lease_path()):
            measuring = pool.submit(LocalDevice(LOCAL).measure, [model], model, examples=EXAMPLES)
            wait_for(lambda: any("onnxruntime" in line for child in children() for line in maps(child)))
            assert not measuring.done()
        assert measuring.result(60)


def children() -> list[Path]:
    """The processes that this one has started and that still run."""
    threads = Path("/proc/self/task").glob("*/children")
    return [Path("/proc") / number for thread in threads for number in thread.read_text().split()]


def test_the_lease_is_given_back_after_a_measurement_and_after_an_error(own_temp: Path) -> None:
    model, device = conv(own_temp / "fp32.onnx"), LocalDevice(replace(LOCAL, wait_s=0.1))
    with pytest.raises(MeasurementError) as kept_alive:
        device.measure([], model, examples=())
    assert kept_alive.value
    assert device.measure([model], model, examples=EXAMPLES)
    with FileLock(lease_path(), timeout=0) as lease:
        assert lease.is_locked


PARENT = """
import sys
from pathlib import Path
import numpy as np
from autocompress.artifact import Artifact
from autocompress.devices.local import LocalDevice
from autocompress.profile import HardwareProfile, Protocol, load_profile
model, protocol = Artifact.of(Path(sys.argv[1])), Protocol(min_cpu_s=60, max_cpu_s=60)
LocalDevice(HardwareProfile(name="test")).measure([], model, examples=(np.ones((1, 16, 8, 8), "f"),), protocol=protocol)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_measuring_process_ends_with_its_parent(tmp_path: Path) -> None:
    model = conv(tmp_path / "fp32.onnx")
    environment = ENVIRONMENT | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", PARENT, model.path], env=environment) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        wait_for(lambda: bool(children.read_text()))
        child = Path("/proc") / children.read_text().strip()
        wait_for(lambda: b"_measuring" in (child / "cmdline").read_bytes())
        wait_for(lambda: any("onnxruntime" in line for line in maps(child)))
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not maps(child))


def maps(process: Path) -> list[str]:
    """Files that a process has in its memory; none once it has ended."""
    path = process / "maps"
    try:
        return path.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []


def wait_for(condition: Callable[[], bool]) -> None:
    """Look every 20 ms until a condition holds; pytest's own time limit ends it otherwise."""
    while not condition():
        time.sleep(0.02)


def test_long_measurements_keep_few_samples() -> None:
    blocks = [list(range(1000))] * 500
    kept = spaced(blocks, BLOCKS_KEPT)
    assert len(kept) * len(spaced(kept[0], SAMPLES_KEPT // len(kept))) <= SAMPLES_KEPT


def test_the_fake_device_counts_int8_half_where_its_profile_has_it_fast(tmp_path: Path) -> None:
    model, reference = conv(tmp_path / "int8.onnx", int8=True), conv(tmp_path / "fp32.onnx")
    (fast,) = open_device(FAKE).measure([model], reference, examples=EXAMPLES)
    assert 0.5 < fast.latency_ratio < 0.6
    (slow,) = open_device(replace(FAKE, kernels={})).measure([model], reference, examples=EXAMPLES)
    assert slow.latency_ratio == 1


def test_the_fake_device_works_out_the_same_every_time(tmp_path: Path) -> None:
    model = conv(tmp_path / "fp32.onnx")
    first, second = (open_device(FAKE).measure([model], model, examples=EXAMPLES) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("node", "shapes", "macs"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"]), {"w": (8, 4, 3, 3), "y": (1, 8, 5, 5)}, 8 * 4 * 9 * 25),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), {"x": (2, 6), "y": (2, 7)}, 2 * 6 * 7),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), {"x": (6, 2), "y": (2, 7)}, 2 * 6 * 7),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": (3, 2, 6), "y": (3, 2, 7)}, 3 * 2 * 6 * 7),
        (helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], K=6, N=7), {"x": (1, 3, 6)}, 3 * 6 * 7),
        (helper.make_node("Relu", ["x"], ["y"]), {"x": (2, 6), "y": (2, 6)}, 0),
    ],
)
def test_macs_are_counted_as_one_a_multiply_add(node: NodeProto, shapes: dict[str, tuple[int, ...]], macs: int) -> None:
    assert count_macs(node, shapes) == macs


def test_a_device_that_does_not_exist_is_named() -> None:
    with pytest.raises(UnknownName, match="did you mean 'local'"):
        open_device(HardwareProfile(name="test", device="locl"))
