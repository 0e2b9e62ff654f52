"""A point: one model of the front as people and scripts see it."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

from pydantic import ConfigDict

from autocompress.measurement import Measurement
from autocompress.objective import LATENCY, LATENCY_RATIO, MEMORY, machine_of, on_each_machine, on_machine, quantity
from autocompress.plan import ORIGINAL, Plan, Step
from autocompress.record import Confirmation, DeviceScore, Record

BITS, FULL_BITS = "bits", 8
"""The parameter that says how many bits a weight takes, whatever the method, and how many it takes without it."""

WORDS = ("precision", "pattern", "decomposition", "importance")
"""Parameters whose words tell models apart; others are details."""

FARTHEST_TIE = 0.05
"""Relative difference of two latencies from which on the faster model is chosen, however little is known of them."""

_UNFIT = re.compile(r"[^\w.+-]+")
"""What names of files had better not hold."""


@dataclass(frozen=True)
class OnMachine:
    """What a model is on one of several machines; see `Point`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    latency_ms: float
    latency_ratio: float
    latency_ratio_interval: tuple[float, float]
    peak_memory_bytes: int


@dataclass(frozen=True)
class Point:
    """One model of the front, or the baseline.

    Args:
        number: Its trial.
        name: Short and unique in the run, for example `012-width_0.5-int8`.
        file: The ONNX file.
        plan: The plan, as a file that `autocompress apply` replays.
        validation: Metric name to its value on validation data.
        test: The same on the test split; empty until the search has finished or where the task has none.
        latency_ms: Latency ratio times the latency of the baseline.
        latency_ratio: Latency over that of the baseline, both from one measurement.
        latency_ratio_interval: Its 95 % interval.
        size_bytes: Size of the file.
        size_ratio: Size over that of the baseline.
        peak_memory_bytes: Peak memory of a session.
        confidence: How sure it is that no other model of the front beats it, given how few samples validation data
            has, in [0, 1]; None for the baseline where it is not on the front.
        machines: The same by machine, where there are several; latency and memory above are those of the first.
        device_score: The metric on validation data by the outputs that the device computed; None where it was not
            asked for, not reached in time, or the device can't run the model.
        device_reason: Why the model has no score on the device though it was tried; else empty.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    number: int
    name: str
    file: str
    plan: str
    validation: Mapping[str, float]
    test: Mapping[str, float]
    latency_ms: float
    latency_ratio: float
    latency_ratio_interval: tuple[float, float]
    size_bytes: int
    size_ratio: float
    peak_memory_bytes: int
    confidence: float | None = None
    machines: Mapping[str, OnMachine] = field(default_factory=dict)
    device_score: float | None = None
    device_reason: str = ""

    @property
    def latencies(self) -> Mapping[str, Point | OnMachine]:
        """What holds the latency on each machine, by its name; the point itself, without a name, where there is one."""
        return self.machines or {"": self}

    def as_json(self) -> dict[str, Any]:
        """The point as the stable contract of `autocompress show RUN --format json` has it."""
        return {
            "name": self.name,
            "file": self.file,
            "plan": self.plan,
            "validation": dict(self.validation),
            "test": dict(self.test) or dict.fromkeys(self.validation),
            "latency_ms": self.latency_ms,
            "latency_ratio": self.latency_ratio,
            "size_bytes": self.size_bytes,
            "size_ratio": self.size_ratio,
            "peak_memory_bytes": self.peak_memory_bytes,
            "confidence": self.confidence,
            "machines": {name: asdict(own) for name, own in self.machines.items()},
            "device_score": self.device_score,
            "device_reason": self.device_reason,
        }

    def values(self) -> dict[str, float]:
        """Everything that a `where` or `best` may name."""
        on_device = {} if self.device_score is None else dict.fromkeys(self.validation, self.device_score)
        return {
            **self.validation,
            **{f"test_{name}": value for name, value in self.test.items()},
            **{f"device_{name}": value for name, value in on_device.items()},
            "latency_ms": self.latency_ms,
            "latency_ratio": self.latency_ratio,
            "size_bytes": float(self.size_bytes),
            "size_ratio": self.size_ratio,
            "peak_memory_bytes": float(self.peak_memory_bytes),
            **{
                on_machine(key, name): float(getattr(own, key))
                for name, own in self.machines.items()
                for key in (LATENCY, LATENCY_RATIO, MEMORY)
            },
        }

    def as_row(self) -> dict[str, Any]:
        """All values in full precision, by name, for tables."""
        low, high = self.latency_ratio_interval
        whole = {"size_bytes": self.size_bytes, "peak_memory_bytes": self.peak_memory_bytes}
        interval = {"latency_ratio_low": low, "latency_ratio_high": high, "confidence": self.confidence}
        for name, own in self.machines.items():
            bounds = zip(("latency_ratio_low", "latency_ratio_high"), own.latency_ratio_interval, strict=True)
            interval |= {on_machine(key, name): bound for key, bound in bounds}
        why = {"device_reason": self.device_reason} if self.device_reason else {}
        return {"name": self.name, **self.values(), **whole, **interval, **why, "file": self.file, "plan": self.plan}


def ties(a: Point, b: Point, latency: str) -> bool:
    """True if two models can't be told apart by a latency; never by a value that is no latency.

    Args:
        a, b: The models.
        latency: What the latency, or its ratio, is called; without a machine's name it is that on all.
    """
    if quantity(latency) not in (LATENCY, LATENCY_RATIO):
        return False
    machines = [machine_of(latency)] if machine_of(latency) else [*a.latencies]
    return all(_near(a.latencies[machine], b.latencies[machine]) for machine in machines)


def _near(a: Point | OnMachine, b: Point | OnMachine) -> bool:
    """Whether two ratios differ by no more than their measurements leave open."""
    halves = [(high - low) / 2 for low, high in (a.latency_ratio_interval, b.latency_ratio_interval)]
    largest = FARTHEST_TIE * max(a.latency_ratio, b.latency_ratio)
    return abs(a.latency_ratio - b.latency_ratio) <= min(math.hypot(*halves), largest)


def as_csv(points: Sequence[Point]) -> str:
    """All values of points, a line a point."""
    rows = [point.as_row() for point in points]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def confirmed(records: Sequence[Record], confirmations: Sequence[Confirmation]) -> tuple[Record, ...]:
    """The records with the values of their latest confirmation, where they have one."""
    latest = {confirmation.number: confirmation for confirmation in confirmations}
    return tuple(
        replace(
            record,
            values={**record.values, **latest[record.number].values},
            measurements=latest[record.number].measurements,
        )
        if record.number in latest
        else record
        for record in records
    )


def make_point(
    record: Record,
    baseline: Record,
    confirmations: Sequence[Confirmation],
    metric: str,
    directory: Path,
    *,
    confidence: float | None = None,
    device_score: DeviceScore | None = None,
) -> Point:
    """The point of a record whose values are confirmed already.

    Args:
        record: A complete record of the run.
        baseline: The record of the baseline.
        confirmations: All of the run.
        metric: Name of the task's metric.
        directory: Where the file and the plan of the point lie.
        confidence: How sure it is that the point belongs to the front.
        device_score: What the model scored on the device, if it was tried.
    """
    test = next((c.test for c in reversed(confirmations) if c.number == record.number), {})
    name = point_name(record)
    return Point(
        number=record.number,
        name=name,
        file=str(directory / f"{name}.onnx"),
        plan=str(directory / f"{name}.json"),
        validation={metric: record.values[metric]},
        test=test,
        latency_ms=record.values["latency_ms"],
        latency_ratio=record.values["latency_ratio"],
        latency_ratio_interval=_interval(record.measurement),
        size_bytes=int(record.values["size_bytes"]),
        size_ratio=record.values["size_bytes"] / baseline.values["size_bytes"],
        peak_memory_bytes=int(record.values["peak_memory_bytes"]),
        confidence=confidence,
        machines=_machines(record),
        device_score=device_score.score if device_score else None,
        device_reason=device_score.reason if device_score else "",
    )


def _machines(record: Record) -> dict[str, OnMachine]:
    ratios = on_each_machine(record.values, LATENCY_RATIO)
    memories = on_each_machine(record.values, MEMORY)
    return {
        name: OnMachine(
            latency_ms=latency,
            latency_ratio=ratios[name],
            latency_ratio_interval=_interval(record.measurement_for(on_machine(LATENCY, name))),
            peak_memory_bytes=int(memories[name]),
        )
        for name, latency in on_each_machine(record.values, LATENCY).items()
        if name
    }


def _interval(measurement: Measurement | None) -> tuple[float, float]:
    return measurement.latency_ratio_interval if measurement else (1.0, 1.0)


def point_name(record: Record) -> str:
    """Short name of a record's model, unique in its run and fit for a file."""
    return f"{record.number:03d}-{_UNFIT.sub('_', summarize(record.plan)).strip('_').replace('_-', '-')}"


