"""The benchmark: every kind of layer in every form, the staircase and the test of saturation, on one device."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.artifact import Artifact
from autocompress.data import Array
from autocompress.devices import Device, open_device
from autocompress.errors import MeasurementError
from autocompress.measurement import Measurement
from autocompress.profile import HardwareProfile, Protocol
from autocompress.profiling.findings import Finding, Findings, Unmeasured
from autocompress.profiling.forms import FORMS, FormName, forms_of, rewritten
from autocompress.profiling.models import LAYERS, LayerName, specimen, staircase_specimen
from autocompress.profiling.saturation import find_saturation
from autocompress.profiling.staircase import COUNTS, Staircase

if TYPE_CHECKING:
    from onnx import ModelProto

Observe = Callable[[str], None]
"""Called with a line on what is done next."""

STEPS = len(LAYERS) + 2

STEP_INTERVAL = 0.03
"""Half width of the interval that is enough for the staircase, whose steps are larger."""

STEP_REFERENCE = 16
"""Channels of the model that the others of the staircase are measured against."""


def run_benchmark(profile: HardwareProfile, *, observe: Observe) -> Findings:
    """Find what is fast on the machine of a profile; takes one to three minutes.

    Args:
        profile: Device, provider, threads and protocol; what it says of kernels is not looked at.
        observe: Called before every step.

    Raises:
        DeviceUnavailable: If the device or its provider is missing or stays busy.
        MeasurementError: If even a float model can't be measured.
    """
    started = time.monotonic()
    device = open_device(profile)
    references: dict[LayerName, Measurement] = {}
    ratios: list[Finding] = []
    unmeasured: list[Unmeasured] = []
    with tempfile.TemporaryDirectory(prefix="autocompress-profile-") as scratch:
        folder = Path(scratch)
        for number, (layer, words) in enumerate(LAYERS.items(), 1):
            observe(f"[{number}/{STEPS}] {words}: fp32 and {len(forms_of(layer))} other forms")
            references[layer], found, failed = _measure_forms(device, layer, folder)
            ratios += found
            unmeasured += failed
        observe(f"[{STEPS - 1}/{STEPS}] 3×3 convolutions of {COUNTS[0]} to {COUNTS[-1]} channels: {len(COUNTS)} models")
        staircase = _measure_staircase(device, folder)
        observe(f"[{STEPS}/{STEPS}] sums that saturate if they are added up in 16 bits")
        saturation = find_saturation(device, folder)
    return Findings(
        machine=next(iter(references.values())).machine,
        date=datetime.now(UTC).date().isoformat(),
        seconds=time.monotonic() - started,
        fp32_ms={layer: one.latency_ms for layer, one in references.items()},
        ratios=tuple(ratios),
        unmeasured=tuple(unmeasured),
        staircase=staircase,
        saturation=saturation,
    )


def _measure_forms(
    device: Device, layer: LayerName, folder: Path
) -> tuple[Measurement, list[Finding], list[Unmeasured]]:
    """The float model of a kind of layer, its other forms against it, and the forms that can't be measured."""
    one = specimen(layer)
    reference = _saved(one.model, folder / f"{layer}-fp32.onnx")
    artifacts = {form: _saved(rewritten(one, form), folder / f"{layer}-{form}.onnx") for form in forms_of(layer)}
    examples = (one.example,)
    try:
        own, *others = device.measure([reference, *artifacts.values()], reference, examples=examples)
        measured = dict(zip(artifacts, others, strict=True))
        unmeasured: list[Unmeasured] = []
    except MeasurementError:  # which of them it is, only measuring each alone tells
        (own,) = device.measure([reference], reference, examples=examples)
        measured, unmeasured = _each_alone(device, layer, reference, artifacts, examples)
    found = [
        Finding(
            layer=layer,
            form=form,
            latency_ratio=measurement.latency_ratio,
            interval=measurement.latency_ratio_interval,
            size_ratio=artifacts[form].size_bytes / reference.size_bytes,
        )
        for form, measurement in measured.items()
    ]
    return own, found, unmeasured


def _each_alone(
    device: Device,
    layer: LayerName,
    reference: Artifact,
    artifacts: dict[FormName, Artifact],
    examples: tuple[Array, ...],
) -> tuple[dict[FormName, Measurement], list[Unmeasured]]:
    measured: dict[FormName, Measurement] = {}
    unmeasured = []
    for form, artifact in artifacts.items():
        try:
            (measured[form],) = device.measure([artifact], reference, examples=examples)
        except MeasurementError as error:
            reason = str(error).replace(artifact.path, FORMS[form])
            unmeasured.append(Unmeasured(layer, form, reason))
    return measured, unmeasured


def _measure_staircase(device: Device, folder: Path, counts: Sequence[int] = COUNTS) -> Staircase:
    models = {channels: staircase_specimen(channels) for channels in counts}
    artifacts = {channels: _saved(one.model, folder / f"staircase-{channels}.onnx") for channels, one in models.items()}
    measured = device.measure(
        list(artifacts.values()),
        artifacts[STEP_REFERENCE],
        examples=(models[STEP_REFERENCE].example,),
        protocol=_shorter(device.profile.protocol),
    )
    return Staircase({channels: one.latency_ms for channels, one in zip(artifacts, measured, strict=True)})


def _shorter(protocol: Protocol) -> Protocol:
    """A protocol that ends sooner, as suits many models of which no small difference matters."""
    longest = max(protocol.min_cpu_s, protocol.max_cpu_s / 2)
    return replace(protocol, interval=max(protocol.interval, STEP_INTERVAL), max_cpu_s=longest)


def _saved(model: ModelProto, path: Path) -> Artifact:
    import onnx

    onnx.save(model, path)
    return Artifact.of(path)
