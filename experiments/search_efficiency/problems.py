"""The two networks on which search strategies are compared, and the evaluation of a plan, kept by plan."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from autocompress.devices import resolve_profile
from autocompress.front import pareto_front
from autocompress.landscapes import landscape
from autocompress.objective import make_objectives
from autocompress.pipeline import Workbench, run_baseline, run_probe, run_trial, survey_architectures
from autocompress.plan import Plan
from autocompress.planner import planner, policy_plans, resolve_epochs
from autocompress.probe import Probe, Sensitivity
from autocompress.profile import Protocol
from autocompress.record import Record, Trial
from autocompress.recovery import epoch_seconds
from autocompress.run_directory import RunDirectory
from autocompress.screen import Screen
from autocompress.serialization import digest, from_json, to_json
from autocompress.space import SearchSpace, load_space
from autocompress.strategies._base import Problem
from autocompress.task import Task

IMAGES = 400
"""Images that a plan of ResNet-20 is scored on; the weights have not seen them."""


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
    from experiments.digits.task import task

    return task


NETWORKS = {
    "resnet20": Network(_resnet20, lambda: replace(load_space("joint"), widths=(), depths=(), students=False), 0),
    "digits": Network(_digits, lambda: replace(load_space("joint"), students=False), 1),
}


class Arena:
    """A network with all that was ever found out about its plans.

    Every plan is compressed, trained if the network is, exported, scored and measured once; strategies that come to the
    same plan get the same record. Several processes may share a folder.

    Args:
        name: Of the network.
        folder: Where evaluations are kept.
    """

    def __init__(self, name: str, folder: Path) -> None:
        torch.set_num_threads(1)
        network = NETWORKS[name]
        self.name, self.folder = name, folder / name
        (self.folder / f"work-{os.getpid()}" / "artifacts").mkdir(parents=True, exist_ok=True)
        self._space = resolve_epochs(network.space(), network.epochs)
        protocol = Protocol(min_cpu_s=0.08, max_cpu_s=0.3, interval=0.02)
        self._profile = replace(resolve_profile("local"), protocol=protocol)
        self._bench = Workbench(network.task(), self._profile, self.folder / f"work-{os.getpid()}")
        self._known: dict[str, Record | Sensitivity] = {}
        for path in sorted(self.folder.glob("evaluations-*.jsonl")):
            self._known |= dict(_read(path))
        self._file = self.folder / f"evaluations-{os.getpid()}.jsonl"
        self.spent_s = 0.0
        self.baseline = self._begin()

    def _begin(self) -> Record:
        own = run_baseline(Trial(0, Plan()), self._bench)  # also makes the file that others are measured against
        kept = self._known.get(_key(Plan()))
        if isinstance(kept, Record):
            return kept
        self._keep(own)
        return own

    @cached_property
    def _survey(self) -> Problem:
        models, _ = survey_architectures(self._bench, self._space)
        plan = planner(self._space, models, self._profile)
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
            landscapes={name: landscape(self._space, plan, view, self._profile) for name, view in models.items()},
            epoch_s=epoch_s,
            epoch_steps=self._bench.lessons.steps,
        )

    def problem(self, seed: int, journal: Path, *, policies: bool) -> Problem:
        """What a strategy searches."""
        survey = self._survey
        return replace(survey, seed=seed, journal=journal, policies=survey.policies if policies else ())

    def evaluate(self, trial: Trial, screen: Screen | None) -> Record:
        """The record of a trial, from the evaluation of its plan.

        Args:
            trial: What to try.
            screen: What a plan has to beat before it is trained; None trains in any case. What comes of it is not kept.
        """
        kept = self._known.get(_key(trial.plan))
        if not isinstance(kept, Record):
            record = run_trial(replace(trial, seed=0), self._bench, screen)
            if record.status == "screened":
                self.spent_s += record.elapsed_s
                return replace(record, trial=trial)
            latency = record.values.get("latency_ratio", 1.0) * self.baseline.values["latency_ms"]
            kept = replace(record, values={**record.values, "latency_ms": latency}) if record.values else record
            with suppress(FileNotFoundError):
                self._bench.artifact_path(trial.plan).unlink()
            self._keep(kept)
        untrained_s = kept.seconds.get("build", 0.0) + kept.seconds.get("screen", 0.0)
        reason = screen.verdict(kept.values) if screen and kept.plan.recovery.epochs and kept.values else ""
        if reason:
            self.spent_s += untrained_s
            return Record(trial, "screened", reason=reason, values=kept.values, seconds={"screen": untrained_s})
        self.spent_s += kept.elapsed_s
        return replace(kept, trial=trial)

    def screen(self, records: Sequence[Record]) -> Screen:
        """What plans have to beat after some trials."""
        metric, objectives = self._bench.task.the_metric, self._survey.objectives
        front = tuple(record.values for record in pareto_front(records, objectives))
        return Screen(objectives, (), metric.name, metric.direction == "maximize", self.baseline.values, front)

    def forget_weights(self, needed: Collection[str]) -> None:
        """Delete trained weights but those of some plans, by digest."""
        RunDirectory(self._bench.directory).forget_weights(needed)

    def look(self, probe: Probe) -> Sensitivity:
        """The entry of the table for a change."""
        key = f"probe-{_key(probe.plan)}"
        kept = self._known.get(key)
        if not isinstance(kept, Sensitivity):
            kept = run_probe(probe, self._bench)
            self._keep(kept)
        self.spent_s += kept.seconds
        return replace(kept, probe=probe)

    def _keep(self, found: Record | Sensitivity) -> None:
        if isinstance(found, Record):
            found = replace(found, measurement=None)  # samples fill files and are not looked at here
            self._known[_key(found.plan)] = found
        else:
            self._known[f"probe-{_key(found.plan)}"] = found
        with self._file.open("a") as file:
            file.write(to_json(found) + "\n")


def _key(plan: Plan) -> str:
    return digest(plan)


def _read(path: Path) -> Iterator[tuple[str, Record | Sensitivity]]:
    for line in path.read_text().splitlines():
        with suppress(ValueError):  # a line that another process is writing
            if json.loads(line)["kind"] == "sensitivity":
                entry = from_json(Sensitivity, line)
                yield f"probe-{_key(entry.plan)}", entry
            else:
                record = from_json(Record, line)
                yield _key(record.plan), record
