"""From a probe to an entry of the sensitivity table."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from autocompress.errors import AutocompressError, DeviceUnavailable, MeasurementError
from autocompress.formats import onnx_runtime, parity
from autocompress.objective import SIZE
from autocompress.pipeline.measuring import measured_untrained, ratios_of
from autocompress.pipeline.models import build, is_rebuilt
from autocompress.pipeline.workbench import PROBE_BATCHES, Workbench
from autocompress.probe import Probe, Sensitivity

RANGE_SAMPLES = 64
"""Calibration samples that ranges of activations are taken from in a probe."""


def run_probe(probe: Probe, bench: Workbench) -> Sensitivity:
    """Make one change, recalibrate, and say what it does; a change that can't be made is an entry with the reason.

    Raises:
        DeviceUnavailable: If there is nothing to measure on.
        MeasurementError: If measuring it failed, which is no fault of the change.
    """
    started = time.perf_counter()
    try:
        entry = _run(probe, bench)
    except (DeviceUnavailable, MeasurementError):
        raise
    except AutocompressError as error:
        entry = Sensitivity(probe, reason=f"{type(error).__name__}: {error}")
    return replace(entry, seconds=time.perf_counter() - started)


def _run(probe: Probe, bench: Workbench) -> Sensitivity:
    from autocompress.recovery import recalibrate

    plan, seed = probe.plan, probe.seed
    model = build(bench, plan, seed)
    if is_rebuilt(plan):
        recalibrate(model, bench.task, batches=PROBE_BATCHES)
    with measured_untrained(bench, model, plan, seed, ranges_from=RANGE_SAMPLES) as (path, measured):
        found = bench.probe_outputs(onnx_runtime.predictor(path))
        values = {**ratios_of(measured), SIZE: float(path.stat().st_size)}
    classes = not np.issubdtype(bench.probe_samples.targets.dtype, np.floating)
    expected = bench.recalibrated_outputs if is_rebuilt(plan) else bench.original_outputs
    divergence = parity.divergence(expected, found, classes=classes) if np.isfinite(found).all() else math.inf
    if not math.isfinite(divergence):
        return Sensitivity(probe, reason="the outputs are no longer finite numbers", values=values)
    return Sensitivity(probe, divergence=divergence, values=values)
