"""What all trials of a search share in a process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.artifact import Artifact
from autocompress.devices import Device, open_device
from autocompress.methods import Context
from autocompress.plan import Plan
from autocompress.profile import HardwareProfile
from autocompress.task import Task

if TYPE_CHECKING:
    from torch import nn

    from autocompress.recovery import Lessons


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
