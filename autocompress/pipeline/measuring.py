"""Scores and measurements of finished model files."""

from __future__ import annotations

import tempfile
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.artifact import Artifact
from autocompress.data import head
from autocompress.devices import Device
from autocompress.formats import onnx_runtime
from autocompress.measurement import Measurement, Measurements, disturbance
from autocompress.objective import LATENCY, LATENCY_RATIO, MEMORY, SIZE, on_machine
from autocompress.pipeline.models import finish, lower, settle
from autocompress.pipeline.workbench import Workbench
from autocompress.plan import Plan
from autocompress.profile import Protocol
from autocompress.record import Record, Remeasured, SplitScore

if TYPE_CHECKING:
    from torch import nn

ATTEMPTS = 2
"""Times that a model is measured where the machine was disturbed for all of the first."""

QUICK = Protocol(min_cpu_s=0.08, max_cpu_s=0.25, interval=0.04)
"""How untrained models are measured, with the patience of the machine's profile: enough to tell 5 % apart."""


def measure(
    bench: Workbench,
    artifacts: Sequence[Artifact],
    protocol: Callable[[Protocol], Protocol] = lambda usual: usual,
    *,
    attempts: int = ATTEMPTS,
) -> tuple[Measurements, ...]:
    """Measure models on every machine, on those that are elsewhere at the same time.

    Args:
        bench: Task, machines and run directory.
        artifacts: Model files.
        protocol: What is to be done, from what a machine's profile says.
        attempts: How often at most, as long as the machine is disturbed; the quietest counts.
    """

    def on(device: Device) -> tuple[Measurement, ...]:
        asked = protocol(device.profile.protocol)
        found: list[tuple[Measurement, ...]] = []
        while not found or (len(found) < attempts and _disturbance(found[-1])):
            found.append(device.measure(artifacts, bench.reference, examples=bench.task.examples, protocol=asked))
        return min(found, key=_disturbance)

    def on_all_of(devices: Sequence[Device]) -> dict[str, tuple[Measurement, ...]]:
        return {device.profile.name: on(device) for device in devices}

    here, *elsewhere = bench.places
    with ThreadPoolExecutor(len(bench.places)) as pool:
        others = [pool.submit(on_all_of, place) for place in elsewhere]
        # in this thread, which Ctrl-C reaches; the pool waits for its own
        found = ChainMap(on_all_of(here), *(other.result() for other in others))
    return tuple(
        {profile.name: found[profile.name][index] for profile in bench.profiles} for index in range(len(artifacts))
    )


def _disturbance(together: Sequence[Measurement]) -> float:
    return max((one.disturbance for one in together), default=0.0)


@contextmanager
def measured_untrained(
    bench: Workbench, model: nn.Module, plan: Plan, seed: int, *, ranges_from: int
) -> Iterator[tuple[Path, Measurements]]:
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
    # in a folder of its own: one process may look at a change that another tries as a plan
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        path = Path(folder) / f"{plan.digest}.untrained.onnx"
        onnx_runtime.save(graph, path)
        yield path, measure(bench, [Artifact.of(path)], _quick)[0]


def _quick(usual: Protocol) -> Protocol:
    return replace(QUICK, patience=usual.patience)


def values_of(measured: Measurements, path: Path, baseline: Mapping[str, float] | None) -> dict[str, float]:
    """What was measured of a file.

    Args:
        measured: By machine. With several, the values of each have its name in theirs, and those of the first come
            without it too.
        path: The file.
        baseline: Values of the baseline: latencies are ratios times its latency, so that the machine's mood drops out.
            None for the baseline itself.
    """
    values = {SIZE: float(path.stat().st_size)}
    for name, measurement in _named(measured):
        values[name(MEMORY)] = float(measurement.peak_memory_bytes)
        values |= _latency(name, measurement, baseline)
    return values


def ratios_of(measured: Measurements) -> dict[str, float]:
    """The ratio of latencies on every machine, by the names that `values_of` gives them."""
    return {name(LATENCY_RATIO): measurement.latency_ratio for name, measurement in _named(measured)}


def _named(measured: Measurements) -> Iterator[tuple[Callable[[str], str], Measurement]]:
    """Each measurement, with what gives its values their names."""
    yield str, next(iter(measured.values()))
    if len(measured) > 1:
        for machine, measurement in measured.items():
            yield partial(on_machine, machine=machine), measurement


def _latency(
    name: Callable[[str], str], measurement: Measurement, baseline: Mapping[str, float] | None
) -> dict[str, float]:
    latency = measurement.latency_ms if baseline is None else measurement.latency_ratio * baseline[name(LATENCY)]
    return {name(LATENCY): latency, name(LATENCY_RATIO): measurement.latency_ratio}


def score_test(record: Record, bench: Workbench) -> SplitScore:
    """The metric of a finished model file on the test split."""
    assert record.artifact is not None, "complete records have an artifact"
    if not bench.task.has_test:
        return SplitScore()
    predict = onnx_runtime.predictor(Path(bench.artifact(record.plan).path))
    outputs, targets = bench.task.outputs(predict, "test")
    score = bench.task.evaluate(outputs, targets, "test")
    return SplitScore({bench.task.the_metric.name: score}, bench.task.fold_scores(outputs, targets))


def remeasure(
    records: Sequence[Record], bench: Workbench, baseline: Mapping[str, float], max_cpu_s: float
) -> tuple[Remeasured, ...]:
    """Measure finished models again on every machine, all interleaved with the baseline in one process.

    What a trial measured in a quieter moment stays. A process that has just begun remembers none: what the reference
    took beside the trial tells it.

    Args:
        records: Complete records.
        bench: Task, machine and run directory.
        baseline: Values of the baseline, by which ratios are turned into milliseconds.
        max_cpu_s: CPU seconds for each model at most, on all machines together that can't measure at the same time.
    """
    artifacts = [bench.artifact(record.plan) for record in records]
    each_s = max_cpu_s / max(map(len, bench.places))

    def thorough(usual: Protocol) -> Protocol:
        # without patience: no more time is left than is given
        return replace(usual, max_cpu_s=each_s, min_cpu_s=each_s / 2, interval=usual.interval / 3, patience=1.0)

    found = []
    for record, again in zip(records, measure(bench, artifacts, thorough, attempts=1), strict=True):
        measured = {name: _quieter(record.measurements.get(name), now) for name, now in again.items()}
        values: dict[str, float] = {}
        for name, measurement in _named(measured):
            values |= _latency(name, measurement, baseline)
        kept = tuple(name for name, now in again.items() if measured[name] is not now)
        found.append(Remeasured(record.number, measured, values, kept))
    return tuple(found)


def _quieter(before: Measurement | None, now: Measurement) -> Measurement:
    """The later of two measurements, unless it was disturbed more than the other, or its reference clearly slower.

    A machine that has become another one since, by its processor or its runtime, is not compared.
    """
    if before is None or before.machine != now.machine:
        return now
    is_slower = disturbance(now.reference_ms, before.reference_ms) > 0
    return before if is_slower or before.disturbance < now.disturbance else now
