"""From a plan to a record: build, screen, recover, export, compare, score, measure."""

from __future__ import annotations

import copy
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress import __version__
from autocompress.artifact import Artifact
from autocompress.data import head
from autocompress.devices import Device, open_device
from autocompress.errors import AutocompressError, InfeasiblePlan, UnknownName
from autocompress.formats import onnx_export, onnx_runtime, parity
from autocompress.formats.compact import compact
from autocompress.formats.encodings import encode_weights
from autocompress.graph.inspect import layer_view, used_layers
from autocompress.graph.view import LayerView
from autocompress.graph.width import scaled_copy
from autocompress.measurement import Measurement
from autocompress.methods import METHODS, CompressionMethod, Context
from autocompress.plan import ORIGINAL, Plan, Settings, Stage
from autocompress.planner import architectures
from autocompress.profile import HardwareProfile, Protocol
from autocompress.record import Record, Trial
from autocompress.screen import Screen
from autocompress.space import SearchSpace, parse_scaled
from autocompress.task import Task
from autocompress.user_code import user_code

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from autocompress.recovery import Lessons

PARITY_SAMPLES = 32
SCREEN_SAMPLES = 8
LATE_SHARE = 0.25
"""Share of the epochs in which values are held, for plans that change the structure too."""

LATE_RATE = 0.003
"""Peak learning rate while values are held, at most: coarse values follow larger steps badly.

On the digits example (weights of 3 bits, 3 seeds) students trained at 0.01 reach 96.7 % at that rate, 99.2 % at 0.003;
pruned originals 98.5 % at 0.003 and 98.9 % at 0.001, with 2 bits 81 and 73 %.
"""

PHASES = ("free", "settled")
QUICK = Protocol(min_cpu_s=0.08, max_cpu_s=0.25, interval=0.04)
"""How the untrained model is measured for screening: enough to tell 5 % apart."""


@dataclass(frozen=True)
class Workbench:
    """All that trials of one search share in a process.

    Args:
        task: Model, data and metric.
        profile: The machine.
        directory: The run directory; model files go to `artifacts/` in it.
    """

    task: Task
    profile: HardwareProfile
    directory: Path

    @cached_property
    def teacher(self) -> nn.Module:
        """The original model, never changed."""
        return self.task.build_model()

    @cached_property
    def lessons(self) -> Lessons:
        """The training data as the teacher teaches it."""
        from autocompress.recovery import Lessons

        return Lessons(self.task, self.teacher)

    @cached_property
    def device(self) -> Device:
        """What measures."""
        return open_device(self.profile)

    @cached_property
    def context(self) -> Context:
        """What methods may look at."""
        return Context(self.task.examples, self.task.split("calibration"), self.profile, loss=self.task.loss)

    @property
    def reference(self) -> Artifact:
        """The exported baseline, against which everything is measured."""
        return Artifact.of(self.artifact_path(Plan()))

    def artifact_path(self, plan: Plan) -> Path:
        """Where the model file of a plan lies."""
        return self.directory / "artifacts" / f"{plan.digest}.onnx"


def build(bench: Workbench, plan: Plan, seed: int) -> nn.Module:
    """The model of a plan with the structure, factors and zeros that the plan says, before recovery.

    Where the plan asks for it, the architecture is trained towards sparsity first.

    Raises:
        UnknownName: If the plan names a method or architecture that is not known.
        InfeasiblePlan: If a method can't do what the plan says.
    """
    import torch

    torch.manual_seed(seed)
    model = build_architecture(bench, plan.architecture)
    if plan.recovery.sparsify_epochs:
        _sparsify(bench, model, plan, seed)
    return _compressed(bench, model, _early(plan), seed)


def _sparsify(bench: Workbench, model: nn.Module, plan: Plan, seed: int) -> None:
    """Train an architecture towards sparsity in place; all plans that ask for the same share the weights."""
    from safetensors.torch import load_model

    from autocompress.recovery import sparsify

    recovery = replace(plan.recovery, epochs=0, feature_weight=0.0)  # neither has a part in it
    shared = Plan(plan.architecture, recovery=recovery).digest
    saved = bench.directory / "artifacts" / f"{shared}-sparse-{seed}-{__version__}.safetensors"
    if saved.is_file():
        load_model(model, str(saved))
        return
    sparsify(model, bench.lessons, recovery, seed=seed, loss=bench.task.loss)
    _save_weights(model, saved, {})


