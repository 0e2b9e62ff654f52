"""Machines elsewhere, each with an agent: a pool that measures as the local machine does."""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from autocompress.artifact import Artifact
from autocompress.data import Array, batch_size_of
from autocompress.devices._answers import measurements, raise_error, require_fit, timed_models, weighed_models
from autocompress.devices._base import DEVICES, Device
from autocompress.devices._client import AgentLost, AgentRefuses, names_in
from autocompress.devices._measuring import Answer
from autocompress.devices._pool import Pool, Turn
from autocompress.devices._session import counted_clock, read_arrays
from autocompress.devices.agent.messages import Capabilities, Job, JobStatus, model_file
from autocompress.errors import DeviceUnavailable, MeasurementError
from autocompress.measurement import Measurement
from autocompress.profile import HardwareProfile, Protocol

LARGEST_OUTPUTS_BYTES = 2**30
"""What a run may give back."""

_SLACK_S = 60.0
"""What an agent may take longer than the limit of a job until it counts as lost."""


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
        time_limit_s: Wall seconds that one model may take on average, with loading it four times.
    """

    name: ClassVar[str] = "remote"

    def __init__(self, profile: HardwareProfile, *, time_limit_s: float = 120.0) -> None:
        super().__init__(profile)
        self.time_limit_s = time_limit_s
        self._pool = Pool(profile, tell=self._pass_on)

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
            status, answer = self._pool.somewhere(lambda turn: _do(work, turn))
        return measurements(
            answer,
            artifacts,
            reference,
            clock=counted_clock(self.profile.provider, self.profile.threads),
            protocol=chosen,
            processor=status.processor,
            batch_size=batch_size_of(examples),
        )

    def run(self, artifact: Artifact, inputs: tuple[Array, ...], *, batch_size: int | None = None) -> tuple[Array, ...]:
        """The outputs of a model, computed on one of the machines; see `Device.run`."""
        with _saved(inputs) as (digest, path):
            job = replace(self._job("run", (artifact.sha256,), digest), batch_size=batch_size)
            work = _Work(job, {artifact.sha256: Path(artifact.path), digest: path})

            def compute(turn: Turn) -> tuple[Array, ...]:
                status, _ = _do(work, turn)
                return _outputs(turn.client.download(status.outputs, LARGEST_OUTPUTS_BYTES), status.outputs)

            return self._pool.somewhere(compute)

    def _pass_on(self, event: str) -> None:
        self.tell(event)

    def _job(self, kind: str, models: tuple[str, ...], examples: str) -> Job:
        return Job(
            kind="run" if kind == "run" else "measure",
            models=models,
            examples=examples,
            provider=self.profile.provider,
            threads=self.profile.threads,
            limit_s=self.time_limit_s * len(models),
        )


def _do(work: _Work, turn: Turn) -> tuple[JobStatus, Answer]:
    """One job on one machine, from its files to its answer.

    Raises:
        AgentLost: If another try or machine may help.
        AgentRefuses: If this machine can't do it.
        MeasurementError: If no machine can.
    """
    client = turn.client
    machine = client.capabilities()
    _require(machine, work.job)
    for digest, path in work.files.items():
        client.upload(digest, path, machine.limits.upload_bytes)
    try:
        client.submit(work.job, if_free=turn.only_if_free)
        status = client.follow(work.job.id, queue_limit_s=turn.left_s, run_limit_s=work.job.limit_s + _SLACK_S)
    except BaseException:
        with suppress(AgentLost, AgentRefuses):  # if it can't be told, it ends the job when nobody asks for it
            client.cancel(work.job.id)
        raise
    if status.answer is None:
        raise AgentRefuses("it says that the job is done, and not what came of it")
    answer = replace(status.answer, message=names_in(status.answer.message, work.names))
    try:
        raise_error(answer)
    except DeviceUnavailable as error:  # the job was ended or lacks something there: another machine may do it
        raise AgentLost(str(error)) from error
    _require_whole(status, answer, work.job)
    return status, answer


def _require_whole(status: JobStatus, answer: Answer, job: Job) -> None:
    """Refuse a machine whose answer is not one to a job.

    Raises:
        AgentRefuses: If it is not.
    """
    if job.kind == "run" and not re.fullmatch("[0-9a-f]{64}", status.outputs):
        raise AgentRefuses(f"its answer can't be used: outputs {status.outputs[:80]!r}; expected a SHA-256")
    if job.kind == "measure":
        try:
            require_fit(answer, timed=len(job.models), weighed=len(job.weighed))
        except ValueError as error:
            raise AgentRefuses(f"its answer can't be used: {error}") from error


def _outputs(content: bytes, digest: str) -> tuple[Array, ...]:
    """The arrays of a file that a machine sent.

    Raises:
        AgentRefuses: If it is another file, or holds no arrays.
    """
    if hashlib.sha256(content).hexdigest() != digest:
        raise AgentRefuses(f"the outputs that it sent are not those of the digest {digest}")
    try:
        return read_arrays(io.BytesIO(content))
    except ValueError as error:
        raise AgentRefuses(f"the outputs that it sent can't be read: {error}") from error


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
