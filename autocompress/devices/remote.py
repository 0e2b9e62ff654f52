"""Machines elsewhere, each with an agent: a pool that measures as the local machine does."""

from __future__ import annotations

import hashlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from autocompress.artifact import Artifact
from autocompress.data import Array
from autocompress.devices._answers import measurements, raise_error, timed_models, weighed_models
from autocompress.devices._base import DEVICES, Device
from autocompress.devices._client import AgentBusy, AgentClient, AgentLost, AgentRefuses, names_in
from autocompress.devices._measuring import Answer
from autocompress.devices.agent.messages import Capabilities, Job, JobStatus, model_file
from autocompress.errors import DeviceUnavailable, MeasurementError
from autocompress.measurement import Measurement
from autocompress.profile import HardwareProfile, Protocol

LARGEST_OUTPUTS_BYTES = 2**30
"""What a run may give back."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_LEFT_ALONE_S = 30.0
"""How long a device that was lost is not asked again, where there are others."""

_SLACK_S = 60.0
"""What an agent may take longer than the limit of a job until it counts as lost."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Work:
    """A job and the files it needs, by digest."""

    job: Job
    files: Mapping[str, Path]

    @property
    def names(self) -> dict[str, str]:
        """What its models are called there and here."""
        return {model_file(digest): str(self.files[digest]) for digest in self.job.models}


