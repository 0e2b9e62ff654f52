"""Search a task with some strategies and the same budget, and keep what each trial gave and when.

python experiments/wall_clock/run.py --task fsdd --budget 10m --data DIR [--strategy guided tpe] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

import autocompress
from autocompress.duration import parse_duration
from autocompress.point import Point
from autocompress.record import Record
from autocompress.report.facts import RunFacts
from autocompress.report.sections.time_spent import spent_by_stage
from autocompress.run_directory import RunDirectory
from autocompress.serialization import to_json, write_atomically
from autocompress.snapshot import Snapshot
from autocompress.space import SearchSpace, load_space
from autocompress.strategies import STRATEGIES
from autocompress.task import load_task
from experiments.provenance import commit

ALONE = "tpe_alone"
"""Optuna's multivariate TPE without the uniform policies that each of our strategies begins with."""

EXPERIMENTS, HERE = Path(__file__).resolve().parents[1], Path(__file__).parent


@dataclass(frozen=True)
class Model:
    """A model of the front, or the baseline.

    Args:
        name: Of its files.
        validation, test: The metric on both splits.
        latency_ratio, size_ratio: Against the baseline.
    """

    name: str
    validation: float
    test: float | None
    latency_ratio: float
    size_ratio: float


@dataclass(frozen=True)
class Tried:
    """A finished trial.

    Args:
        number, source, status: Of the trial.
        ended_s: Wall time of the search at which it ended.
        epochs: Of its model, those of what it starts from included.
        score: The metric on validation data; None unless it is complete, as what follows.
        latency_ratio, size_ratio: Against the baseline.
    """

    number: int
    source: str
    status: str
    ended_s: float
    epochs: int
    score: float | None = None
    latency_ratio: float | None = None
    size_ratio: float | None = None


@dataclass(frozen=True)
class Search:
    """A search that has ended, without its models.

    Args:
        task, metric, direction, is_percentage: What was compressed and how it is scored.
        strategy, seed, budget_s, workers: How; the strategy may be `tpe_alone`.
        elapsed_s: Wall time that it took.
        cpu, machine, versions, commit: Where, and by what.
        baseline: The original.
        front: The models of the end, the baseline may be among them.
        trials: All of them, in the order they ended.
        worker_seconds: Stage to the seconds that workers spent in it.
    """

    task: str
    metric: str
    direction: str
    is_percentage: bool
    strategy: str
    seed: int
    budget_s: float
    workers: int
    elapsed_s: float
    cpu: str
    machine: str
    versions: dict[str, str]
    commit: str
    baseline: Model
    front: tuple[Model, ...]
    trials: tuple[Tried, ...]
    worker_seconds: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Run what is asked for, one search after the other; those with a record file already are left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("digits", "fsdd", "cifar10", "banking77"), required=True)
    parser.add_argument("--budget", required=True, help="of each search, such as 10m")
    parser.add_argument("--strategy", nargs="+", choices=sorted([*STRATEGIES, ALONE]), default=["guided", "tpe"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", help="folder with the data sets")
    parser.add_argument("--runs", type=Path, help="folder where run directories are kept; by default they are not")
    parser.add_argument("--records", type=Path, default=HERE / "records")
    chosen = parser.parse_args()
    if chosen.data:
        os.environ["AUTOCOMPRESS_DATA"] = chosen.data
    state = commit()
    load_task(_task(chosen.task)).build_model()  # some tasks train their model on first use, which is no search
    minutes = f"{parse_duration(chosen.budget) / 60:g}m"
    for seed in chosen.seeds:
        for strategy in chosen.strategy:
            path = chosen.records / chosen.task / f"{strategy}-{minutes}-{seed}.json"
            if path.is_file():
                continue
            print(f"{chosen.task}, {strategy}, seed {seed}", file=sys.stderr)
            with tempfile.TemporaryDirectory() as folder:
                output = (chosen.runs or Path(folder)) / f"{chosen.task}-{path.stem}"
                is_begun = (output / "run.json").is_file()
                if is_begun:
                    run = autocompress.resume(output, observer=_say)
                else:
                    own, space = _way(strategy)
                    run = autocompress.search(
                        _task(chosen.task),
                        budget=chosen.budget,
                        space=space,
                        strategy=own,
                        seed=seed,
                        output=output,
                        observer=_say,
                    )
                if run.status != "complete":
                    sys.exit(f"{path.stem}: the search is {run.status}; no record is written")
                by = f"another, ended at {state}" if is_begun else state
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, to_json(told(output, strategy, by), indent=1).encode() + b"\n")


def _task(name: str) -> str:
    return str(EXPERIMENTS / name / "task.py")


def _way(name: str) -> tuple[str, SearchSpace]:
    """A strategy and the space that it is given."""
    space = load_space("joint")
    return ("tpe", replace(space, policies=())) if name == ALONE else (name, space)


def told(run: Path, strategy: str, commit: str) -> Search:
    """What a run directory says, without models.

    Args:
        run: Of a search that has ended.
        strategy: What it is called here.
        commit: Of the code that searched.
    """
    directory = RunDirectory.open(run)
    config, heartbeat, (baseline, front) = directory.config, directory.heartbeat, directory.points()
    assert baseline is not None, "the search has ended"
    assert heartbeat is not None, "the search has ended"
    seconds = spent_by_stage(RunFacts.read(directory, run))
    return Search(
        task=config.task,
        metric=config.metric,
        direction=config.direction,
        is_percentage=config.is_percentage,
        strategy=strategy,
        seed=config.seed,
        budget_s=config.budget_s or 0.0,
        workers=config.workers,
        elapsed_s=round(heartbeat.elapsed_s, 1),
        cpu=config.profiles[0].cpu,
        machine=platform.node(),
        versions=dict(config.versions),
        commit=commit,
        baseline=_model(baseline, config.metric),
        front=tuple(_model(point, config.metric) for point in front),
        trials=tuple(_tried(record, baseline, config.metric) for record in directory.records() if record.number),
        worker_seconds={stage: round(value, 1) for stage, value in sorted(seconds.items())},
    )


def _model(point: Point, metric: str) -> Model:
    test = point.test.get(metric)
    return Model(point.name, point.validation[metric], test, round(point.latency_ratio, 4), round(point.size_ratio, 4))


def _tried(record: Record, baseline: Point, metric: str) -> Tried:
    values, plan = record.values, record.plan
    known = record.number, record.trial.proposal.source, record.status, round(record.ended_s, 1), plan.total_epochs
    if record.status != "complete":
        return Tried(*known)
    size_ratio = values["size_bytes"] / baseline.size_bytes
    return Tried(*known, values[metric], round(values["latency_ratio"], 4), round(size_ratio, 4))


def _say(snapshot: Snapshot) -> None:
    if snapshot.event:
        print(snapshot.event, file=sys.stderr)


if __name__ == "__main__":
    main()
