"""This machine, measured by ONNX Runtime in a process without torch."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from filelock import FileLock, Timeout

from autocompress import errors
from autocompress.artifact import Artifact
from autocompress.data import Array
from autocompress.devices._base import DEVICES, Device
from autocompress.devices._footprint import Footprint
from autocompress.devices._measuring import Answer
from autocompress.devices._session import Request, counted_clock, shortened
from autocompress.devices.detection import processor_name
from autocompress.errors import DeviceUnavailable, MeasurementError
from autocompress.measurement import Measurement, Samples, ratio_interval
from autocompress.profile import HardwareProfile, Protocol
from autocompress.serialization import from_json, to_json

_PACKAGE_ROOT = Path(__file__).parents[2]


@DEVICES.register
class LocalDevice(Device):
    """The machine this runs on, held alone while it measures.

    Args:
        profile: Provider, threads and protocol.
        lease_wait_s: Seconds to wait for other processes of this user that measure here.
        time_limit_s: Wall seconds that one model may take on average, with loading it four times.
    """

    name: ClassVar[str] = "local"

    def __init__(self, profile: HardwareProfile, *, lease_wait_s: float = 1800.0, time_limit_s: float = 120.0) -> None:
        super().__init__(profile)
        self.lease_wait_s = lease_wait_s
        self.time_limit_s = time_limit_s

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
        weighed = {artifact.sha256: artifact.path for artifact in artifacts}
        timed = {reference.sha256: reference.path} | weighed
        with self._lease():
            answer = self._ask(tuple(timed.values()), tuple(weighed.values()), examples, chosen)
        times = dict(zip(timed, answer.times, strict=True))
        session_ms = dict(zip(timed, answer.session_ms, strict=True))
        footprints = dict(zip(weighed, answer.footprints, strict=True))
        machine = f"{processor_name()}, {answer.runtime}"
        return tuple(
            _measurement(
                times[artifact.sha256],
                times[reference.sha256],
                footprints[artifact.sha256],
                clock=counted_clock(self.profile.provider, self.profile.threads),
                session_ms=session_ms[artifact.sha256],
                protocol=chosen,
                machine=machine,
            )
            for artifact in artifacts
        )

    @contextmanager
    def _lease(self) -> Iterator[None]:
        """Keep all others of this user from measuring on this machine.

        One lease for the machine, not one for each profile: two profiles of one machine share its processor.
        """
        lock = FileLock(lease_path(), timeout=self.lease_wait_s)
        try:
            lock.acquire()
        except Timeout as error:
            raise DeviceUnavailable(
                f"device {self.profile.name!r}: another process was measuring on this machine for all of the "
                f"{self.lease_wait_s:g} s that were waited (lock {lock.lock_file}); wait for it, or end it"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _ask(
        self, models: tuple[str, ...], weighed: tuple[str, ...], examples: tuple[Array, ...], protocol: Protocol
    ) -> Answer:
        with tempfile.TemporaryDirectory(prefix="autocompress-") as scratch:
            saved = Path(scratch) / "examples.npz"
            np.savez(saved, *examples)
            request = Request(
                os.getpid(),
                models,
                weighed,
                str(saved),
                scratch,
                self.profile.provider,
                self.profile.threads,
                protocol,
            )
            text = run_process(
                "autocompress.devices._measuring",
                to_json(request),
                limit_s=self.time_limit_s * len(models),
                subject=", ".join(models),
            )
        answer = from_json(Answer, text)
        if answer.error:
            raise getattr(errors, answer.error)(answer.message)
        return answer


def lease_path() -> Path:
    """The lock file that whoever measures on this machine holds; one for each user."""
    user = getattr(os, "getuid", getpass.getuser)()
    return Path(tempfile.gettempdir()) / f"autocompress-{user}.lock"


def run_process(module: str, request: str, *, limit_s: float, subject: str) -> str:
    """Standard output of a fresh Python process that runs a module of autocompress.

    Args:
        module: Its dotted name.
        request: Its standard input.
        limit_s: Wall seconds until it is given up.
        subject: What it works on, for messages.

    Raises:
        MeasurementError: If it takes longer, or ends with an exit code other than 0.
    """
    # -P: a file in the working directory can't take the place of a module
    command = [sys.executable, "-P", "-m", module]
    pipe = subprocess.PIPE
    # a session of its own: Ctrl-C at the terminal reaches the search, which lets the measurement end
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment(), text=True, start_new_session=True
    ) as process:
        try:
            output, log = process.communicate(request, timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise MeasurementError(f"{subject}: not measured within the limit of {limit_s:g} s") from error
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise MeasurementError(
            f"{subject}: the measuring process ended with exit code {process.returncode}: {shortened(log[-1000:])}"
        )
    return output


def _environment() -> dict[str, str]:
    """This process's environment, with the package importable and numpy kept to one thread."""
    paths = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _measurement(
    samples: Samples,
    reference: Samples,
    footprint: Footprint,
    *,
    clock: Literal["cpu_ms", "wall_ms"],
    session_ms: float,
    protocol: Protocol,
    machine: str,
) -> Measurement:
    """What the samples say; anyone can work it out again from the record."""
    times, reference_times = getattr(samples, clock), getattr(reference, clock)
    ratio, interval = ratio_interval(times, reference_times)
    cpu, wall = np.concatenate(samples.cpu_ms), np.concatenate(samples.wall_ms)
    p50, p95, p99 = np.percentile(wall, (50, 95, 99))
    return Measurement(
        latency_ms=float(np.median(np.concatenate(times))),
        latency_ratio=ratio,
        latency_ratio_interval=interval,
        wall_p50_ms=float(p50),
        wall_p95_ms=float(p95),
        contention=float(wall.sum() / cpu.sum()),
        peak_memory_bytes=footprint.peak_memory_bytes,
        integer_nodes=footprint.integer_nodes,
        nodes=footprint.nodes,
        machine=machine,
        protocol=protocol,
        samples=samples,
        reference_samples=reference,
        wall_p99_ms=float(p99),
        session_ms=session_ms,
    )
