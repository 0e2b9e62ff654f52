"""Scores and measurements of finished model files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.artifact import Artifact
from autocompress.data import head
from autocompress.formats import onnx_runtime
from autocompress.measurement import Measurement
from autocompress.pipeline.models import finish, lower, settle
from autocompress.pipeline.workbench import Workbench
from autocompress.plan import Plan
from autocompress.profile import Protocol
from autocompress.record import Record, SplitScore
from autocompress.screen import Screen

if TYPE_CHECKING:
    from torch import nn

QUICK = Protocol(min_cpu_s=0.08, max_cpu_s=0.25, interval=0.04)
"""How untrained models are measured: enough to tell 5 % apart."""


def measure(bench: Workbench, artifacts: Sequence[Artifact], protocol: Protocol | None) -> tuple[Measurement, ...]:
    return bench.device.measure(artifacts, bench.reference, examples=bench.task.examples, protocol=protocol)


@contextmanager
def measured_untrained(
    bench: Workbench, model: nn.Module, plan: Plan, seed: int, *, ranges_from: int
) -> Iterator[tuple[Path, Measurement]]:
    """The file of a model as it is now, and its speed, measured quickly; the file is removed in the end.

    Args:
        bench: Task, machine and run directory.
        model: Built by the plan; it is used up.
        plan: What is lowered.
        seed: Of what is drawn on the way.
        ranges_from: Calibration samples that ranges of activations are taken from.
    """
    few = head(bench.context.calibration, ranges_from)
    model = finish(settle(bench, model, plan, seed), plan)
    _, graph = lower(model, plan, replace(bench.context, calibration=few, seed=seed))
    # the process too: one may look at a change that another tries as a plan
    path = bench.directory / "artifacts" / f"{plan.digest}.untrained-{os.getpid()}.onnx"
    onnx_runtime.save(graph, path)
    try:
        yield path, measure(bench, [Artifact.of(path)], QUICK)[0]
    finally:
        path.unlink(missing_ok=True)


def values_of(measurement: Measurement, path: Path, screen: Screen | None) -> dict[str, float]:
    """What was measured; the latency as ratio times the baseline's, so that the machine's mood drops out."""
    latency = measurement.latency_ratio * screen.baseline["latency_ms"] if screen else measurement.latency_ms
    return {
        "latency_ms": latency,
        "latency_ratio": measurement.latency_ratio,
        "size_bytes": float(path.stat().st_size),
        "peak_memory_bytes": float(measurement.peak_memory_bytes),
    }


def score_test(record: Record, bench: Workbench) -> SplitScore:
    """The metric of a finished model file on the test split."""
    assert record.artifact is not None, "complete records have an artifact"
    if not bench.task.has_test:
        return SplitScore()
    predict = onnx_runtime.predictor(bench.directory / record.artifact.path)
    outputs, targets = bench.task.outputs(predict, "test")
    score = bench.task.evaluate(outputs, targets, "test")
    return SplitScore({bench.task.the_metric.name: score}, bench.task.fold_scores(outputs, targets))


def remeasure(
    records: Sequence[Record], bench: Workbench, baseline_latency_ms: float, max_cpu_s: float
) -> tuple[tuple[int, Measurement, dict[str, float]], ...]:
    """Measure finished models again, all interleaved with the baseline in one process.

    Args:
        records: Complete records.
        bench: Task, machine and run directory.
        baseline_latency_ms: Latency by which ratios are turned into milliseconds.
        max_cpu_s: CPU seconds for each model at most.

    Returns:
        For each record its number, the measurement, and the values that replace those of the record. Peak memory is
        not taken again.
    """
    artifacts = [Artifact.of(bench.artifact_path(record.plan)) for record in records]
    usual = bench.profile.protocol
    protocol = replace(usual, max_cpu_s=max_cpu_s, min_cpu_s=max_cpu_s / 2, interval=usual.interval / 3)
    measurements = measure(bench, artifacts, protocol)
    return tuple(
        (
            record.number,
            measurement,
            {
                "latency_ms": measurement.latency_ratio * baseline_latency_ms,
                "latency_ratio": measurement.latency_ratio,
            },
        )
        for record, measurement in zip(records, measurements, strict=True)
    )