def settle(bench: Workbench, model: nn.Module, plan: Plan, seed: int) -> nn.Module:
    """A built and recovered model with the values and numbers that the plan says; schedules of constraints are over.

    Raises:
        InfeasiblePlan: If a method can't do what the plan says.
    """
    from autocompress.graph.constraints import constraints

    for constraint in constraints(model):
        constraint.settled = True
    return _compressed(bench, model, _late(plan), seed)


def finish(model: nn.Module, plan: Plan) -> nn.Module:
    """The model without what was only needed to train it, held against the plan.

    Raises:
        InfeasiblePlan: If the model has not become what the plan says.
    """
    for method, _ in _steps(plan):
        model = method.finalize(model)
    for method, settings in _steps(plan):
        method.verify(model, settings)
    return model


def _compressed(
    bench: Workbench, model: nn.Module, steps: Sequence[tuple[CompressionMethod, Settings]], seed: int
) -> nn.Module:
    context = replace(bench.context, seed=seed)
    for method, settings in steps:
        model = method(model, settings, context)
    return model


def build_architecture(bench: Workbench, architecture: str) -> nn.Module:
    """The original, a narrower or shallower copy with fresh weights, or a student that the task names.

    Torch's multi-head attention is written out as linear layers in all of them, so that methods see these.

    Raises:
        UnknownName: If it is none of these.
        InfeasiblePlan: If the original can't be made narrower or shallower.
    """
    from autocompress.graph.attention import expand_attention

    if architecture == ORIGINAL:
        return expand_attention(bench.task.build_model())
    scale = parse_scaled(architecture)
    if scale is not None:
        return _scaled(bench, *scale)
    students = [variant for variants in bench.task.student_variants.values() for variant in variants]
    if architecture not in students:
        raise UnknownName("architecture", architecture, [ORIGINAL, "width_0.5", "depth_0.5", *students])
    return expand_attention(bench.task.build_student(architecture))


def _scaled(bench: Workbench, width: float, depth: float) -> nn.Module:
    from autocompress.graph.attention import expand_attention
    from autocompress.graph.depth import shallow_copy

    model, examples = expand_attention(copy.deepcopy(bench.teacher)), bench.task.examples
    if depth != 1:
        model = shallow_copy(model, examples, depth)
    return scaled_copy(model, examples, width, bench.profile.channel_multiple) if width != 1 else model


def lower(model: nn.Module, plan: Plan, context: Context) -> tuple[ModelProto, ModelProto]:
    """The exported graph of a model, plain and as the plan's methods change it.

    Raises:
        ConversionError: If the export fails.
        InfeasiblePlan: If a method finds nothing of its layers in the graph.
    """
    plain = onnx_export.export(model, context.examples)
    graph = plain
    for method, settings in _steps(plan):
        graph = method.lower(graph, settings, context)
    return plain, compact(encode_weights(graph))


def run_trial(trial: Trial, bench: Workbench, screen: Screen | None = None) -> Record:
    """Carry out a trial; whatever goes wrong in it becomes a failed record with the reason.

    Args:
        trial: The plan to try.
        bench: Task, machine and run directory.
        screen: What the plan has to beat before it is trained; None trains in any case.
    """
    clock = _Stopwatch()
    try:
        record = _run(trial, bench, screen, clock)
    except AutocompressError as error:
        record = Record(trial, "failed", reason=f"{type(error).__name__}: {error}")
    except MemoryError as error:
        record = Record(trial, "failed", reason=f"out of memory: {error}")
    return replace(record, seconds=clock.seconds, machine=platform.node())


