"""What a worker process is asked to do; every function here travels by its name, its arguments by pickle.

The driver imports this module only for the names, so torch and what needs it are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.graph.view import LayerView
from autocompress.probe import Probe, Sensitivity
from autocompress.profile import HardwareProfile
from autocompress.record import DeviceScore, Record, Remeasured, SplitScore, TooSlow, Trial
from autocompress.screen import Screen
from autocompress.serialization import to_json
from autocompress.site import HERE, Site
from autocompress.space import SearchSpace
from autocompress.task_source import TaskSource

if TYPE_CHECKING:
    from autocompress.pipeline import Trained, Workbench
    from autocompress.task import Task


@dataclass(frozen=True)
class Assignment:
    """Task, machines and run directory of a search, small enough to go with every call.

    Args:
        source: The task.
        weights: Digest of its model's weights.
        profiles: The machines, at least one.
        directory: The run directory, on the machine of the search.
        site: Where the worker works.
    """

    source: TaskSource
    weights: str
    profiles: tuple[HardwareProfile, ...]
    directory: str
    site: Site = HERE


@dataclass(frozen=True)
class Description:
    """What the driver has to know of a task.

    Args:
        task: Its name.
        metric: Name of its metric.
        maximize: True if more of it is better.
        is_percentage: True if it is a share in [0, 1].
        fingerprints: Digests of model, data and metric.
        students: An architecture of each of the task's own students, the middle one of those with ranges.
    """

    task: str
    metric: str
    maximize: bool
    is_percentage: bool
    fingerprints: Mapping[str, str]
    students: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """What can be searched on a task.

    Args:
        models: Architecture name to its layers.
        refused: Architecture name to why it can't be built.
        epoch_s: Seconds of one epoch of recovery of the original.
        epoch_steps: Steps of such an epoch.
        trained_on: What recovery trains on.
    """

    models: Mapping[str, LayerView]
    refused: Mapping[str, str]
    epoch_s: float
    epoch_steps: int
    trained_on: str


def describe(source: TaskSource, space: SearchSpace, site: Site = HERE) -> Description:
    """Load a task and say what it is; refuse a space that can't be searched on it.

    Raises:
        InvalidInput: If the task, its data or the space are malformed.
        TaskFailed: If the user's code raises.
    """
    from autocompress.planner import architectures, check_space

    task = _task(source, site)
    check_space(space, architectures(space, task.student_variants))
    metric = task.the_metric
    return Description(
        task=task.name,
        metric=metric.name,
        maximize=metric.direction == "maximize",
        is_percentage=metric.is_percentage,
        fingerprints=task.fingerprint(),
        students=tuple(variants[0] for variants in task.student_variants.values()),
    )


def survey(assignment: Assignment, space: SearchSpace, epoch_s: float | None = None) -> Survey:
    """The layers of every architecture of a space, and the time of an epoch where it is not known yet."""
    from autocompress.pipeline import survey_architectures

    bench = _bench(assignment)
    models, refused = survey_architectures(bench, space)
    epoch_s, trained_on = assignment.site.at_trainer(time_epoch, assignment, epoch_s)
    return Survey(models, refused, epoch_s, bench.lessons.steps, trained_on)


def time_epoch(assignment: Assignment, known_s: float | None) -> tuple[float, str]:
    """Seconds of an epoch of recovery where models are trained, if they are not known, and what that is."""
    from autocompress.recovery import compute_name, epoch_seconds

    if known_s is not None:
        return known_s, compute_name()
    bench = _bench(assignment)
    return epoch_seconds(bench.task.build_model(), bench.lessons, bench.task.loss), compute_name()


def warm_up(assignment: Assignment) -> None:
    """Load torch, the task and its data, so that the first trial finds them."""
    bench = _bench(assignment)
    next(bench.lessons.epoch(0))


def run_baseline(assignment: Assignment, trial: Trial) -> Record:
    """Export, score and measure the original; errors are raised, since without a baseline there is no search."""
    from autocompress import pipeline

    return pipeline.run_baseline(trial, _bench(assignment))


def run(assignment: Assignment, trial: Trial, screen: Screen) -> Record:
    """Carry out a trial."""
    from autocompress.pipeline import run_trial

    return run_trial(trial, _bench(assignment), screen)


def look(assignment: Assignment, probe: Probe) -> Sensitivity:
    """Look at a single change."""
    from autocompress.pipeline import run_probe

    return run_probe(probe, _bench(assignment))


def test_score(assignment: Assignment, record: Record) -> SplitScore:
    """Score a finished model on the test split."""
    from autocompress.pipeline import score_test

    return score_test(record, _bench(assignment))


def device_score(assignment: Assignment, record: Record, limit_s: float) -> DeviceScore | TooSlow:
    """Score a finished model on validation data by what the device computes, in so many seconds at most."""
    from autocompress.pipeline import score_on_device

    return score_on_device(record, _bench(assignment), limit_s=limit_s)


def measure_together(
    assignment: Assignment, records: tuple[Record, ...], baseline: Mapping[str, float], max_cpu_s: float
) -> tuple[Remeasured, ...]:
    """Measure finished models again, all in one process."""
    from autocompress.pipeline import remeasure

    return remeasure(records, _bench(assignment), baseline, max_cpu_s)


def train(assignment: Assignment, trial: Trial) -> Trained:
    """Train a trial for another worker, which takes its weights up."""
    from autocompress.pipeline import train

    return train(trial, _bench(assignment))


def _bench(assignment: Assignment) -> Workbench:
    """The workbench of an assignment, kept warm between calls."""
    bench = _bench_of(_Key(assignment))
    assignment.site.directory(Path(assignment.directory))  # what others deleted is to be gone here, too
    return bench


@dataclass(frozen=True)
class _Key:
    """An assignment that can be hashed."""

    assignment: Assignment

    def __hash__(self) -> int:
        given = self.assignment
        return hash((given.source, given.weights, given.directory, given.site, *map(to_json, given.profiles)))


@lru_cache(maxsize=2)
def _bench_of(key: _Key) -> Workbench:
    from autocompress.pipeline import Workbench

    given = key.assignment
    site = given.site
    task = _task(given.source, site)
    task.require_weights(given.weights)
    elsewhere = None if site.trains_here else partial(site.at_trainer, train, given)
    return Workbench(task, given.profiles, site.directory(Path(given.directory)), site, elsewhere)


def _task(source: TaskSource, site: Site) -> Task:
    return replace(source, file=str(site.file(Path(source.file)))).load() if source.file else source.load()
