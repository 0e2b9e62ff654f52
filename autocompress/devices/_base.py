"""What every device can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from autocompress.artifact import Artifact
from autocompress.data import Array
from autocompress.measurement import Measurement
from autocompress.profile import HardwareProfile, Protocol
from autocompress.registry import Registry


class Device(ABC):
    """A machine that measures and runs models.

    Args:
        profile: What the machine is, and how it measures.

    Attributes:
        tell: Told what happens to the machine, a line an event, by devices that have something to tell.
    """

    name: ClassVar[str]

    def __init__(self, profile: HardwareProfile) -> None:
        self.profile = profile
        self.tell: Callable[[str], None] = _keep_silent

    @abstractmethod
    def measure(
        self,
        artifacts: Sequence[Artifact],
        reference: Artifact,
        *,
        examples: tuple[Array, ...],
        protocol: Protocol | None = None,
    ) -> tuple[Measurement, ...]:
        """Measure models together with a reference, interleaved, so that their ratios can be trusted.

        Args:
            artifacts: ONNX files. Those with equal bytes are one model: it is measured once, and they share its times,
                as one that equals the reference shares the reference's.
            reference: What `latency_ratio` is relative to, usually the baseline.
            examples: Inputs of one inference, arrays (batch, …) in the order of the models' inputs.
            protocol: How to measure; by default as the profile says.

        Returns:
            One measurement for each artifact, in their order.

        Raises:
            MeasurementError: If a model can't be loaded or run, or takes too long; names the file.
            DeviceUnavailable: If the device is missing or stays busy.
        """

    @abstractmethod
    def run(self, artifact: Artifact, inputs: tuple[Array, ...], *, batch_size: int | None = None) -> tuple[Array, ...]:
        """The outputs of a model, computed on the device.

        Args:
            artifact: An ONNX file.
            inputs: Arrays (samples, …) in the order of the model's inputs, cast to the precision that it takes.
            batch_size: Samples of one inference, the last may have fewer; by default all at once.

        Returns:
            Arrays (samples, …) in the order of the model's outputs.

        Raises:
            MeasurementError: If the model can't be loaded or run, or takes too long; names the file.
            DeviceUnavailable: If the device is missing or stays busy.
        """


def _keep_silent(event: str) -> None:
    """Tell nobody."""


DEVICES: Registry[type[Device]] = Registry("device", "autocompress.devices")


def open_device(profile: HardwareProfile) -> Device:
    """The device that a profile is measured on.

    Raises:
        UnknownName: If no device has the name in `profile.device`.
    """
    return DEVICES[profile.device](profile)