def run_baseline(trial: Trial, bench: Workbench) -> Record:
    """Export, score and measure the original model; it becomes the reference of all measurements.

    Raises:
        TaskFailed: If the user's own code raises.
        AutocompressError: If the model can't be exported, scored or measured.
    """
    clock = _Stopwatch()
    _try_model(bench)
    with clock.stage("export"):
        graph = onnx_export.export(bench.teacher, bench.task.examples)
        onnx_runtime.save(compact(graph), bench.artifact_path(trial.plan))
    record = _run(trial, bench, None, clock)
    return replace(record, seconds=clock.seconds, machine=platform.node())


def _try_model(bench: Workbench) -> None:
    """Run the original once as the user wrote it, so that what fails in it is told apart from a failed export.

    Raises:
        TaskFailed: If it does not take the example inputs.
    """
    predict, examples = parity.torch_predictor(bench.teacher), bench.task.examples
    shapes = ", ".join(f"{array.dtype} {array.shape}" for array in examples)
    user_code(lambda: predict(examples), f"running the model on its example inputs ({shapes})")


def apply_plan(trial: Trial, bench: Workbench, output: Path) -> Record:
    """Carry out one plan and move its model file to `output`.

    Raises:
        AutocompressError: Whatever makes the plan fail.
    """
    baseline = run_baseline(replace(trial, plan=Plan()), bench)
    record = baseline if trial.plan.is_baseline else _run(trial, bench, None, _Stopwatch())
    assert record.artifact is not None, "a trial that did not raise has an artifact"
    shutil.copyfile(bench.directory / record.artifact.path, output)
    return replace(record, artifact=Artifact.of(output))


def survey_architectures(bench: Workbench, space: SearchSpace) -> tuple[dict[str, LayerView], dict[str, str]]:
    """The layers of every architecture that a space and a task offer, and why some can't be built."""
    models, refused = {}, {}
    for name in architectures(space, bench.task.student_variants):
        try:
            models[name] = layer_view(build_architecture(bench, name), bench.task.examples, name)
        except InfeasiblePlan as error:
            refused[name] = str(error)
    return models, refused


def _run(trial: Trial, bench: Workbench, screen: Screen | None, clock: _Stopwatch) -> Record:
    plan, seed = trial.plan, trial.seed
    with clock.stage("build"):
        model = build(bench, plan.without_recovery(), seed)
    if screen is not None and (plan.recovery.epochs or plan.recovery.sparsify_epochs):
        with clock.stage("screen"):
            reason, values = _screen(bench, model, plan, seed, screen)
        if reason:
            return Record(trial, "screened", reason=reason, values=values)
    if plan.recovery.sparsify_epochs:
        with clock.stage("sparsify"):
            model = build(bench, plan, seed)
    details = _facts(bench, model)
    with clock.stage("recover"):
        model, reached = _recover(bench, model, trial)
        details |= reached
    with clock.stage("export"):
        model = finish(model, plan)
        plain, graph = lower(model, plan, replace(bench.context, seed=seed))
        path = bench.artifact_path(plan)
        onnx_runtime.save(graph, path)
    with clock.stage("parity"):
        details |= _parity(bench, model, plain, graph)
    with clock.stage("score"):
        score = bench.task.score(onnx_runtime.predictor(path))
    with clock.stage("measure"):
        measurement = _measure(bench, [Artifact.of(path)], None)[0]
    for phase in PHASES:
        _saved_weights(bench, trial, phase).unlink(missing_ok=True)
    values = {bench.task.the_metric.name: score, **_values(measurement, path, screen)}
    artifact = replace(Artifact.of(path), path=f"artifacts/{path.name}")
    notes = _notes(plan, measurement)
    return Record(trial, "complete", "", values, artifact, measurement, {}, notes, details)


def _screen(bench: Workbench, model: nn.Module, plan: Plan, seed: int, screen: Screen) -> tuple[str, dict[str, float]]:
    """Measure the untrained model: its speed and size are those of the trained one."""
    few = head(bench.context.calibration, SCREEN_SAMPLES)  # ranges change no speed
    model = finish(settle(bench, copy.deepcopy(model), plan, seed), plan)
    _, graph = lower(model, plan, replace(bench.context, calibration=few, seed=seed))
    path = bench.directory / "artifacts" / f"{plan.digest}.screen.onnx"
    onnx_runtime.save(graph, path)
    try:
        measurement = _measure(bench, [Artifact.of(path)], QUICK)[0]
        values = _values(measurement, path, screen)
    finally:
        path.unlink(missing_ok=True)
    return screen.verdict(values), values


