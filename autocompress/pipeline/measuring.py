"""Scores and measurements of finished model files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autocompress.artifact import Artifact
from autocompress.formats import onnx_runtime
from autocompress.measurement import Measurement
from autocompress.pipeline.workbench import Workbench
from autocompress.profile import Protocol
from autocompress.record import Record, SplitScore
from autocompress.screen import Screen

QUICK = Protocol(min_cpu_s=0.08, max_cpu_s=0.25, interval=0.04)
"""How untrained models are measured: enough to tell 5 % apart."""


def measure(bench: Workbench, artifacts: Sequence[Artifact], protocol: Protocol | None) -> tuple[Measurement, ...]:
    return bench.device.measure(artifacts, bench.reference, examples=bench.task.examples, protocol=protocol)


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
