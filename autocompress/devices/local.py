"""This machine, where ONNX Runtime measures and runs models in a process without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from autocompress.artifact import Artifact
from autocompress.data import Array, batch_size_of
from autocompress.devices._answers import measurements, raise_error, require_fit, timed_models, weighed_models
from autocompress.devices._base import DEVICES, Device
from autocompress.devices._lease import Lease
from autocompress.devices._measuring import Answer
from autocompress.devices._process import module_command, module_environment
from autocompress.devices._quiet import QuietTimes, Reference
from autocompress.devices._running import OUTPUTS
from autocompress.devices._session import Request, counted_clock, read_examples, shortened
from autocompress.devices.detection import processor_name
from autocompress.errors import MeasurementError
from autocompress.measurement import Measurement
from autocompress.profile import HardwareProfile, Protocol
from autocompress.serialization import from_json, to_json


@DEVICES.register
class LocalDevice(Device):
    """The machine this runs on, held alone while models are timed; what goes before needs not wait for others.

    Args:
        profile: Provider, threads and protocol, and how long to wait for other processes of this user that measure.
        time_limit_s: Wall seconds that one model may take on average to be timed, and before that to be loaded four
            times.
    """

    name: ClassVar[str] = "local"

    def __init__(self, profile: HardwareProfile, *, time_limit_s: float = 120.0) -> None:
        super().__init__(profile)
        self.time_limit_s = time_limit_s
        self._quiet = QuietTimes()

    def measure(
        self,
        artifacts: Sequence[Artifact],
        reference: Artifact,
        *,
        examples: tuple[Array, ...],
        protocol: Protocol | None = None,
    ) -> tuple[Measurement, ...]:
        """Time and weigh models in a fresh process; see `Device.measure`."""
        chosen = protocol or self.profile.protocol
        timed, weighed = timed_models(artifacts, reference), weighed_models(artifacts)
        known = self._reference(reference, examples)
        with tempfile.TemporaryDirectory(prefix="autocompress-") as scratch:
            request = replace(
                self._request(tuple(timed.values()), examples, scratch),
                weighed=tuple(weighed.values()),
                protocol=chosen,
                undisturbed_ms=self._quiet.of(known),
            )
            answer = self._ask("autocompress.devices._measuring", request)
            try:
                require_fit(answer, timed=len(timed), weighed=len(weighed))
            except ValueError as error:
                raise MeasurementError(f"{', '.join(timed.values())}: can't be timed: {error}") from error
            self._quiet.remember(known, answer.times[0])
        return measurements(
            answer,
            artifacts,
            reference,
            clock=counted_clock(self.profile.provider, self.profile.threads),
            protocol=chosen,
            processor=processor_name(),
            batch_size=batch_size_of(examples),
        )

    def run(self, artifact: Artifact, inputs: tuple[Array, ...], *, batch_size: int | None = None) -> tuple[Array, ...]:
        """The outputs of a model, computed in a fresh process; see `Device.run`.

        The machine is held while the model runs, so that nobody's measurement is disturbed.
        """
        with tempfile.TemporaryDirectory(prefix="autocompress-") as scratch:
            request = replace(self._request((artifact.path,), inputs, scratch), batch_size=batch_size)
            self._ask("autocompress.devices._running", request)
            return read_examples(str(Path(scratch) / OUTPUTS))

    def _reference(self, reference: Artifact, examples: tuple[Array, ...]) -> Reference:
        """What a reference is remembered by."""
        shapes = ", ".join(f"{array.dtype} {array.shape}" for array in examples)
        return Reference(reference.sha256, shapes, self.profile.provider, self.profile.threads)

    def _request(self, models: tuple[str, ...], examples: tuple[Array, ...], scratch: str) -> Request:
        """A request about some models, whose inputs are saved in the folder `scratch`."""
        saved = Path(scratch) / "examples.npz"
        np.savez(saved, *examples)
        return Request(
            parent=os.getpid(),
            models=models,
            weighed=(),
            examples=str(saved),
            scratch=scratch,
            provider=self.profile.provider,
            threads=self.profile.threads,
            protocol=self.profile.protocol,
            lease=Lease(self.profile.name, self.profile.wait_s, self.time_limit_s * len(models)),
        )

    def _ask(self, module: str, request: Request) -> Answer:
        """The answer of a fresh process that runs a module; an error that it holds is raised."""
        text = run_process(module, request)
        answer = from_json(Answer, text)
        raise_error(answer)
        return answer


def run_process(module: str, request: Request) -> str:
    """Standard output of a fresh Python process that runs a module of autocompress.

    Args:
        module: Its dotted name.
        request: Its standard input.

    Raises:
        MeasurementError: If it works for longer than its lease says, or ends with an exit code other than 0.
    """
    command, subject, lease = module_command(module), ", ".join(request.models), request.lease
    assert lease is not None, "this process does not hold the machine"
    too_slow = f"{subject}: not done within the limit of {lease.limit_s:g} s"
    pipe = subprocess.PIPE
    # a session of its own: Ctrl-C at the terminal reaches the search, which lets the measurement end
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=module_environment(), text=True, start_new_session=True
    ) as process:
        try:
            output, log = process.communicate(to_json(request), timeout=lease.wait_s + 2 * lease.limit_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise MeasurementError(too_slow) from error
        except BaseException:
            process.kill()
            raise
    if hasattr(signal, "SIGALRM") and process.returncode == -signal.SIGALRM:
        raise MeasurementError(too_slow)
    if process.returncode:
        raise MeasurementError(
            f"{subject}: its process ended with exit code {process.returncode}: {shortened(log[-1000:])}"
        )
    return output