@DEVICES.register
class RemoteDevice(Device):
    """Machines of one kind that are reached through their agents; a job goes to the first that is free.

    Args:
        profile: With the agents' addresses; the token is read from AUTOCOMPRESS_TOKEN.
        wait_s: Seconds to wait for a machine that is there and has time.
        time_limit_s: Wall seconds that one model may take on average, with loading it four times.
    """

    name: ClassVar[str] = "remote"

    def __init__(self, profile: HardwareProfile, *, wait_s: float = 1800.0, time_limit_s: float = 120.0) -> None:
        super().__init__(profile)
        self.wait_s = wait_s
        self.time_limit_s = time_limit_s
        self._left_alone_until: dict[str, float] = {}

    def measure(
        self,
        artifacts: Sequence[Artifact],
        reference: Artifact,
        *,
        examples: tuple[Array, ...],
        protocol: Protocol | None = None,
    ) -> tuple[Measurement, ...]:
        """Time and weigh models on one of the machines; see `Device.measure`."""
        chosen = protocol or self.profile.protocol
        timed, weighed = timed_models(artifacts, reference), weighed_models(artifacts)
        with _saved(examples) as (digest, path):
            job = replace(self._job("measure", tuple(timed), digest), weighed=tuple(weighed), protocol=chosen)
            work = _Work(job, {key: Path(value) for key, value in timed.items()} | {digest: path})
            status, answer = self._somewhere(lambda *chosen: self._do(work, *chosen))
        return measurements(
            answer,
            artifacts,
            reference,
            threads=self.profile.threads,
            protocol=chosen,
            processor=status.processor,
        )

    def run(self, artifact: Artifact, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """The outputs of a model, computed on one of the machines.

        Args:
            artifact: An ONNX file.
            inputs: Arrays (batch, …) in the order of the model's inputs.

        Raises:
            MeasurementError: If the model can't be loaded or run, or takes too long; names the file.
            DeviceUnavailable: If no machine is there or has time.
        """
        with _saved(inputs) as (digest, path):
            work = _Work(
                self._job("run", (artifact.sha256,), digest), {artifact.sha256: Path(artifact.path), digest: path}
            )

            def compute(client: AgentClient, if_free: bool, left_s: float) -> bytes:
                status, _ = self._do(work, client, if_free, left_s)
                return client.download(status.outputs, LARGEST_OUTPUTS_BYTES)

            content = self._somewhere(compute)
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return tuple(file[name] for name in file.files)

    def _job(self, kind: str, models: tuple[str, ...], examples: str) -> Job:
        return Job(
            kind="run" if kind == "run" else "measure",
            models=models,
            examples=examples,
            provider=self.profile.provider,
            threads=self.profile.threads,
            limit_s=self.time_limit_s * len(models),
        )

    def _somewhere(self, work: Callable[[AgentClient, bool, float], T]) -> T:
        """Do something on the first machine that can, until one has done it or the wait is over.

        Args:
            work: Told the client, whether to go there only if it is free, and the seconds that are left.
        """
        start, pause_s = time.monotonic(), _FIRST_PAUSE_S
        said: dict[str, str] = {}
        refusing: set[str] = set()
        with ExitStack() as stack:
            clients = [
                stack.enter_context(AgentClient(address, certificate=self.profile.certificate))
                for address in self.profile.addresses
            ]
            while True:
                for client, if_free in self._by_queue(
                    [one for one in clients if one.address not in refusing], said, refusing
                ):
                    with self._noted(client, said, refusing):
                        return work(client, if_free, max(0.0, self.wait_s - (time.monotonic() - start)))
                waited_s = time.monotonic() - start
                if len(refusing) == len(clients) or waited_s >= self.wait_s:
                    raise DeviceUnavailable(self._missing(said, waited_s))
                time.sleep(min(pause_s, self.wait_s - waited_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _by_queue(
        self, clients: Sequence[AgentClient], said: dict[str, str], refusing: set[str]
    ) -> Iterator[tuple[AgentClient, bool]]:
        """Those that answer, the least busy first, and whether to go there only if it is free; the rest is noted.

        Of several, first each that is free is tried, then the queue of each: others may have taken what was free a
        moment ago. Those that were lost a moment ago are asked last, and only if the others did not help: asking takes
        seconds where a machine is off.
        """
        until = dict(self._left_alone_until)
        lost = [client for client in clients if until.get(client.address, 0.0) > time.monotonic()]
        for group in ([client for client in clients if client not in lost], lost):
            jobs: dict[str, int] = {}
            for client in group:
                with self._noted(client, said, refusing):
                    jobs[client.address] = client.health().jobs
            there = sorted((client for client in group if client.address in jobs), key=lambda one: jobs[one.address])
            if len(clients) > 1:
                yield from ((client, True) for client in there if not jobs[client.address])
            for client in there:
                is_lost_since = self._left_alone_until.get(client.address) != until.get(client.address)
                if not is_lost_since and client.address not in refusing:
                    yield client, False

    @contextmanager
    def _noted(self, client: AgentClient, said: dict[str, str], refusing: set[str]) -> Iterator[None]:
        """Write down that an agent was lost or refuses, and go on."""
        try:
            yield
        except AgentLost as error:
            said[client.address] = str(error)
            if not isinstance(error, AgentBusy):
                self._left_alone_until[client.address] = time.monotonic() + _LEFT_ALONE_S
        except AgentRefuses as error:
            said[client.address] = str(error)
            refusing.add(client.address)

    def _do(self, work: _Work, client: AgentClient, if_free: bool, left_s: float) -> tuple[JobStatus, Answer]:
        """One job on one machine, from its files to its answer."""
        machine = client.capabilities()
        _require(machine, work.job)
        for digest, path in work.files.items():
            client.upload(digest, path, machine.limits.upload_bytes)
        name = client.submit(work.job, if_free=if_free)
        try:
            status = client.follow(name, queue_limit_s=left_s, run_limit_s=work.job.limit_s + _SLACK_S)
        except BaseException:
            with suppress(AgentLost, AgentRefuses):  # if it can't be told, it ends the job when nobody asks for it
                client.cancel(name)
            raise
        if status.answer is None:
            raise AgentRefuses("it says that the job is done, and not what came of it")
        answer = replace(status.answer, message=names_in(status.answer.message, work.names))
        try:
            raise_error(answer)
        except DeviceUnavailable as error:  # the job was ended or lacks something there: another machine may do it
            raise AgentLost(str(error)) from error
        return status, answer

    def _missing(self, said: Mapping[str, str], waited_s: float) -> str:
        each = "; ".join(f"{address}: {said.get(address, 'busy')}" for address in self.profile.addresses)
        return (
            f"device {self.profile.name!r}: none of its {len(self.profile.addresses)} machines could be used in "
            f"{waited_s:.1f} s of at most {self.wait_s:g} s ({each}); start the agent there: "
            "autocompress device serve"
        )


def _require(machine: Capabilities, job: Job) -> None:
    """Refuse a machine that can't do a job.

    Raises:
        AgentRefuses: If it lacks the provider or has too few processors.
    """
    if job.provider not in machine.providers:
        raise AgentRefuses(f"its ONNX Runtime has no {job.provider}; it has {', '.join(machine.providers)}")
    if job.threads > machine.threads:
        raise AgentRefuses(f"it has {machine.threads} processors, not {job.threads}")


@contextmanager
def _saved(arrays: tuple[Array, ...]) -> Iterator[tuple[str, Path]]:
    """Arrays as an .npz file without pickle: digest and path, equal for equal arrays."""
    if any(array.dtype.hasobject for array in arrays):
        raise MeasurementError("examples of Python objects; expected arrays of numbers")
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        path = Path(folder) / "examples.npz"
        np.savez(path, *arrays)
        yield hashlib.sha256(path.read_bytes()).hexdigest(), path
