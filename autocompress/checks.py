"""Everything that would fail later in a search, tried in the order in which it would."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.data import head
from autocompress.errors import AutocompressError, TaskFailed
from autocompress.graph.view import LayerView
from autocompress.objective import LATENCY, on_each_machine
from autocompress.plan import ORIGINAL, Plan
from autocompress.planner import planner, policy_plans, resolve_epochs
from autocompress.profile import HardwareProfile
from autocompress.record import Record, Trial
from autocompress.report.table import format_metric
from autocompress.space import SearchSpace, neutral_answers
from autocompress.task import SplitName, Task, load_task

if TYPE_CHECKING:
    from autocompress.pipeline import Workbench


@dataclass(frozen=True)
class CheckItem:
    """One thing that a search needs.

    Args:
        name: What was looked at.
        ok: Whether a search would work.
        detail: What was found, or what to do.
        seconds: How long it took.
    """

    name: str
    ok: bool
    detail: str
    seconds: float


@dataclass(frozen=True)
class CheckReport:
    """Everything that would fail later."""

    items: tuple[CheckItem, ...]

    @property
    def ok(self) -> bool:
        """True if a search would work."""
        return all(item.ok for item in self.items)


def run_checks(
    source: Task | str, space: SearchSpace, profiles: tuple[HardwareProfile, ...], directory: Path
) -> Iterator[CheckItem]:
    """Try what a search needs; ends after the first item that is not ok.

    Args:
        source: The task, or where it is.
        space: What would be searched.
        profiles: The machines.
        directory: An empty folder for model files.

    Raises:
        TaskFailed: If the user's own code raises.
    """
    from autocompress.pipeline import Workbench, survey_architectures

    started = time.perf_counter()
    try:
        task = load_task(source) if isinstance(source, str) else source
    except AutocompressError as error:
        yield _failed("task", started, error)
        return
    yield CheckItem("task", True, f"{task.name}, metric {task.the_metric.name}", time.perf_counter() - started)
    bench = Workbench(task, profiles, directory)
    survey = cache(lambda: survey_architectures(bench, space))
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("data", lambda: _data(task)),
        ("model", lambda: _model(task)),
        ("baseline", lambda: _baseline(bench)),
        ("layers", lambda: _layers(bench, space, *survey())),
        ("recovery", lambda: _recovery(bench)),
        ("one trial", lambda: _one_trial(bench, space, survey()[0])),
    )
    for name, function in checks:
        started = time.perf_counter()
        try:
            detail = function()
        except TaskFailed:
            raise
        except AutocompressError as error:
            yield _failed(name, started, error)
            return
        yield CheckItem(name, True, detail, time.perf_counter() - started)


def _failed(name: str, started: float, error: AutocompressError) -> CheckItem:
    if isinstance(error, TaskFailed):
        raise error
    return CheckItem(name, False, str(error), time.perf_counter() - started)


def _data(task: Task) -> str:
    names: tuple[SplitName, ...] = ("train", "calibration", "validation")
    if task.has_test:
        names += ("test",)
    shapes = []
    for name in names:
        batch = head(task.split(name), 1).samples
        count = sum(len(part) for part in task.split(name).batches(task.batch_size))
        shapes.append(f"{name} {count} × {', '.join(str(list(array.shape[1:])) for array in batch.inputs)}")
    if task.split("train").fingerprint() == task.split("validation").fingerprint():
        shapes.append("WARNING: validation data are the train data, so scores will be too good")
    missing = "" if task.has_test else "; no test data, so the front will have no test scores"
    return "; ".join(shapes) + missing


def _model(task: Task) -> str:
    again = replace(task)  # which calls the user's function anew
    again.require_weights(task.weights_digest)
    count = sum(parameter.numel() for parameter in task.build_model().parameters())
    return f"{count} parameters, the same each time that it is built"


def _baseline(bench: Workbench) -> str:
    from autocompress.pipeline import run_baseline

    record = run_baseline(Trial(0, Plan()), bench)
    return _values(record, bench.task)


def _layers(bench: Workbench, space: SearchSpace, models: Mapping[str, LayerView], refused: Mapping[str, str]) -> str:
    view = models[ORIGINAL]
    left_out = f"; left out: {', '.join(refused)} ({next(iter(refused.values()))})" if refused else ""
    share = _share_in_reach(bench, space, models)
    if share < 0.5:
        left_out += (
            "; WARNING: most parameters are in layers that this space's methods do not change (recurrent layers, "
            "embeddings and bare parameters are not among those that are)"
        )
    return (
        f"{len(view.layers)} layers, {len(view.channel_groups)} channel groups, {view.parameters:,} parameters, "
        f"{100 * share:.0f} % of them in reach of the space, {view.macs:,} MACs; architectures "
        f"{', '.join(models)}{left_out}"
    )


def _share_in_reach(bench: Workbench, space: SearchSpace, models: Mapping[str, LayerView]) -> float:
    """Share of the original's parameters in layers that some knob changes."""
    plan = planner(resolve_epochs(space, 1), {ORIGINAL: models[ORIGINAL]}, bench.target)
    reached = {name.split("/")[2] for name in neutral_answers(plan) if "/" in name}
    view = models[ORIGINAL]
    reached |= {layer for group in view.channel_groups if group.name in reached for layer in group.layers}
    total = sum(parameter.numel() for parameter in bench.teacher.parameters())
    return sum(layer.parameters for layer in view.layers if layer.name in reached) / max(1, total)


def _recovery(bench: Workbench) -> str:
    from autocompress.recovery import compute_name, epoch_seconds

    seconds = epoch_seconds(bench.task.build_model(), bench.lessons, bench.task.loss)
    return f"one epoch of fine-tuning takes about {seconds:.1f} s on {compute_name()}"


def _one_trial(bench: Workbench, space: SearchSpace, models: Mapping[str, LayerView]) -> str:
    """The first policy of the space, with one epoch where it is trained, or two for small students."""
    from autocompress.pipeline import run_trial

    found = policy_plans(space, planner(resolve_epochs(space, 1), models, bench.target))
    if not found:
        return "the space has no uniform policies; nothing to try"
    record = run_trial(Trial(1, found[0][1]), bench)
    if record.status != "complete":
        raise AutocompressError(record.reason)
    epochs = found[0][1].recovery.epochs
    training = f"with {epochs} epoch{'s' if epochs > 1 else ''} of training" if epochs else "without training"
    return f"{_values(record, bench.task)}, {record.elapsed_s:.1f} s {training}"


def _values(record: Record, task: Task) -> str:
    metric = task.the_metric
    score = format_metric(record.values[metric.name], metric.is_percentage)
    times = on_each_machine(record.values, LATENCY).items()
    latency = ", ".join(f"{value:.3f} ms{f' on {machine}' if machine else ''}" for machine, value in times)
    return f"{metric.name} {score} through ONNX Runtime, {latency}, {record.values['size_bytes'] / 1024:.1f} KiB"
