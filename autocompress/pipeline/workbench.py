"""What all trials of a search share in a process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.artifact import Artifact
from autocompress.data import Array, ArraySplit, Batch, Split, batch_size_of, head, joined
from autocompress.devices import Device, open_device
from autocompress.errors import MeasurementError
from autocompress.formats import parity
from autocompress.methods import Context
from autocompress.pipeline.distant import DistantDevice
from autocompress.plan import Plan
from autocompress.profile import HardwareProfile, made_for
from autocompress.record import Trial
from autocompress.site import HERE, Site
from autocompress.task import Predict, Task

if TYPE_CHECKING:
    from torch import nn

    from autocompress.recovery import Lessons


PROBE_SAMPLES, PROBE_BATCHES = 256, 2
"""Calibration samples on which outputs are compared, and train batches of which batch norms take statistics before."""


@dataclass(frozen=True)
class Trained:
    """How a trial was trained.

    Args:
        seconds: Wall time by stage.
        taken_up: Whether weights of an earlier process were taken up.
    """

    seconds: Mapping[str, float]
    taken_up: bool


@dataclass(frozen=True)
class Workbench:
    """All that trials of one search share in a process.

    Args:
        task: Model, data and metric.
        profiles: The machines, at least one; values of the first have no machine in their names.
        directory: The run directory, or what stands for it here; model files go to `artifacts/` in it.
        site: Where this process works.
        train_elsewhere: Has a trial trained by another process, which leaves the weights in the run directory; None to
            train here.
    """

    task: Task
    profiles: tuple[HardwareProfile, ...]
    directory: Path
    site: Site = HERE
    train_elsewhere: Callable[[Trial], Trained] | None = None

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
    def devices(self) -> tuple[Device, ...]:
        """What measures, in the order of the machines; what happens to machines goes to the run's log."""
        devices = tuple(map(self._opened, self.profiles))
        for device in devices:
            device.tell = partial(self.site.log, self.directory)
        return devices

    def _opened(self, profile: HardwareProfile) -> Device:
        return open_device(profile) if self.site.measures_here(profile) else DistantDevice(profile, self.site)

    @property
    def places(self) -> tuple[tuple[Device, ...], ...]:
        """The devices by where they are: those of one place have a machine in common."""
        places: list[tuple[Device, ...]] = []
        for device in self.devices:
            shared = [place for place in places if any(_meet(device, other) for other in place)]
            places = [place for place in places if place not in shared]
            places.append((*chain.from_iterable(shared), device))
        return tuple(places)

    @cached_property
    def target(self) -> HardwareProfile:
        """What models are made for."""
        return made_for(self.profiles)

    @cached_property
    def context(self) -> Context:
        """What methods may look at."""
        return Context(self.task.examples, self._calibration, self.target, loss=self.task.loss)

    @property
    def _calibration(self) -> Split:
        """The calibration data; those of the first for processes that train together, as a loader gives each others."""
        from autocompress.recovery import team

        split = self.task.split("calibration")
        return split if team.size() == 1 else team.told(lambda: ArraySplit(joined(list(split.batches(256)))))

    @cached_property
    def validation_inferences(self) -> int:
        """Inferences of the score on validation data; they are counted, since a loader need not know them."""
        return sum(1 for _ in self.task.split("validation").batches(batch_size_of(self.task.examples)))

    @cached_property
    def probe_samples(self) -> Batch:
        """Calibration samples on which outputs are compared, a whole number of batches."""
        size = batch_size_of(self.task.examples)
        samples = head(self.context.calibration, PROBE_SAMPLES).samples
        return samples[: max(size, len(samples) // size * size)]

    def probe_outputs(self, predict: Predict) -> Array:
        """What a model says to these samples."""
        return parity.outputs_of(predict, self.probe_samples.inputs, batch_size=batch_size_of(self.task.examples))

    @cached_property
    def original_outputs(self) -> Array:
        """What the original says to these samples."""
        return self.probe_outputs(parity.torch_predictor(self.teacher))

    @cached_property
    def recalibrated_outputs(self) -> Array:
        """What it says once its batch norms are recalibrated as those of changed models are."""
        from autocompress.recovery import recalibrate

        original = copy.deepcopy(self.teacher)
        recalibrate(original, self.task, batches=PROBE_BATCHES)
        return self.probe_outputs(parity.torch_predictor(original))

    @property
    def reference(self) -> Artifact:
        """The exported baseline, against which everything is measured."""
        return self.artifact(Plan())

    def artifact(self, plan: Plan) -> Artifact:
        """The model file of a finished plan.

        Raises:
            MeasurementError: If it is gone.
        """
        path = self.artifact_path(plan)
        if not self.site.has(path):
            raise MeasurementError(f"model file {path} is gone; restore it, or make it again with `autocompress apply`")
        return Artifact.of(path)

    def artifact_path(self, plan: Plan) -> Path:
        """Where the model file of a plan lies, once it is there."""
        return self.directory / "artifacts" / f"{plan.digest}.onnx"


def _meet(a: Device, b: Device) -> bool:
    """Whether two devices have a machine in common; those without an address are all this one."""
    mine, yours = set(a.profile.addresses), set(b.profile.addresses)
    return bool(mine & yours) or not (mine or yours)
