"""Jobs: one at a time, the others in a queue, the forgotten ones ended."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from autocompress.devices._lease import lease_path
from autocompress.devices._measuring import Answer
from autocompress.devices._quiet import QuietTimes, Reference
from autocompress.devices._running import OUTPUTS
from autocompress.devices._session import Request
from autocompress.devices.agent.files import FileStore
from autocompress.devices.agent.messages import Job, JobStatus, Limits, model_file
from autocompress.devices.agent.processes import run_process
from autocompress.devices.agent.refusals import BadContent, Busy, Closing, NotFound
from autocompress.errors import AutocompressError, DeviceUnavailable

DONE_KEPT = 64
"""Jobs that have ended and can still be asked about."""

_LOOK_AGAIN_S = 0.2
_EXAMPLES = "examples.npz"
_LOG = logging.getLogger(__name__)


@dataclass
class _Entry:
    """A job on its way."""

    job: Job
    status: JobStatus
    folder: Path
    why_cancelled: str = "the job was cancelled"
    asked: float = field(default_factory=time.monotonic)
    asking: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def was_ended(self) -> bool:
        """True if it was ended before it was done, or the agent failed: the job itself is not to blame."""
        answer = self.status.answer
        return self.done.is_set() and answer is not None and answer.error == DeviceUnavailable.__name__


class Jobs:
    """The agent's jobs; used in one event loop.

    Args:
        folder: Where jobs work, each in a folder of its own; what an earlier agent left is removed.
        files: Where their files come from and outputs go.
        limits: Of each job, and of their number.
        processor: What the processor says it is.
    """

    def __init__(self, folder: Path, files: FileStore, limits: Limits, processor: str) -> None:
        self.limits = limits
        self._folder, self._files, self._processor = folder, files, processor
        self._entries: dict[str, _Entry] = {}
        self._quiet = QuietTimes()
        self._turn = asyncio.Lock()  # first come, first served
        self._closing = False
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    @property
    def unfinished(self) -> int:
        """How many run or wait."""
        return sum(not entry.done.is_set() for entry in self._entries.values())

    def submit(self, job: Job, *, if_free: bool = False) -> JobStatus:
        """Put a job into the queue, unless it is there: a client that got no answer may ask again.

        Args:
            job: What is to be done. One that was ended before it was done, or whose outputs are gone, is done anew.
            if_free: Only if it need not wait for another.

        Returns:
            How far it is.

        Raises:
            BadContent: If another job has its name.
            NotFound: If a file is not there.
            Busy: If the queue is full, or `if_free` is asked for and it is not empty.
            Closing: If the agent is about to end.
        """
        if self._closing:
            raise Closing("the agent is about to end")
        known = self._entries.get(job.id)
        if known is not None and known.job != job:
            raise BadContent(f"another job has the name {job.id}; expected one of its own")
        if known is not None and not known.was_ended and self._has_outputs(known):
            known.asked = time.monotonic()
            return known.status
        most = 1 if if_free else self.limits.queued_jobs
        if self.unfinished >= most:
            raise Busy(f"busy, {self.unfinished} unfinished jobs of at most {most}; try again")
        entry = _Entry(job, JobStatus(job.id, "queued"), self._folder / job.id)
        entry.folder.mkdir()
        try:
            for digest in job.models:
                self._files.link(digest, entry.folder / model_file(digest))
            self._files.link(job.examples, entry.folder / _EXAMPLES)
        except BaseException:
            shutil.rmtree(entry.folder)
            raise
        self._forget_old()
        self._entries[job.id] = entry
        entry.task = asyncio.create_task(self._live(entry))
        entry.task.add_done_callback(lambda _: entry.done.set())
        return entry.status

    async def status(self, name: str, wait_s: float) -> JobStatus:
        """How far a job is, at once when it has ended, else after `wait_s` seconds.

        Raises:
            NotFound: If there is no such job.
        """
        entry = self._entry(name)
        entry.asking += 1
        try:
            async with asyncio.timeout(wait_s):
                await entry.done.wait()
        except TimeoutError:
            pass  # it is not done yet, which its status says
        finally:
            entry.asking -= 1
            entry.asked = time.monotonic()
        return entry.status

    async def cancel(self, name: str) -> JobStatus:
        """End a job; one that has ended stays as it is.

        Raises:
            NotFound: If there is no such job.
        """
        entry = self._entry(name)
        _cancel(entry, "the job was cancelled")
        await entry.done.wait()
        return entry.status

    async def watch(self) -> None:
        """End jobs that nobody asks about, for as long as the agent lives."""
        while True:
            await asyncio.sleep(min(1.0, self.limits.lease_s / 4))
            for entry in self._entries.values():
                if not entry.asking and time.monotonic() - entry.asked > self.limits.lease_s:
                    _cancel(entry, f"nobody asked about the job for {self.limits.lease_s:g} s")

    async def close(self) -> None:
        """End all jobs and take no more."""
        self._closing = True
        for name in list(self._entries):
            await self.cancel(name)

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise NotFound(f"no job {name[:80]!r}; the agent may have been started anew since") from None

    def _has_outputs(self, entry: _Entry) -> bool:
        """False if its outputs have made room for other files."""
        return not entry.status.outputs or self._files.has(entry.status.outputs)

    def _forget_old(self) -> None:
        ended = [name for name, entry in self._entries.items() if entry.done.is_set()]
        for name in ended[:-DONE_KEPT]:
            del self._entries[name]

    async def _live(self, entry: _Entry) -> None:
        """All of a job's life; whatever happens, it ends with an answer."""
        start = time.monotonic()
        try:
            async with self._turn, _machine():
                entry.status = replace(entry.status, state="running")
                start = time.monotonic()
                answer = await self._work(entry)
                outputs = "" if answer.error or entry.job.kind != "run" else self._files.adopt(entry.folder / OUTPUTS)
        except asyncio.CancelledError:
            answer, outputs = _failure(DeviceUnavailable(entry.why_cancelled)), ""
        except AutocompressError as error:
            answer, outputs = _failure(error), ""
        except Exception as error:  # the agent must live on; the traceback is in its log
            _LOG.exception("job %s", entry.status.id)
            answer, outputs = _failure(DeviceUnavailable(f"the agent failed: {type(error).__name__}: {error}")), ""
        finally:
            shutil.rmtree(entry.folder, ignore_errors=True)
        entry.status = replace(entry.status, state="done", answer=answer, processor=self._processor, outputs=outputs)
        result = f"{answer.error}: {answer.message}" if answer.error else "done"
        models = ", ".join(digest[:12] for digest in entry.job.models)
        _LOG.info(
            "job %s, %s %s, %.1f s: %s", entry.status.id, entry.job.kind, models, time.monotonic() - start, result
        )

    async def _work(self, entry: _Entry) -> Answer:
        job = entry.job
        reference = Reference(job.models[0], job.examples, job.provider, job.threads)
        request = Request(
            parent=os.getpid(),
            models=tuple(map(model_file, job.models)),
            weighed=tuple(map(model_file, job.weighed)),
            examples=_EXAMPLES,
            scratch=".",
            provider=job.provider,
            threads=job.threads,
            protocol=job.protocol,
            batch_size=job.batch_size,
            undisturbed_ms=self._quiet.of(reference),
        )
        limits = replace(self.limits, job_s=min(job.limit_s, self.limits.job_s))
        answer = await run_process(job.kind, request, entry.folder, limits)
        if answer.times:
            self._quiet.remember(reference, answer.times[0])
        return answer


def _failure(error: AutocompressError) -> Answer:
    return Answer(error=type(error).__name__, message=str(error))


def _cancel(entry: _Entry, why: str) -> None:
    if entry.task is not None and not entry.task.done():
        entry.why_cancelled = why
        entry.task.cancel()


@asynccontextmanager
async def _machine() -> AsyncIterator[None]:
    """Keep others of this user, such as a search that measures here too, from measuring on this machine."""
    lock = FileLock(lease_path())
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            await asyncio.sleep(_LOOK_AGAIN_S)
    try:
        yield
    finally:
        lock.release()