def _recover(bench: Workbench, model: nn.Module, trial: Trial) -> tuple[nn.Module, dict[str, float]]:
    """Recalibrate, fine-tune and settle a model.

    A plan that both changes the structure and restricts values is trained twice: first with batch norms and free
    values, then, in the last `LATE_SHARE` of its epochs, folded and held to its values. Each phase leaves the weights
    of its best epoch, or those it began with if none is better.
    """
    from autocompress.recovery import recalibrate

    plan = trial.plan
    free, held = _epochs(plan, trial.fidelity)
    if plan.recovery.penalty != "none" and not plan.recovery.sparsify_epochs and not free:
        raise InfeasiblePlan(
            f"recovery: penalty {plan.recovery.penalty!r} acts while values are free, and this plan has no such "
            "epochs; give it sparsify_epochs, or leave the penalty out"
        )
    if _is_rebuilt(plan):
        recalibrate(model, bench.task, seed=trial.seed)
    first = _train(bench, model, trial, free, "free")
    model = settle(bench, model, plan, trial.seed)
    return model, _joined(first, _train(bench, model, trial, held, "settled"))


def _is_rebuilt(plan: Plan) -> bool:
    return plan.architecture != ORIGINAL or bool(_early(plan))


def _epochs(plan: Plan, fidelity: float) -> tuple[int, int]:
    """Epochs with free values and epochs in which they are held, together the plan's at this fidelity."""
    epochs = max(1, round(plan.recovery.epochs * fidelity)) if plan.recovery.epochs else 0
    if not any(method.needs_recovery(settings) for method, settings in _late(plan)):
        return epochs, 0
    held = max(1, round(LATE_SHARE * epochs)) if _is_rebuilt(plan) and epochs > 1 else epochs
    return epochs - held, held


