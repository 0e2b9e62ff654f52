"""`autocompress search`: the main job."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autocompress.cli.config import Config, find_config
from autocompress.cli.locate import offer_data, the_task
from autocompress.errors import InvalidInput
from autocompress.objective import LATENCY, LATENCY_RATIO, SIZE, Constraint, on_each_machine, over_machines, quantity

if TYPE_CHECKING:
    from autocompress.point import Point
    from autocompress.run import Run

_RESUMABLE = frozenset(
    {"budget", "trials", "workers", "executor", "address", "gpus_per_trial", "trainers_per_trial"}
    | {"score_on_device", "storage"}
)
"""What may change when a search goes on."""

SMALL_LOSSES = (1, 2, 5)
"""Points (percent, where the metric is no share) that a model may lose which one is pointed to."""

_REPEATED = {"objectives": "--objective", "constraints": "--constraint"}


def search(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK",
            help="`file.py`, `file.py:name` or `package.module:name`: a Task, or a function that returns one. Without "
            "it: `task` of `autocompress.yaml` or `[tool.autocompress]`.",
        ),
    ] = None,
    *,
    budget: Annotated[
        str | None,
        typer.Option(help="Wall time, all resumes together: `90s`, `15m`, `4h`, `2d`. Without `--trials` it is 15m."),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Stop after so many trials.")] = None,
    space: Annotated[str | None, typer.Option(help="Search space: a shipped name (`joint`) or a YAML file.")] = None,
    hardware: Annotated[
        list[str] | None,
        typer.Option(
            help="The machine to measure on: a shipped profile (`local`) or a YAML file. Repeat it for several: every "
            "model is measured on each, and `latency_ms@NAME` is an objective for each."
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="What to optimize; repeat it. By default the metric, `latency_ms` (that on each machine) and "
            "`size_bytes`; also `peak_memory_bytes`. For one model instead of a front give weights: `accuracy:10` and "
            "`latency_ms:1` make a point of accuracy worth ten percent of latency."
        ),
    ] = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option(
            help="What every model must obey; repeat it: `latency_ms<=5` (on each machine), `size_bytes<=0.25x`."
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="How much worse than the baseline the metric may be: in points for accuracies, else in percent."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at the same time.")] = None,
    executor: Annotated[
        str | None,
        typer.Option(help="Where trials run: `processes` of this machine (default), `ray` on a cluster, or `inline`."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster: `host:port` of its head or `ray://host:10001`. By default that of `RAY_ADDRESS` or of "
            "this machine; where there is none, one is started here."
        ),
    ] = None,
    gpus_per_trial: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="GPUs of Ray that training a trial takes, such as 0.25; with `--trainers-per-trial` each trainer has "
            "as many.",
        ),
    ] = None,
    trainers_per_trial: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes of Ray that train one trial together, on one machine or several, each on its part of every "
            "batch. For models that take too long alone; where several trials fit at the same time, `--workers` gets "
            "more done.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For everything random.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="`guided` (default): sensitivities, models and a solver; or `tpe`, `nsga2`, `random`."),
    ] = None,
    score_on_device: Annotated[
        bool | None,
        typer.Option(
            "--score-on-device/--no-score-on-device",
            help="Score the final front also by what the device computes for the validation data, and tell where that "
            "differs from the host. Off by default; the time is part of the budget.",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Write the study to a database, too, where optuna-dashboard finds it from elsewhere: "
            "`sqlite:///study.db`, `postgresql://user@host/database`. A password in it is not kept for `--resume`; "
            "better leave it to `PGPASSWORD` or `~/.pgpass`. By default (`journal`) the study is in the run directory.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run directory; by default a new folder under `runs/`.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a search that was stopped or killed.")
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although model, data or metric have changed.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data, for tasks that ask for one (`AUTOCOMPRESS_DATA`).")
    ] = None,
) -> None:
    """Search for the best trade-offs of accuracy, latency and size, and keep each as an ONNX file.

    Ctrl-C once lets the running trials finish, twice stops at once; both leave a run that `--resume` goes on with.

    Example: `autocompress search task.py --budget 4h --constraint "latency_ms<=5" --max-drop 1`
    """
    flags = {
        "budget": budget,
        "trials": trials,
        "space": space,
        "hardware": tuple(hardware or ()),
        "objectives": tuple(objective or ()),
        "constraints": tuple(constraint or ()),
        "max_drop": max_drop,
        "workers": workers,
        "executor": executor,
        "address": address,
        "gpus_per_trial": gpus_per_trial,
        "trainers_per_trial": trainers_per_trial,
        "seed": seed,
        "strategy": strategy,
        "score_on_device": score_on_device,
        "storage": storage,
        "output": output,
    }
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    config = find_config(Path.cwd())
    offer_data(data, config)
    if resume is None:
        run = _start(task, given, config, accept_changes)
    else:
        run = _resume(resume, task, given, accept_changes)
    _print_end(run)
    if run.was_cancelled:
        raise typer.Abort


def _start(task: str | None, given: Mapping[str, Any], config: Config, accept_changes: bool) -> Run:
    from autocompress import api
    from autocompress.cli.progress import watch

    if accept_changes:
        raise InvalidInput("--accept-changes belongs to --resume RUN; leave it out for a new search")
    reference = the_task(task, config)
    options = {name: value for name, value in config.values().items() if name not in ("task", "data")}
    with watch() as observer:
        return api.search(reference, **{**options, **given}, observer=observer)


def _resume(path: Path, task: str | None, given: Mapping[str, Any], accept_changes: bool) -> Run:
    from autocompress import api
    from autocompress.cli.progress import watch

    fixed = sorted(given.keys() - _RESUMABLE)
    if fixed:
        flags = ", ".join(_REPEATED.get(name, f"--{name.replace('_', '-')}") for name in fixed)
        raise InvalidInput(f"{flags} can't change on --resume; leave it out, or start a new search")
    with watch() as observer:
        return api.resume(path, task=task, accept_changes=accept_changes, observer=observer, **given)


def _print_end(run: Run) -> None:
    from autocompress.cli.show import print_run

    print_run(run)
    path = shlex.quote(str(run.path))
    if run.near_misses:
        typer.echo(
            f"\nfiles of the nearest: {run.path / 'near_misses'}\n"
            f"Widen the constraints in a new search, or give this one more time: autocompress search --resume {path} "
            "--budget TIME"
        )
        return
    points = [point for point in run.points if point.number > 0]
    if not points:
        was_tried = any(run.as_json()["trials"].values())
        why = "no model better than the baseline was found; give it more time" if was_tried else run.reason
        typer.echo(f"\n{why}: autocompress search --resume {path} --budget TIME")
        return
    if not [point for point in points if min(on_each_machine(point.values(), LATENCY_RATIO).values()) < 1]:
        typer.echo("\nno model that was found is faster than yours")
    more = "" if run.status == "stopped" else " --budget TIME"
    where, best = _choice(run, points)
    asked = [*(["--where", shlex.quote(where)] if where else []), *(["--best", best] if best else [])]
    typer.echo(
        f"\nfiles:  {run.path / 'front'}\n"
        f"choose: {' '.join(('autocompress pick', path, *asked))} --output model.onnx\n"
        f"        ({_told(run, run.pick(where, best))})\n"
        f"look:   {run.path / 'report.html'}\n"
        f"go on:  autocompress search --resume {path}{more}"
    )


def _choice(run: Run, points: Sequence[Point]) -> tuple[str | None, str | None]:
    """How one might choose, as `Run.pick` takes it: by the weights, else the fastest of those that lose little.

    With several machines the fastest is that of the lowest geometric mean of their latencies.
    """
    config, baseline = run.config, run.baseline
    assert baseline is not None, "a run with points has a baseline"
    if all(objective.weight for objective in config.objectives):
        return None, None
    ahead = [point for point in points if over_machines(point.values(), LATENCY_RATIO) < 1]
    best = LATENCY if ahead else SIZE
    if any(constraint.name == config.metric for constraint in config.constraints):
        return None, best
    sign, operator = ("-", ">=") if config.direction == "maximize" else ("+", "<=")
    for percent in SMALL_LOSSES:
        bound = f"baseline{sign}{percent}%" if config.is_percentage else f"{1 + float(f'{sign}{percent}') / 100:g}x"
        constraint = Constraint.parse(f"{config.metric}{operator}{bound}")
        if any(constraint.violation(point.values(), baseline.values()) <= 0 for point in ahead or points):
            return f"{config.metric}{operator}{bound}", best
    return None, None


def _told(run: Run, point: Point) -> str:
    """A point in a line."""
    shown = {"metric", "test", LATENCY_RATIO, "size_ratio"}
    cells = (f"{column.title} {column.cell(point)}" for column in run.columns() if quantity(column.key) in shown)
    return f"{point.name}: {', '.join(cells)}"