def summarize(plan: Plan) -> str:
    """A plan in a few words, for names and tables.

    >>> summarize(Plan(architecture="width_0.5", steps=(Step("quantization", {"fc": {"precision": "int8"}}),)))
    'width_0.5-int8'
    >>> fewer = Step("layer_drop", {"layer1.1": {"drop": True}, "layer2.1": {"drop": True}})
    >>> summarize(Plan(steps=(fewer, Step("quantization", {"fc": {"precision": "int8", "bits": 4}}))))
    'layer_drop_x2-int8_w4'
    """
    if plan.is_baseline:
        return "baseline"
    words = [plan.architecture] if plan.architecture != ORIGINAL else []
    words += [_summarize_step(step) for step in plan.steps]
    return "-".join(words) or "finetuned"


def _summarize_step(step: Step) -> str:
    """How much of a method: the mean of its ratios, its precisions and mean bits, or how many layers it takes.

    No rule may depend on the order of settings, which files do not keep.
    """
    settings = step.settings.values()
    given = [item for setting in settings for item in setting.items()]
    ratios = [value for _, value in given if isinstance(value, float)]
    words = sorted({str(value) for parameter, value in given if parameter in WORDS})
    widths = ""
    if any(BITS in setting for setting in settings):
        widths = f"_w{mean(float(setting.get(BITS, FULL_BITS)) for setting in settings):.3g}"
    if ratios:
        return "_".join((step.method, f"{mean(ratios):.2f}", *words))
    if words and step.method == "quantization":  # its words say enough
        return "+".join(words) + widths
    return "_".join((step.method, *words)) + (widths or ("" if words else f"_x{len(settings)}"))
