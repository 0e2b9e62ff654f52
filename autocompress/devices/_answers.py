"""From the measuring process's answer to measurements, wherever the process ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from autocompress import errors
from autocompress.artifact import Artifact
from autocompress.devices._footprint import Footprint
from autocompress.devices._measuring import Answer
from autocompress.errors import AutocompressError, MeasurementError
from autocompress.measurement import Measurement, Samples, ratio_interval, repeatable
from autocompress.profile import Protocol


def timed_models(artifacts: Sequence[Artifact], reference: Artifact) -> dict[str, str]:
    """Path by digest of the models to time: the reference first, those of equal bytes once."""
    return {reference.sha256: reference.path} | weighed_models(artifacts)


def weighed_models(artifacts: Sequence[Artifact]) -> dict[str, str]:
    """Path by digest of the models to weigh: all but a reference that is only compared with."""
    return {artifact.sha256: artifact.path for artifact in artifacts}


def raise_error(answer: Answer) -> None:
    """Raise the error that an answer holds, if it holds one.

    Raises:
        AutocompressError: The class that the answer names; MeasurementError if there is none of that name.
    """
    if not answer.error:
        return
    kind = getattr(errors, answer.error, None)
    if isinstance(kind, type) and issubclass(kind, AutocompressError):
        raise kind(answer.message)
    raise MeasurementError(f"{answer.error}: {answer.message}")


def measurements(
    answer: Answer,
    artifacts: Sequence[Artifact],
    reference: Artifact,
    *,
    clock: Literal["cpu_ms", "wall_ms"],
    protocol: Protocol,
    processor: str,
    batch_size: int,
) -> tuple[Measurement, ...]:
    """One measurement for each artifact, from an answer to `timed_models` and `weighed_models`.

    Args:
        answer: Without an error.
        clock: The clock whose times count.
        protocol: How the times were taken.
        processor: What measured.
        batch_size: Samples of one inference.
    """
    timed = timed_models(artifacts, reference)
    times: Mapping[str, Samples] = dict(zip(timed, answer.times, strict=True))
    session_ms = dict(zip(timed, answer.session_ms, strict=True))
    energy_mj = dict(zip(timed, answer.energy_mj, strict=True))
    footprints = dict(zip(weighed_models(artifacts), answer.footprints, strict=True))
    return tuple(
        _measurement(
            times[artifact.sha256],
            times[reference.sha256],
            footprints[artifact.sha256],
            clock=clock,
            session_ms=session_ms[artifact.sha256],
            energy_mj=energy_mj[artifact.sha256],
            protocol=protocol,
            machine=f"{processor}, {answer.runtime}",
            batch_size=batch_size,
        )
        for artifact in artifacts
    )


def _measurement(
    samples: Samples,
    reference: Samples,
    footprint: Footprint,
    *,
    clock: Literal["cpu_ms", "wall_ms"],
    session_ms: float,
    energy_mj: float | None,
    protocol: Protocol,
    machine: str,
    batch_size: int,
) -> Measurement:
    """What the samples say; anyone can work it out again from the record."""
    times, reference_times = getattr(samples, clock), getattr(reference, clock)
    ratio, interval = ratio_interval(times, reference_times)
    cpu, wall = np.concatenate(samples.cpu_ms), np.concatenate(samples.wall_ms)
    p50, p95, p99 = np.percentile(wall, (50, 95, 99))
    return Measurement(
        latency_ms=float(np.median(np.concatenate(times))),
        latency_ratio=ratio,
        latency_ratio_interval=repeatable(ratio, interval),
        wall_p50_ms=float(p50),
        wall_p95_ms=float(p95),
        contention=float(wall.sum() / cpu.sum()),
        peak_memory_bytes=footprint.peak_memory_bytes,
        integer_nodes=footprint.integer_nodes,
        nodes=footprint.nodes,
        machine=machine,
        protocol=protocol,
        samples=samples,
        reference_samples=reference,
        wall_p99_ms=float(p99),
        session_ms=session_ms,
        batch_size=batch_size,
        energy_mj=energy_mj,
    )
