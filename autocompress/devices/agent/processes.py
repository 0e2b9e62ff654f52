"""A job's process: its limits, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path

from autocompress.devices._measuring import Answer
from autocompress.devices._process import module_command, module_environment
from autocompress.devices._session import Request, shortened
from autocompress.devices.agent.messages import Limits
from autocompress.errors import MeasurementError
from autocompress.serialization import from_json, to_json


async def run_process(kind: str, request: Request, folder: Path, limits: Limits) -> Answer:
    """The answer of a job's process, which is gone with all its children when this returns or raises.

    Args:
        kind: `measure` or `run`.
        request: Paths in it are relative to `folder`.
        folder: Where it works.
        limits: Wall seconds, memory and size of files.

    Raises:
        MeasurementError: If it takes longer, or its process dies.
    """
    output, log = folder / "answer.json", folder / "log"
    with output.open("wb") as stdout, log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *module_command("autocompress.devices.agent._job", kind),
            stdin=PIPE,
            stdout=stdout,
            stderr=stderr,
            cwd=folder,
            env=module_environment(),
            start_new_session=True,
        )
    try:
        _limit(process.pid, limits)
        async with asyncio.timeout(limits.job_s):
            await _send(process, to_json(request).encode())
            code = await process.wait()
    except TimeoutError as error:
        models = ", ".join(request.models)
        raise MeasurementError(f"{models}: not done within the limit of {limits.job_s:g} s") from error
    finally:
        await _kill_group(process)
    if code:
        raise MeasurementError(f"{', '.join(request.models)}: its process ended with {_ending(code)}: {_tail(log)}")
    return from_json(Answer, output.read_bytes())


def _limit(process: int, limits: Limits) -> None:
    """Hold a process, which still waits for its request, and all that it starts to limits; Linux alone offers that."""
    if sys.platform != "linux":
        return
    import resource

    with suppress(ProcessLookupError):  # it is dead already, which its exit code tells
        if limits.memory_bytes:
            resource.prlimit(process, resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
        resource.prlimit(process, resource.RLIMIT_FSIZE, (limits.upload_bytes, limits.upload_bytes))
        resource.prlimit(process, resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # sandboxes may forbid it: only which process goes first when memory runs out
        Path(f"/proc/{process}/oom_score_adj").write_text("1000")


async def _send(process: Process, request: bytes) -> None:
    if process.stdin is None:
        raise RuntimeError("the process was started without a pipe")
    with suppress(BrokenPipeError, ConnectionResetError):  # it died, which its exit code tells
        process.stdin.write(request)
        await process.stdin.drain()
    process.stdin.close()


async def _kill_group(process: Process) -> None:
    """End a process and its children; it leads a group of its own."""
    if sys.platform == "win32":
        with suppress(ProcessLookupError):
            process.kill()
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(process.wait())


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"


def _tail(log: Path) -> str:
    """The end of what it said."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 1000))
        return shortened(file.read().decode(errors="replace")) or "it said nothing"
