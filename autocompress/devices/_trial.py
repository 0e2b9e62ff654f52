"""A measurement of next to nothing, to see whether a device measures at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from autocompress.artifact import Artifact
from autocompress.devices._base import open_device
from autocompress.measurement import Measurement
from autocompress.profile import HardwareProfile, Protocol

_QUICK = Protocol(warmup_runs=1, block_ms=1.0, min_cpu_s=0.02, max_cpu_s=0.1, interval=0.2)
_WIDTH = 64


def tiny_measurement(profile: HardwareProfile) -> Measurement:
    """Measure a model of one operator.

    Raises:
        MeasurementError: If the device can't run it.
        DeviceUnavailable: If the device is missing or stays busy.
    """
    from onnx import TensorProto, helper, save

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, _WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", tensors[:1], tensors[1:])
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        path = Path(folder) / "tiny.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        model, examples = Artifact.of(path), (np.ones((1, _WIDTH), np.float32),)
        (measured,) = open_device(profile).measure([model], model, examples=examples, protocol=_QUICK)
    return measured
