"""A made-up search: a configuration, records and confirmations with numbers that are easy to check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autocompress.artifact import Artifact
from autocompress.measurement import Measurement
from autocompress.objective import Constraint, make_objectives, measured_objectives, on_machine, parse_constraints
from autocompress.plan import Plan, Recovery, Scalar, Step
from autocompress.probe import Probe, Sensitivity
from autocompress.profile import HardwareProfile
from autocompress.record import Confirmation, DeviceScore, Proposal, Record, Trial
from autocompress.run_directory import RunConfig, RunDirectory
from autocompress.space import SearchSpace

BASELINE = {"accuracy": 0.97, "latency_ms": 0.8, "latency_ratio": 1.0, "size_bytes": 400_000, "peak_memory_bytes": 2e6}
LAYERS = ("stem", "block1.conv1", "block1.conv2", "block2.conv1", "head")

INT8 = Plan(
    steps=(Step("quantization", {layer: {"precision": "int8"} for layer in LAYERS}),),
    recovery=Recovery(epochs=2),
)
NARROW = Plan(architecture="width_0.5", recovery=Recovery(epochs=8))
PRUNED = Plan(
    steps=(
        Step("channel_pruning", {"block1.conv1": {"pruning_ratio": 0.5}, "block2.conv1": {"pruning_ratio": 0.25}}),
        Step("quantization", {"stem": {"precision": "int8"}, "head": {"precision": "dynamic_int8"}}),
    ),
    recovery=Recovery(epochs=4),
)

FRONT = (
    (1, INT8, 0.968, 0.5, 0.27),
    (2, NARROW, 0.955, 0.4, 0.3),
    (3, PRUNED, 0.948, 0.3, 0.2),
)
"""Number, plan, accuracy, latency ratio and size ratio of models that none dominates."""


def config(*, task: str = "digits", constraints: Sequence[str] = (), objectives: tuple[str, ...] = ()) -> RunConfig:
    """What a search was asked to do."""
    return RunConfig(
        task=task,
        task_reference="task.py",
        metric="accuracy",
        is_percentage=True,
        direction="maximize",
        fingerprints={"model": "0123456789abcdef"},
        space=SearchSpace("joint"),
        profiles=(HardwareProfile("local", cpu="A Processor"),),
        objectives=make_objectives(objectives, "accuracy", "maximize"),
        constraints=tuple(Constraint.parse(text) for text in constraints),
        strategy="tpe",
        budget_s=180.0,
        trials=None,
        workers=2,
        seed=0,
        versions={"torch": "2.13.0"},
        machine="bench",
        created="2026-11-22T17:00:00+00:00",
    )


def measurement(ratio: float) -> Measurement:
    """A measurement of a model with that latency ratio."""
    return Measurement(
        latency_ms=0.8 * ratio,
        latency_ratio=ratio,
        latency_ratio_interval=(ratio - 0.01, ratio + 0.02),
        wall_p50_ms=0.8 * ratio,
        wall_p95_ms=ratio,
        contention=1.0,
        peak_memory_bytes=2_000_000,
        integer_nodes=3,
        nodes=9,
        machine="A Processor",
    )


def complete(number: int, plan: Plan, accuracy: float, latency: float, size: float) -> Record:
    """A trial that brought a model; latency and size as shares of the baseline's."""
    values = {
        "accuracy": accuracy,
        "latency_ms": 0.8 * latency,
        "latency_ratio": latency,
        "size_bytes": 400_000 * size,
        "peak_memory_bytes": 2e6,
    }
    return Record(
        trial=Trial(number, plan, proposal=Proposal("policy", attributes=expected(number, accuracy, latency, size))),
        status="complete",
        values=values,
        artifact=Artifact(f"artifacts/{number}.onnx", "0" * 64, int(400_000 * size)),
        measurements={"local": measurement(latency)},
        seconds={"build": 1.0, "train": 5.0},
        machine="bench",
    )


def expected(number: int, accuracy: float, latency: float, size: float) -> dict[str, Scalar]:
    """What a search might have expected of a trial: ten percent more than came; nothing of the baseline."""
    if number == 0:
        return {}
    costs = {"latency_ms": latency, "size_bytes": size, "peak_memory_bytes": 1.0}
    return {"expected_loss": 110 * (0.97 - accuracy)} | {f"expected_{k}_ratio": 1.1 * v for k, v in costs.items()}


def sensitivities() -> tuple[Sensitivity, ...]:
    """Two changes that were looked at, and one that could not be carried out."""
    entries = []
    for layer, divergence, reason in (("stem", 0.2, ""), ("head", 0.0, ""), ("block1.conv1", 0.0, "infeasible: no")):
        plan = Plan(steps=(Step("quantization", {layer: {"precision": "int8"}}),))
        values = {} if reason else {"latency_ratio": 0.9, "size_bytes": 3e5}
        entries.append(Sensitivity(Probe(plan), reason, divergence, values, seconds=0.5))
    return tuple(entries)


