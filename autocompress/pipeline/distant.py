"""A device that is reached through another worker, on the machine where it measures."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from autocompress.artifact import Artifact
from autocompress.data import Array
from autocompress.devices import Device, open_device
from autocompress.measurement import Measurement
from autocompress.profile import HardwareProfile, Protocol
from autocompress.serialization import from_json, to_json
from autocompress.site import Site


class DistantDevice(Device):
    """A machine that other workers reach.

    Args:
        profile: What the machine is; it is opened there.
        site: Of this worker.
    """

    name: ClassVar[str] = "distant"

    def __init__(self, profile: HardwareProfile, site: Site) -> None:
        super().__init__(profile)
        self._site = site

    def measure(
        self,
        artifacts: Sequence[Artifact],
        reference: Artifact,
        *,
        examples: tuple[Array, ...],
        protocol: Protocol | None = None,
    ) -> tuple[Measurement, ...]:
        """Have the models measured there; see `Device.measure`."""
        files, references = tuple(map(_content, artifacts)), _content(reference)
        measured, events = self._site.at_device(
            self.profile, measure_there, self.profile, files, references, examples, protocol
        )
        for event in events:
            self.tell(event)
        return measured

    def run(self, artifact: Artifact, inputs: tuple[Array, ...], *, batch_size: int | None = None) -> tuple[Array, ...]:
        """Have the outputs computed there; see `Device.run`."""
        outputs, events = self._site.at_device(
            self.profile, run_there, self.profile, _content(artifact), inputs, batch_size
        )
        for event in events:
            self.tell(event)
        return outputs


def measure_there(
    profile: HardwareProfile,
    files: tuple[bytes, ...],
    reference: bytes,
    examples: tuple[Array, ...],
    protocol: Protocol | None,
) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
    """Measure models on a machine that is reached from this process.

    Returns:
        The measurements, and what happened to the machine.
    """
    device, events = _opened(profile)
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        *artifacts, compared = (_written(content, Path(folder)) for content in (*files, reference))
        measured = device.measure(artifacts, compared, examples=examples, protocol=protocol)
    return measured, tuple(events)


def run_there(
    profile: HardwareProfile, file: bytes, inputs: tuple[Array, ...], batch_size: int | None
) -> tuple[tuple[Array, ...], tuple[str, ...]]:
    """The outputs of a model on a machine that is reached from this process, and what happened to the machine."""
    device, events = _opened(profile)
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        outputs = device.run(_written(file, Path(folder)), inputs, batch_size=batch_size)
    return outputs, tuple(events)


def _opened(profile: HardwareProfile) -> tuple[Device, list[str]]:
    """A device of this thread, kept open for its memory of quiet times, and the list of its events from now on."""
    device, events = _kept_open(to_json(profile), threading.get_ident()), list[str]()
    device.tell = events.append
    return device, events


@lru_cache(maxsize=64)
def _kept_open(profile: str, thread: int) -> Device:
    del thread
    return open_device(from_json(HardwareProfile, profile))


def _content(artifact: Artifact) -> bytes:
    return Path(artifact.path).read_bytes()


def _written(content: bytes, folder: Path) -> Artifact:
    """A model as a file that is called by its digest."""
    path = folder / "model.onnx"
    path.write_bytes(content)
    artifact = Artifact.of(path)
    final = path.rename(folder / f"{artifact.sha256[:12]}.onnx")
    return Artifact(str(final), artifact.sha256, artifact.size_bytes)
