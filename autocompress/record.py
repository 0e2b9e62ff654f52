"""A record: all that is known of one finished trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict

from autocompress.artifact import Artifact
from autocompress.measurement import Measurement, Measurements
from autocompress.objective import machine_of
from autocompress.plan import Plan, Scalar

Status = Literal["complete", "screened", "failed"]


@dataclass(frozen=True)
class Proposal:
    """Where a plan came from, so that the study can be rebuilt from the records.

    Args:
        source: "baseline", "policy", the name of an Optuna strategy, or which part of the guided one it was: "solver",
            "local", "tpe", "promotion" or "random".
        params: Knobs that were answered; the guided strategy leaves out those at their neutral answer.
        attributes: What the strategy needs or wants to be seen later. An Optuna strategy: `generation`. The guided one:
            `start` (trial that it begins with) and `before` (epochs of it that count), `full` (epochs of full
            training), `promotes` (trial whose model is trained more), `block` and `unknown` (first trial of those that
            the solver proposed together, and those at work then), and `expected_…`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    source: str
    params: Mapping[str, Scalar] = field(default_factory=dict)
    attributes: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A plan to try.

    Args:
        number: Counts from 0, the baseline.
        plan: What to do.
        seed: For everything random in the trial.
        fidelity: Training that the model has had in the end, as a share of what the search gives in full, in (0, 1];
            1 for plans that need none.
        proposal: Where the plan came from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    number: int
    plan: Plan
    seed: int = 0
    fidelity: float = 1.0
    proposal: Proposal = field(default_factory=lambda: Proposal("user"))


TAKEN_UP = "taken_up"
"""The detail of a record which says that weights of an earlier process were taken up: its seconds tell nothing."""

SPARSIFY = "sparsify"
"""The stage in which a model is trained towards zeros before it is compressed."""

TRAIN = "train"
"""The stage of a trial that grows with the epochs of its recovery."""


@dataclass(frozen=True)
class Record:
    """One finished trial.

    Args:
        trial: The plan that was tried.
        status: "complete" with all values; "screened" if dropped before training; "failed" with a reason.
        reason: Why it was screened or failed, in one line.
        values: The metric on validation data and what was measured; complete trials have them all.
        fold_scores: The metric on parts of validation data, which says how far the whole may be trusted; empty where
            the metric can't be taken of parts.
        artifact: The model file, for complete trials.
        measurements: How the latency on each machine came about.
        seconds: Wall time by stage.
        notes: What the user should know, for example that a choice brought size but no speed here.
        details: Other facts: score before recovery, parity error, parameters, MACs.
        machine: The worker's host.
        ended_s: Wall time of the search, over all its resumes, at which the trial ended.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    trial: Trial
    status: Status
    reason: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    artifact: Artifact | None = None
    measurements: Measurements = field(default_factory=dict)
    fold_scores: tuple[float, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: Mapping[str, float] = field(default_factory=dict)
    machine: str = ""
    ended_s: float = 0.0
    kind: Literal["trial"] = "trial"

    @property
    def number(self) -> int:
        """The trial's number."""
        return self.trial.number

    @property
    def plan(self) -> Plan:
        """The trial's plan."""
        return self.trial.plan

    @property
    def elapsed_s(self) -> float:
        """Wall time of the whole trial."""
        return sum(self.seconds.values())

    @property
    def measurement(self) -> Measurement | None:
        """The one on the first machine, that values without a machine in their names come from."""
        return next(iter(self.measurements.values()), None)

    def measurement_for(self, name: str) -> Measurement | None:
        """The measurement that a value such as `latency_ms` or `latency_ms@phone` comes from."""
        machine = machine_of(name)
        return self.measurements.get(machine) if machine else self.measurement

    @property
    def training_s(self) -> float:
        """Wall time of the epochs of recovery."""
        return self.seconds.get(TRAIN, 0.0)

    @property
    def fixed_s(self) -> float:
        """Wall time of all but training: neither epochs of recovery nor those in which the model becomes sparse."""
        return self.elapsed_s - self.training_s - self.seconds.get(SPARSIFY, 0.0)


@dataclass(frozen=True)
class SplitScore:
    """What a finished model scored on a split; nothing where the task has none.

    Args:
        values: Metric name to its value.
        fold_scores: The metric on parts of the split; empty where it can't be taken of parts.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    fold_scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Remeasured:
    """A finished model that was measured again.

    Args:
        number: Number of the trial.
        measurements: On every machine.
        values: Latencies, which replace those of the record. Peak memory is not taken again.
        kept: Machines that were more disturbed than when the trial measured there, so that its measurement stays.
    """

    number: int
    measurements: Measurements
    values: Mapping[str, float]
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Confirmation:
    """What the end of a search adds to a point of the front.

    All points are measured again together, interleaved, and scored on the test split.

    Args:
        number: Number of the trial.
        test: Metric name to its value on the test split; empty where the task has none.
        measurements: On every machine the later, better ones; those of the trial where that was the quieter moment.
        values: The measured values that replace those of the record.
        test_fold_scores: The metric on parts of the test split.
        seconds: Time of workers that scoring and measuring took.
        believed: The metric on validation data as the strategy believes in it, from this trial and all others; None
            if it has no belief.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    number: int
    test: Mapping[str, float]
    measurements: Measurements
    values: Mapping[str, float]
    test_fold_scores: tuple[float, ...] = ()
    seconds: float = 0.0
    believed: float | None = None
    kind: Literal["confirmation"] = "confirmation"


@dataclass(frozen=True)
class TooSlow:
    """That a finished model was not scored by what the device computes, as it would have taken too long.

    Args:
        number: Number of the trial.
        seconds: Wall time that it would have taken, about.
    """

    number: int
    seconds: float


@dataclass(frozen=True)
class DeviceScore:
    """What a finished model scored by the outputs that the device computed.

    Args:
        number: Number of the trial.
        score: The metric on validation data; None if there is no score by what the device computes.
        reason: Why there is none, in one line.
        seconds: Wall time that it took.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    number: int
    score: float | None
    reason: str = ""
    seconds: float = 0.0
    kind: Literal["device_score"] = "device_score"