def dropped(number: int, status: str, reason: str) -> Record:
    """A trial that brought none."""
    assert status in ("screened", "failed")
    return replace(complete(number, PRUNED, 0, 0, 0), status=status, reason=reason, values={}, artifact=None)


def baseline() -> Record:
    """The record of the model as it was."""
    return complete(0, Plan(), 0.97, 1.0, 1.0)


def records() -> tuple[Record, ...]:
    """The baseline, the front, a model that the front beats, and four that came to nothing."""
    return (
        baseline(),
        *(complete(*row) for row in FRONT),
        complete(4, NARROW, 0.90, 0.6, 0.5),
        dropped(5, "failed", "infeasible: layer 'stem' keeps 0 of 16 channels"),
        dropped(6, "failed", "infeasible: layer 'head' keeps 0 of 16 channels"),
        dropped(7, "failed", "infeasible: layer 'head' keeps 0 of 32 channels"),
        dropped(8, "screened", "latency 0.91x is dominated by 001"),
    )


def confirmation(number: int, accuracy: float, ratio: float, values: Mapping[str, float] | None = None) -> Confirmation:
    """What the end of the search found of a model."""
    measured = values if values is not None else {"latency_ms": 0.8 * ratio, "latency_ratio": ratio}
    return Confirmation(number, {"accuracy": accuracy}, {"local": measurement(ratio)}, measured)


def on_device() -> tuple[DeviceScore, ...]:
    """Scores on a device where one model is worse and another can't be run; a third was not reached."""
    return (DeviceScore(0, 0.97), DeviceScore(1, 0.9659), DeviceScore(2, None, "no kernel for <Erf>"))


def scored_on_device(path: Path) -> RunDirectory:
    """A finished search whose front was scored on the device."""
    directory = make_run(path, config=replace(config(), score_on_device=True))
    for line in on_device():
        directory.append(line)
    directory.write_front(directory.records(), directory.confirmations(), directory.device_scores())
    return directory


def on_two_machines(path: Path, *, constraints: Sequence[str] = ()) -> RunDirectory:
    """A finished search for a phone, as that of `make_run`, and a server on which models are slower the faster there.

    Their latency ratios on the server are 0.9, 0.6 and 1.2, so that the geometric mean over both is lowest for model 2.
    """
    machines = ("phone", "server")
    ratios = {0: 1.0, 1: 0.9, 2: 0.6, 3: 1.2}
    known = ("accuracy", *(one.name for one in measured_objectives(machines)))
    directory = RunDirectory.create(path)
    directory.write_config(
        replace(
            config(),
            profiles=tuple(map(HardwareProfile, machines)),
            objectives=make_objectives((), "accuracy", "maximize", machines),
            constraints=parse_constraints(tuple(constraints), known),
        )
    )
    lines = [_on_both(record, ratios[record.number]) for record in (baseline(), *(complete(*row) for row in FRONT))]
    for record in lines:
        (path / f"artifacts/{record.number}.onnx").write_bytes(f"model {record.number}".encode())
        directory.append(record)
    directory.write_front(lines, (), ())
    directory.beat("complete", 171.5)
    return directory


def _on_both(record: Record, ratio: float) -> Record:
    """The record of a search on one machine with a second one, twice as fast and with that latency ratio."""
    first, second = record.values, {"latency_ms": 0.4 * ratio, "latency_ratio": ratio, "peak_memory_bytes": 1e6}
    own = {
        on_machine(name, machine): values[name]
        for name in second
        for machine, values in (("phone", first), ("server", second))
    }
    measurements = {"phone": measurement(first["latency_ratio"]), "server": measurement(ratio)}
    return replace(record, values={**first, **own}, measurements=measurements)


def make_run(path: Path, *, config: RunConfig = config(), confirm: bool = True) -> RunDirectory:  # noqa: B008
    """A run directory as a finished search leaves it."""
    directory = RunDirectory.create(path)
    directory.write_config(config)
    lines = records()
    for record in lines:
        if record.artifact is not None:
            (path / record.artifact.path).write_bytes(f"model {record.number}".encode())
        directory.append(record)
    confirmations = tuple(confirmation(n, a - 0.002, ratio) for n, _, a, ratio, _ in FRONT) if confirm else ()
    for entry in sensitivities():
        directory.append(entry)
    for line in (*confirmations, *((confirmation(0, 0.966, 1.0),) if confirm else ())):
        directory.append(line)
    directory.write_front(lines, directory.confirmations(), ())
    directory.beat("complete", 171.5)
    return directory
