"""From a plan to a record: build, screen, recover, export, compare, score, measure."""

from __future__ import annotations

import copy
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.artifact import Artifact
from autocompress.data import batch_size_of, head
from autocompress.errors import AutocompressError, DeviceUnavailable, MeasurementError, TeamBroken, one_line
from autocompress.formats import onnx_runtime, parity
from autocompress.graph.inspect import used_layers
from autocompress.measurement import Measurements
from autocompress.pipeline.measuring import measure, measured_untrained, values_of
from autocompress.pipeline.models import build, finish, lower, steps_of
from autocompress.pipeline.recovering import begin, forget_weights, recover_and_settle
from autocompress.pipeline.stopwatch import Stopwatch
from autocompress.pipeline.workbench import Trained, Workbench
from autocompress.plan import Plan
from autocompress.record import SPARSIFY, TAKEN_UP, Record, Trial
from autocompress.screen import Screen
from autocompress.user_code import user_code

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

PARITY_SAMPLES = 32

SCREEN_SAMPLES = 8

NO_MEMORY = ("can't allocate memory", "CUDA out of memory")
"""How torch's allocators say so, that of the processor in an error of no kind of its own."""


def run_trial(trial: Trial, bench: Workbench, screen: Screen | None = None) -> Record:
    """Carry out a trial; what its plan, the runtime or its memory makes fail is a failed record with the reason.

    Args:
        trial: The plan to try.
        bench: Task, machine and run directory.
        screen: What the plan has to beat before it is trained; None trains in any case.

    Raises:
        DeviceUnavailable: If there is nothing to measure on; what was trained is kept, for another try.
        TeamBroken: If processes that train it lose one another again and again.
    """
    clock = Stopwatch()
    try:
        record = _run(trial, bench, screen, clock)
    except (DeviceUnavailable, TeamBroken):
        raise
    except MeasurementError as error:  # what was trained is not to blame
        record = Record(trial, "failed", reason=f"{type(error).__name__}: {error}")
    except AutocompressError as error:
        forget_weights(bench, trial)
        record = Record(trial, "failed", reason=f"{type(error).__name__}: {error}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in NO_MEMORY):
            raise
        record = Record(trial, "failed", reason=f"out of memory: {one_line(error)}")
    return replace(record, seconds=clock.seconds, machine=platform.node())


def train(trial: Trial, bench: Workbench) -> Trained:
    """Train a trial in this process and leave its weights in the run directory, where `run_trial` takes them up.

    Raises:
        AutocompressError: Whatever makes the plan fail.
    """
    plan, here, clock = trial.plan, replace(bench, train_elsewhere=None), Stopwatch()
    with clock.stage("build"):
        if _is_sparsified(plan):
            model = _sparsified(here, trial, clock)
        else:
            model = begin(here, plan.without_recovery(), trial.seed)
    with clock.stage("recover"):
        _, reached = recover_and_settle(here, model, trial, clock)
    return Trained(clock.seconds, TAKEN_UP in reached)


def run_baseline(trial: Trial, bench: Workbench) -> Record:
    """Export, score and measure the original model; it becomes the reference of all measurements.

    Raises:
        TaskFailed: If the user's own code raises.
        AutocompressError: If the model can't be exported, scored or measured.
    """
    _try_model(bench)
    return _timed(trial, bench)


def _timed(trial: Trial, bench: Workbench) -> Record:
    """The record of a trial that is trained in any case; what fails is raised."""
    clock = Stopwatch()
    return replace(_run(trial, bench, None, clock), seconds=clock.seconds, machine=platform.node())


def _try_model(bench: Workbench) -> None:
    """Run the original once as the user wrote it, so that what fails in it is told apart from a failed export.

    Raises:
        TaskFailed: If it does not take the example inputs.
    """
    predict, examples = parity.torch_predictor(bench.teacher), bench.task.examples
    shapes = ", ".join(f"{array.dtype} {array.shape}" for array in examples)
    user_code(lambda: predict(examples), f"running the model on its example inputs ({shapes})")


def apply_plan(trial: Trial, bench: Workbench, output: Path) -> Record:
    """Carry out one plan and copy its model file to `output`.

    Raises:
        AutocompressError: Whatever makes the plan fail.
    """
    baseline = run_baseline(replace(trial, plan=Plan()), bench)
    record = baseline if trial.plan.is_baseline else _timed(trial, bench)
    assert record.artifact is not None, "a trial that did not raise has an artifact"
    shutil.copyfile(bench.directory / record.artifact.path, output)
    return replace(record, artifact=Artifact.of(output))


def _run(trial: Trial, bench: Workbench, screen: Screen | None, clock: Stopwatch) -> Record:
    plan, seed = trial.plan, trial.seed
    with clock.stage("build"):
        model = begin(bench, plan.without_recovery(), seed)
    if screen is not None and is_screened(plan):
        with clock.stage("screen"):
            reason, values = _screen(bench, model, plan, seed, screen)
        if reason:
            return Record(trial, "screened", reason=reason, values=values)
    trained = _trained_elsewhere(bench, trial, clock)
    if _is_sparsified(plan):
        model = _sparsified(bench, trial, clock)
    details = _facts(bench, model)
    with clock.stage("recover"):
        model, reached = recover_and_settle(bench, model, trial, Stopwatch() if trained else clock)
        details |= reached
    if trained is not None and not trained.taken_up:  # the weights are of this trial, whose clock knows their time
        details.pop(TAKEN_UP, None)
    with clock.stage("export"):
        model = finish(model, plan)
        plain, graph = lower(model, plan, replace(bench.context, seed=seed))
        path = bench.artifact_path(plan)
        onnx_runtime.save(graph, path)
    with clock.stage("parity"):
        details |= _parity(bench, model, plain, graph)
    with clock.stage("score"):
        outputs, targets = bench.task.outputs(onnx_runtime.predictor(path))
        score = bench.task.evaluate(outputs, targets, "validation")
        fold_scores = bench.task.fold_scores(outputs, targets)
    with clock.stage("measure"):
        measured = measure(bench, [Artifact.of(path)])[0]
    baseline = screen.baseline if screen else None
    values = {bench.task.the_metric.name: score, **values_of(measured, path, baseline)}
    bench.site.share(path)
    artifact = replace(Artifact.of(path), path=f"artifacts/{path.name}")
    notes = _notes(plan, measured)
    return Record(
        trial,
        "complete",
        values=values,
        artifact=artifact,
        measurements=measured,
        fold_scores=fold_scores,
        notes=notes,
        details=details,
    )


def _trained_elsewhere(bench: Workbench, trial: Trial, clock: Stopwatch) -> Trained | None:
    """Have a trial trained by another process; None if it is trained here, or not at all.

    What it takes beside its stages is waiting: for GPUs, for processes that start, for others that were lost.
    """
    if bench.train_elsewhere is None or not _is_trained(trial.plan):
        return None
    with clock.stage("wait"):
        trained = bench.train_elsewhere(trial)
        clock.take_over(trained.seconds)
    return trained


def _sparsified(bench: Workbench, trial: Trial, clock: Stopwatch) -> nn.Module:
    """The model of a plan, trained towards zeros before it is compressed."""
    with clock.stage(SPARSIFY):
        return build(bench, trial.plan, trial.seed)


def _is_sparsified(plan: Plan) -> bool:
    return bool(plan.recovery.sparsify_epochs) and plan.start is None


def _is_trained(plan: Plan) -> bool:
    return bool(plan.recovery.epochs or plan.recovery.sparsify_epochs)


def is_screened(plan: Plan) -> bool:
    """True if a plan is measured before it is trained.

    Not so if it trains what it starts from and changes nothing: that was measured.
    """
    goes_on = plan.start is not None and plan.start.steps == plan.steps
    return not goes_on and _is_trained(plan)


def _screen(bench: Workbench, model: nn.Module, plan: Plan, seed: int, screen: Screen) -> tuple[str, dict[str, float]]:
    """Measure the untrained model: its speed and size are those of the trained one."""
    copied, few = copy.deepcopy(model), SCREEN_SAMPLES  # ranges change no speed
    with measured_untrained(bench, copied, plan, seed, ranges_from=few) as (path, measured):
        values = values_of(measured, path, screen.baseline)
    return screen.verdict(values), values


def _parity(bench: Workbench, model: nn.Module, plain: ModelProto, graph: ModelProto) -> dict[str, float]:
    """Hold the export against torch, and the lowered graph against the export.

    Raises:
        ConversionError: If they differ by more than rounding.
    """
    inputs = head(bench.task.split("validation"), PARITY_SAMPLES).samples.inputs
    size = batch_size_of(bench.task.examples)
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


def _facts(bench: Workbench, model: nn.Module) -> dict[str, float]:
    from autocompress.graph.attention import expand_attention

    layers = used_layers(expand_attention(copy.deepcopy(model)), bench.task.examples)  # counted alike for all plans
    return {"parameters": sum(layer.parameters for layer in layers), "macs": sum(layer.macs for layer in layers)}


def _notes(plan: Plan, measured: Measurements) -> tuple[str, ...]:
    wanted = any(method.wants_integer_kernels(settings) for method, settings in steps_of(plan))
    without = [machine for machine, measurement in measured.items() if not measurement.integer_nodes]
    if not wanted or not without:
        return ()
    where = "this machine" if len(measured) == 1 else ", ".join(without)
    return (f"no integer kernel ran on {where}: the gain is size alone",)
