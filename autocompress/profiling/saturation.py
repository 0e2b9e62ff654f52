"""Whether integer products saturate on a machine: models whose exact result is known, run there.

x86 processors without VNNI add two products of u8 and s8 in 16 bits, where 2 · 255 · 127 does not fit. Every weight of
the models here is the largest, and every activation too, so that the sums are as large as they can be.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autocompress.artifact import Artifact
from autocompress.devices import Device
from autocompress.errors import DeviceUnavailable, MeasurementError
from autocompress.profiling.findings import Saturation
from autocompress.profiling.forms import rewritten
from autocompress.profiling.models import LayerName, Specimen, specimen

if TYPE_CHECKING:
    from autocompress.data import Array

LAYERS: tuple[LayerName, ...] = ("conv", "linear", "linear_rows")
"""Kinds of layers whose integer kernels are tried."""


def find_saturation(device: Device, folder: Path) -> Saturation:
    """Run models of large sums on a device.

    Args:
        device: Where the runtime runs.
        folder: Where the models may be written.

    Returns:
        What was found, or the reason why nothing could be: what else is known of the machine is of use without it.
    """
    try:
        return Saturation(max(_missing(layer, device, folder) for layer in LAYERS))
    except (DeviceUnavailable, MeasurementError) as error:
        return Saturation(None, str(error))


def largest_sums(one: Specimen) -> Specimen:
    """A specimen with weights and inputs that make its integer sums as large as they can be, and without biases.

    Weights are 127 and 126 steps, not 127 alone: of numbers that are all the same, each would be a single step.
    """
    from onnx import numpy_helper

    for tensor in one.model.graph.initializer:
        shape = tuple(tensor.dims)
        steps = np.zeros(shape) if len(shape) == 1 else 127 - np.indices(shape).sum(axis=0) % 2
        values = (steps / (127 * np.prod(shape[1:]))).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return Specimen(one.model, np.ones_like(one.example))


def missing_share(exact: Array, found: Array) -> float:
    """Largest share of the largest exact result that is missing.

    >>> missing_share(np.array([1.0, 2.0]), np.array([1.0, 1.5]))
    0.25
    """
    return float(np.max((exact - found) / np.abs(exact).max()))


def _missing(layer: LayerName, device: Device, folder: Path) -> float:
    """What the integer form of a kind of layer lacks to the float model."""
    import onnx

    one = largest_sums(specimen(layer))
    outputs = []
    for form, model in (("fp32", one.model), ("int8", rewritten(one, "int8"))):
        path = folder / f"sums-{layer}-{form}.onnx"
        onnx.save(model, path)
        outputs.append(device.run(Artifact.of(path), (one.example,))[0])
    return missing_share(*outputs)
