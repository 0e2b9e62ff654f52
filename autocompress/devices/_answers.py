"""From the measuring process's answer to measurements, wherever the process ran."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from autocompress.artifact import Artifact
from autocompress.devices._footprint import Footprint
from autocompress.devices._measuring import Answer
from autocompress.errors import DeviceUnavailable, MeasurementError
from autocompress.measurement import Measurement, Samples, ratio_interval, repeatable, undisturbed
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
        DeviceUnavailable: If the answer says that the device is to blame.
        MeasurementError: If it says anything else.
    """
    if not answer.error:
        return
    if answer.error == DeviceUnavailable.__name__:
        raise DeviceUnavailable(answer.message)
    named = answer.error == MeasurementError.__name__
    raise MeasurementError(answer.message if named else f"{answer.error}: {answer.message}")


def require_fit(answer: Answer, *, timed: int, weighed: int) -> None:
    """Refuse an answer that no measuring process gives; anybody may have written it.

    Args:
        answer: Without an error.
        timed: Models that were to be timed.
        weighed: Models that were to be weighed.

    Raises:
        ValueError: If there is not one result for each, or a number that can't be.
    """
    found = len(answer.times), len(answer.session_ms), len(answer.energy_mj), len(answer.footprints)
    if found != (timed, timed, timed, weighed):
        raise ValueError(
            f"times of {found[0]} models, load times of {found[1]}, energies of {found[2]} and footprints of "
            f"{found[3]}; expected {timed}, {timed}, {timed} and {weighed}"
        )
    for samples in answer.times:
        for blocks in (samples.cpu_ms, samples.wall_ms):
            if not blocks or not all(blocks):
                raise ValueError("times without a block, or with an empty one")
            if not all(math.isfinite(ms) and ms > 0 for block in blocks for ms in block):
                raise ValueError("times that are no numbers above 0 (too short for the machine's clock?)")
    if not all(math.isfinite(ms) and ms >= 0 for ms in answer.session_ms):
        raise ValueError("load times that are no numbers from 0 up")
    if not all(mj is None or (math.isfinite(mj) and mj >= 0) for mj in answer.energy_mj):
        raise ValueError("energies that are no numbers from 0 up")
    if not (math.isfinite(answer.disturbance) and answer.disturbance >= 0):
        raise ValueError(f"a disturbance of {answer.disturbance}; expected a number from 0 up")
    for one in answer.footprints:
        if one.peak_memory_bytes < 0 or not 0 <= one.integer_nodes <= one.nodes:
            raise ValueError(f"a footprint that can't be: {one}")


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
            disturbance=answer.disturbance,
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
    disturbance: float,
) -> Measurement:
    """What the samples say; anyone can work it out again from the record."""
    times, reference_times = getattr(samples, clock), getattr(reference, clock)
    ratio, interval = ratio_interval(times, reference_times)
    cpu, wall = np.concatenate(samples.cpu_ms), np.concatenate(samples.wall_ms)
    p50, p95, p99 = np.percentile(wall, (50, 95, 99))
    return Measurement(
        latency_ms=undisturbed(times),
        latency_ratio=ratio,
        latency_ratio_interval=repeatable(ratio, interval, disturbance=disturbance),
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
        disturbance=disturbance,
    )
