"""A model opened by ONNX Runtime as the profile asks, with inputs that fit it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict

from autocompress.devices._lease import Lease
from autocompress.errors import DeviceUnavailable, MeasurementError
from autocompress.profile import Protocol

if TYPE_CHECKING:
    import onnxruntime

    from autocompress.data import Array

Feed = dict[str, Any]
"""Input name to array."""

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's names of types to numpy's."""


@dataclass(frozen=True)
class Request:
    """What the measuring process is asked for.

    Args:
        parent: Process that asks; the measuring process ends with it.
        models: Paths of the models to time; the first is the reference.
        weighed: Those of them whose memory and kernels are asked for.
        examples: Path of an .npz file with the inputs of one inference, in order.
        scratch: Folder for temporary files.
        provider: Execution provider of ONNX Runtime.
        threads: Threads of one inference.
        batch_size: Samples of one inference of a run; None for all at once.
        undisturbed_ms: What the reference is known to take undisturbed; 0 if nothing is known.
        lease: How to hold the machine; None if whoever asks does.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    parent: int
    models: tuple[str, ...]
    weighed: tuple[str, ...]
    examples: str
    scratch: str
    provider: str
    threads: int
    protocol: Protocol
    batch_size: int | None = None
    undisturbed_ms: float = 0.0
    lease: Lease | None = None


HOST = "CPUExecutionProvider"
"""The provider whose work the calling thread does itself, as long as it has one thread."""


def counted_clock(provider: str, threads: int) -> Literal["cpu_ms", "wall_ms"]:
    """The clock that tells of all the work of an inference.

    The CPU time of the calling thread does, if no other thread and no accelerator works for it.

    >>> counted_clock("CPUExecutionProvider", 1), counted_clock("CUDAExecutionProvider", 1)
    ('cpu_ms', 'wall_ms')
    """
    return "cpu_ms" if threads == 1 and provider == HOST else "wall_ms"


def open_session(path: str, request: Request, *, profile_to: str = "") -> onnxruntime.InferenceSession:
    """Load a model.

    Args:
        path: The ONNX file.
        request: Provider and threads.
        profile_to: Prefix of a file that the runtime writes the nodes it ran to; empty for none.

    Raises:
        DeviceUnavailable: If the installed runtime lacks the provider.
        MeasurementError: If the model can't be loaded, or the runtime fell back to another provider.
    """
    import onnxruntime as ort

    if request.provider not in ort.get_available_providers():
        known = ", ".join(ort.get_available_providers())
        raise DeviceUnavailable(f"ONNX Runtime has no {request.provider} here; it has {known}. Change the profile")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = request.threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.enable_profiling, options.profile_file_prefix = bool(profile_to), profile_to
    with runtime_errors(f"{path}: can't be loaded"):
        session = ort.InferenceSession(path, options, providers=[request.provider])
    if session.get_providers()[0] != request.provider:
        raise MeasurementError(f"{path}: wanted {request.provider}, the runtime fell back to {session.get_providers()}")
    return session


def read_examples(path: str) -> tuple[Array, ...]:
    """The arrays that were saved with `np.savez(path, *arrays)`.

    Raises:
        MeasurementError: If the file holds something else, or more than there is memory for.
    """
    try:
        return read_arrays(path)
    except ValueError as error:
        raise MeasurementError(f"the examples can't be read: {shortened(str(error))}") from error


def read_arrays(file: str | BinaryIO) -> tuple[Array, ...]:
    """The arrays of an .npz file, in their order.

    Raises:
        ValueError: If it holds something else, or more than there is memory for.
    """
    try:
        with np.load(file, allow_pickle=False) as content:
            return tuple(content[name] for name in content.files)
    except (OSError, EOFError, AttributeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from error


def make_feed(session: onnxruntime.InferenceSession, examples: tuple[Array, ...], path: str) -> Feed:
    """Examples by the names of a model's inputs, in the precision the model takes.

    Raises:
        MeasurementError: If their number or kind does not fit.
    """
    inputs = session.get_inputs()
    if len(inputs) != len(examples):
        names = ", ".join(one.name for one in inputs)
        raise MeasurementError(f"{path}: takes {len(inputs)} inputs ({names}); {len(examples)} examples were given")
    return {one.name: _cast(example, one, path) for one, example in zip(inputs, examples, strict=True)}


def _cast(example: Array, wanted: Any, path: str) -> Array:
    dtype = np.dtype(DTYPES.get(wanted.type, example.dtype))
    if not np.can_cast(example.dtype, dtype, "same_kind"):
        raise MeasurementError(f"{path}: input {wanted.name!r} is {dtype}; the example given is {example.dtype}")
    return np.ascontiguousarray(example, dtype)


@contextmanager
def runtime_errors(doing: str) -> Iterator[None]:
    """Turn what the runtime raises into MeasurementError, with its message on one line.

    The runtime's errors have no common root below Exception, so nothing but calls into it belongs under this.
    """
    try:
        yield
    except Exception as error:
        raise MeasurementError(f"{doing}: {shortened(str(error))}") from error


def shortened(text: str, length: int = 300) -> str:
    """Text without line breaks, cut in the middle where it is longer than `length`.

    >>> shortened("a b\\n  c")
    'a b c'
    """
    line = " ".join(text.split())
    half = length // 2
    return line if len(line) <= length else f"{line[:half]} … {line[-half:]}"


def end_with_parent(parent: int) -> None:
    """Have the system kill this process when the one that asked for it dies.

    Linux alone offers that; elsewhere the process ends by itself when the measurement is done.
    """
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG in <linux/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        raise SystemExit(1)
