"""The two networks on which search strategies are compared, and the evaluation of a plan, kept by plan."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from autocompress.devices import resolve_profile
from autocompress.errors import DeviceUnavailable, MeasurementError
from autocompress.front import pareto_front
from autocompress.landscapes import landscape
from autocompress.objective import make_objectives
from autocompress.pipeline import Workbench, is_screened, run_baseline, run_probe, run_trial, survey_architectures
from autocompress.plan import Plan
from autocompress.planner import planner, policy_plans, resolve_epochs
from autocompress.probe import Probe, Sensitivity
from autocompress.profile import Protocol
from autocompress.record import Record, Trial
from autocompress.recovery import epoch_seconds
from autocompress.run_directory import RunDirectory
from autocompress.screen import Screen
from autocompress.serialization import from_json, to_json
from autocompress.space import SearchSpace, load_space
from autocompress.strategies import Problem
from autocompress.task import Task

SCREEN_S = 0.4
"""Seconds of measuring a plan before it is trained, alike for all that do so, whoever evaluated the plan first."""

IMAGES = 400
"""Images that a plan of ResNet-20 is scored on; the weights have not seen them."""

DIGITS = 320
"""Images that a plan of the digits network is trained on."""


Found = TypeVar("Found", Record, Sensitivity)


@dataclass(frozen=True)
class Network:
    """What is compressed.

    Args:
        task: Makes it.
        space: What may be done.
        epochs: Of recovery of a plan.
    """

    task: Callable[[], Task]
    space: Callable[[], SearchSpace]
    epochs: int


def _resnet20() -> Task:
    """The images that plans are scored on are test images, since the weights know all others."""
    from experiments.cifar10.task import CALIBRATION, baseline, floats, load_images

    (images, classes), (test_images, test_classes) = load_images("train20k"), load_images("test5k")
    return Task(
        name="resnet20",
        model=baseline,
        train=(floats(images[:2000]), classes[:2000]),
        calibration=(floats(images[:CALIBRATION]), classes[:CALIBRATION]),
        validation=(floats(test_images[:IMAGES]), test_classes[:IMAGES]),
        batch_size=32,
    )


def _digits() -> Task:
    """A third of the training images, so that a trial takes a second or two."""
    from experiments.digits.task import task

    images, classes = task.train
    return replace(task, train=(images[:DIGITS], classes[:DIGITS]))


NETWORKS = {
    "resnet20": Network(_resnet20, lambda: replace(load_space("joint"), widths=(), depths=(), students=False), 0),
    "digits": Network(_digits, lambda: replace(load_space("joint"), students=False), 1),
}


class Arena:
    """A network with all that was ever found out about its plans.

    Every plan is compressed, trained if the network is, exported, scored and measured once; strategies that come to the
    same plan get the same record. Several processes may share a folder: each sees what the others have found, and of
    two that evaluate a plan at the same time the first is believed.

    Args:
        name: Of the network.
        folder: Where evaluations are kept.
    """

    def __init__(self, name: str, folder: Path) -> None:
        torch.set_num_threads(1)
        network = NETWORKS[name]
        self.name, self.folder = name, folder / name
        (self.folder / f"work-{os.getpid()}" / "artifacts").mkdir(parents=True, exist_ok=True)
        self._epochs = network.epochs
        self._space = resolve_epochs(network.space(), network.epochs)
        protocol = Protocol(min_cpu_s=0.05, max_cpu_s=0.15, interval=0.03)
        self.profile = replace(resolve_profile("local"), protocol=protocol)
        self._bench = Workbench(network.task(), (self.profile,), self.folder / f"work-{os.getpid()}")
        self._known: dict[str, Record | Sensitivity] = {}
        self._read_until: dict[Path, int] = {}
        self._file = self.folder / f"evaluations-{os.getpid()}.jsonl"
        self._parents: set[str] = set()
        self.spent_s = 0.0
        self.baseline = self._begin()

    def _begin(self) -> Record:
        own = run_baseline(Trial(0, Plan()), self._bench)  # also makes the file that others are measured against
        kept = self._find(Plan().digest)
        return kept if isinstance(kept, Record) else self._keep(own)

    @cached_property
    def _survey(self) -> Problem:
        models, _ = survey_architectures(self._bench, self._space)
        plan = planner(self._space, models, self.profile)
        metric = self._bench.task.the_metric
        epoch_s = epoch_seconds(self._bench.task.build_model(), self._bench.lessons, None)
        return Problem(
            plan=plan,
            policies=policy_plans(self._space, plan),
            objectives=make_objectives((), metric.name, metric.direction),
            constraints=(),
            seed=0,
            journal=Path(),
            is_percentage=metric.is_percentage,
            landscapes={name: landscape(self._space, plan, view, self.profile) for name, view in models.items()},
            epoch_s=epoch_s,
            epoch_steps=self._bench.lessons.steps,
        )

    @property
    def trains(self) -> bool:
        """True if models are trained after they were compressed."""
        return self._epochs > 0

    def problem(self, seed: int, journal: Path, *, policies: bool, trials: int) -> Problem:
        """What a strategy searches."""
        survey = self._survey
        own = survey.policies if policies else ()
        return replace(survey, seed=seed, journal=journal, policies=own, trials=trials)

    def evaluate(self, trial: Trial, screen: Screen | None) -> Record:
        """The record of a trial, from the evaluation of its plan.

        Args:
            trial: What to try.
            screen: What a plan has to beat before it is trained; None trains in any case. What comes of it is not kept.
        """
        kept = self._find(trial.plan.digest)
        if not isinstance(kept, Record):
            record = run_trial(replace(trial, seed=0), self._bench, screen)
            if record.status == "screened":
                untrained = {"build": record.seconds["build"], "screen": SCREEN_S}
                self.spent_s += sum(untrained.values())
                return replace(record, trial=trial, seconds=untrained)
            latency = record.values.get("latency_ratio", 1.0) * self.baseline.values["latency_ms"]
            record = replace(record, values={**record.values, "latency_ms": latency}) if record.values else record
            with suppress(FileNotFoundError):
                self._bench.artifact_path(trial.plan).unlink()
            kept = record if _is_passing(record) else self._keep(record)
        looks_first = screen is not None and is_screened(kept.plan)
        untrained = {"build": kept.seconds.get("build", 0.0), "screen": SCREEN_S * looks_first}
        reason = screen.verdict(kept.values) if screen and looks_first and kept.values else ""
        if reason:
            self.spent_s += sum(untrained.values())
            measured = {name: value for name, value in kept.values.items() if name != self._bench.task.the_metric.name}
            return Record(trial, "screened", reason=reason, values=measured, seconds=untrained)
        record = replace(kept, trial=trial, seconds={**kept.seconds, **untrained})
        self.spent_s += record.elapsed_s
        return record

    def screen(self, records: Sequence[Record]) -> Screen:
        """What plans have to beat after some trials."""
        metric, objectives = self._bench.task.the_metric, self._survey.objectives
        front = tuple(record.values for record in pareto_front(records, objectives))
        return Screen(objectives, (), metric.name, metric.direction == "maximize", self.baseline.values, front)

    def forget_weights(self, needed: Collection[str]) -> None:
        """Delete trained weights but those of plans that some strategy began with, or may begin with, by digest."""
        self._parents.update(needed)
        RunDirectory(self._bench.directory).forget_weights(self._parents)

    def look(self, probe: Probe) -> Sensitivity:
        """The entry of the table for a change."""
        kept = self._find(f"probe-{probe.plan.digest}")
        if not isinstance(kept, Sensitivity):
            kept = self._keep(run_probe(probe, self._bench))
        self.spent_s += kept.seconds
        return replace(kept, probe=probe)

    def _find(self, key: str) -> Record | Sensitivity | None:
        """What is known of a plan, here or by other processes."""
        if key not in self._known:
            for path in sorted(self.folder.glob("evaluations-*.jsonl")):
                for other, found in self._new_lines(path):
                    self._known.setdefault(other, found)
        return self._known.get(key)

    def _new_lines(self, path: Path) -> Iterator[tuple[str, Record | Sensitivity]]:
        """Whole lines of a file that were not read yet."""
        with path.open("rb") as file:
            file.seek(self._read_until.get(path, 0))
            lines = [line for line in file if line.endswith(b"\n")]
        for line in lines:
            self._read_until[path] = self._read_until.get(path, 0) + len(line)
            if json.loads(line)["kind"] == "sensitivity":
                entry = from_json(Sensitivity, line)
                yield f"probe-{entry.plan.digest}", entry
            else:
                record = from_json(Record, line)
                yield record.plan.digest, record

    def _keep(self, found: Found) -> Found:
        """Write an evaluation down, without its samples, which fill files and are not looked at here."""
        if isinstance(found, Record):
            measured = {
                name: replace(one, samples=None, reference_samples=None) for name, one in found.measurements.items()
            }
            found = replace(found, measurements=measured)
            key = found.plan.digest
        else:
            key = f"probe-{found.plan.digest}"
        self._known[key] = found
        with self._file.open("a") as file:
            file.write(to_json(found) + "\n")
        return found


def _is_passing(record: Record) -> bool:
    """True if a trial failed for what is no fault of its plan."""
    passing = (DeviceUnavailable.__name__, MeasurementError.__name__, "out of memory")
    return record.status == "failed" and record.reason.startswith(passing)