def _joined(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """What both phases of a recovery reached; epochs are counted through."""
    if not first or not second:
        return first or second
    best = first["epochs"] + second["best_epoch"] if second["best_epoch"] else first["best_epoch"]
    start, epochs = first["score_before_recovery"], first["epochs"] + second["epochs"]
    return second | {"score_before_recovery": start, "best_epoch": best, "epochs": epochs}


def _train(bench: Workbench, model: nn.Module, trial: Trial, epochs: int, phase: str) -> dict[str, float]:
    """Fine-tune a model in place; weights of the same trial, cut short earlier, are taken up."""
    from safetensors import safe_open
    from safetensors.torch import load_model

    from autocompress.recovery import recover

    if not epochs:
        return {}
    direction = 1.0 if bench.task.the_metric.direction == "maximize" else -1.0

    def score(candidate: nn.Module) -> float:
        return direction * bench.task.score(parity.torch_predictor(candidate), batch_size=bench.task.batch_size)

    saved = _saved_weights(bench, trial, phase)
    if saved.is_file():
        load_model(model, str(saved))
        with safe_open(saved, "pt") as file:
            known: dict[str, float] = json.loads(file.metadata()["reached"])
        return known
    is_held = phase == "settled"
    recovery = replace(trial.plan.recovery, epochs=epochs)
    if is_held:
        recovery = replace(recovery.without_penalty(), learning_rate=min(LATE_RATE, recovery.learning_rate))
    reached = recover(
        model,
        bench.lessons,
        recovery,
        score=score,
        seed=trial.seed,
        loss=bench.task.loss,
        features=bench.task.feature_pairs,
        folded=is_held,
    )
    facts = {
        "score_before_recovery": direction * reached.start,
        "recovered_score": direction * reached.score,
        "best_epoch": reached.epoch,
        "epochs": reached.epochs,
    }
    _save_weights(model, saved, {"reached": json.dumps(facts)})
    return facts


def _save_weights(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write weights so that at any moment either none or all are there; several processes may do so at once."""
    from safetensors.torch import save_model

    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_model(model, str(partial), metadata)
    partial.replace(path)


def _saved_weights(bench: Workbench, trial: Trial, phase: str) -> Path:
    """Where the recovered weights of a trial lie until its record is written."""
    key = f"{trial.plan.digest}-{phase}-{trial.fidelity:g}-{trial.seed}-{__version__}"
    return bench.directory / "artifacts" / f"{key}.safetensors"


def _parity(bench: Workbench, model: nn.Module, plain: ModelProto, graph: ModelProto) -> dict[str, float]:
    """Hold the export against torch, and the lowered graph against the export.

    Raises:
        ConversionError: If they differ by more than rounding.
    """
    inputs = head(bench.task.split("validation"), PARITY_SAMPLES).samples.inputs
    size = len(bench.task.examples[0])
    exported = onnx_runtime.predictor(plain)
    first = parity.compare(parity.torch_predictor(model), exported, inputs, batch_size=size)
    parity.require(first, parity.FLOAT_TOLERANCE, "ONNX export against torch")
    if graph is plain:
        return {"export_error": first.relative_error}
    second = parity.compare(exported, onnx_runtime.predictor(graph), inputs, batch_size=size)
    parity.require(second, parity.INTEGER_TOLERANCE, "compressed graph against its float export")
    return {
        "export_error": first.relative_error,
        "lowering_error": second.relative_error,
        "lowering_agreement": second.agreement,
    }


def _measure(bench: Workbench, artifacts: Sequence[Artifact], protocol: Protocol | None) -> tuple[Measurement, ...]:
    return bench.device.measure(artifacts, bench.reference, examples=bench.task.examples, protocol=protocol)


def _values(measurement: Measurement, path: Path, screen: Screen | None) -> dict[str, float]:
    """What was measured; the latency as ratio times the baseline's, so that the machine's mood drops out."""
    latency = measurement.latency_ratio * screen.baseline["latency_ms"] if screen else measurement.latency_ms
    return {
        "latency_ms": latency,
        "latency_ratio": measurement.latency_ratio,
        "size_bytes": float(path.stat().st_size),
        "peak_memory_bytes": float(measurement.peak_memory_bytes),
    }


def _facts(bench: Workbench, model: nn.Module) -> dict[str, float]:
    layers = used_layers(model, bench.task.examples)
    return {"parameters": sum(layer.parameters for layer in layers), "macs": sum(layer.macs for layer in layers)}


def _notes(plan: Plan, measurement: Measurement) -> tuple[str, ...]:
    numeric = [step.method for step in plan.steps if METHODS[step.method].stage == Stage.NUMERICS]
    if numeric and not measurement.integer_nodes:
        return ("no integer kernel ran on this machine: the gain is size alone",)
    return ()


def _early(plan: Plan) -> list[tuple[CompressionMethod, Settings]]:
    """The steps before batch norms are folded."""
    return [step for step in _steps(plan) if step[0].stage < Stage.VALUES]


def _late(plan: Plan) -> list[tuple[CompressionMethod, Settings]]:
    """The steps that act on folded weights."""
    return [step for step in _steps(plan) if step[0].stage >= Stage.VALUES]


def _steps(plan: Plan) -> list[tuple[CompressionMethod, Settings]]:
    """The plan's methods with their settings, in the order in which they act."""
    found = [(METHODS[step.method](), step.settings) for step in plan.steps]
    return sorted(found, key=lambda step: step[0].turn)


class _Stopwatch:
    """Wall time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def score_test(record: Record, bench: Workbench) -> dict[str, float]:
    """The metric of a finished model file on the test split; empty where the task has none."""
    assert record.artifact is not None, "complete records have an artifact"
    if not bench.task.has_test:
        return {}
    predict = onnx_runtime.predictor(bench.directory / record.artifact.path)
    return {bench.task.the_metric.name: bench.task.score(predict, "test")}


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
    measurements = _measure(bench, artifacts, protocol)
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
