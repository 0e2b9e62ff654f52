"""Peak memory of a model and the kernels it runs on, found in a process of its own."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from autocompress.devices._session import (
    Request,
    end_with_parent,
    make_feed,
    open_session,
    read_examples,
    runtime_errors,
)
from autocompress.errors import AutocompressError, MeasurementError

RUNS = 3
"""Inferences until the runtime's memory arena has its final size: it learns the pattern of the first."""

INTEGER_OPERATORS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",  # as we write it, with activations rounded to 8 bits
        "NhwcMaxPool",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QMoE",
    }
)
"""Operators with integer kernels whose names do not start with QLinear."""


@dataclass(frozen=True)
class Footprint:
    """What one model takes.

    Args:
        peak_memory_bytes: Memory that loading and running it added, at its highest; 0 if the platform does not tell.
        nodes: Nodes that ran in the graph as optimized.
        integer_nodes: Those of them on integer kernels.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    peak_memory_bytes: int
    nodes: int
    integer_nodes: int


def footprint(path: str, request: Request) -> Footprint:
    """Load and run a model in a process of its own, so that no other model leaves its mark.

    Must be called before this process imports the runtime: the runtime starts threads, and a forked copy of a process
    with threads may lock up.

    Raises:
        MeasurementError: If the model can't be loaded or run, or takes the process down.
        DeviceUnavailable: If the runtime lacks the provider.
    """
    if sys.platform == "linux":
        context = multiprocessing.get_context("fork")
    else:
        context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, path, request, os.getpid()))
    process.start()
    sender.close()
    try:
        answer: Footprint | AutocompressError = receiver.recv()
    except EOFError:
        process.join()
        raise MeasurementError(f"{path}: the runtime crashed on it (exit code {process.exitcode})") from None
    process.join()
    if isinstance(answer, AutocompressError):
        raise answer
    return answer


def is_integer(operator: str) -> bool:
    """True for operators that compute on 8-bit integers.

    >>> is_integer("QLinearConv"), is_integer("QuantizeLinear"), is_integer("Conv")
    (True, False, False)
    """
    return operator.startswith("QLinear") or operator in INTEGER_OPERATORS


def _answer(sender: Connection, path: str, request: Request, parent: int) -> None:
    end_with_parent(parent)
    try:
        peak = _peak_memory(path, request)
        operators = _operators(path, request)
    except AutocompressError as error:
        sender.send(error)
        return
    sender.send(Footprint(peak, len(operators), sum(map(is_integer, operators))))


def _run(session: Any, path: str, request: Request, runs: int) -> None:
    feed = make_feed(session, read_examples(request.examples), path)
    with runtime_errors(f"{path}: can't be run"):
        for _ in range(runs):
            session.run(None, feed)


def _peak_memory(path: str, request: Request) -> int:
    import onnxruntime  # noqa: F401  loaded before the first reading, so as not to be counted

    gc.collect()
    before = _memory_now()
    session = open_session(path, request)
    _run(session, path, request, RUNS)
    return max(0, _memory_peak() - before)


def _memory_now() -> int:
    """Bytes that this process holds, from which on its peak is tracked anew."""
    if sys.platform != "linux":
        return _memory_peak()  # the highest point so far is the import that has just ended
    with suppress(OSError):  # sandboxes may forbid it; the peak so far is then the import that has just ended
        Path("/proc/self/clear_refs").write_text("5")
    return _status()["RssAnon"]


def _memory_peak() -> int:
    """Bytes that this process held at its highest.

    On Linux without pages of files: those are the runtime's own code, shared by all its users, and how many of them
    are counted depends on what the page cache holds. Without them the figure is the same to the page every time.
    """
    if sys.platform == "linux":
        status = _status()
        return status["VmHWM"] - status["RssFile"] - status["RssShmem"]
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status() -> dict[str, int]:
    """Sizes in bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    pairs = (line.split() for line in lines if line.endswith(" kB"))
    return {key.rstrip(":"): 1024 * int(value) for key, value, _ in pairs}


def _operators(path: str, request: Request) -> list[str]:
    """Operator of every node that ran, from the runtime's own profile of one inference."""
    session = open_session(path, request, profile_to=str(Path(request.scratch) / "profile"))
    _run(session, path, request, 1)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    ran = [event for event in events if event["name"].endswith("_kernel_time")]
    nodes = {(event["name"], event["args"]["node_index"]): event["args"]["op_name"] for event in ran}
    return list(nodes.values())
