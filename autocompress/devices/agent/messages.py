"""What the agent and its clients say to one another, as JSON."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, StringConstraints

from autocompress.devices._measuring import Answer
from autocompress.errors import InvalidInput
from autocompress.profile import Protocol

VERSION = "v1"
"""First part of every path; it changes when what is said here changes."""

MOST_MODELS = 1024
"""Models that one job may hold: a whole front is measured together."""

Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
"""SHA-256 of a file's content, which is its only name."""

Name = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
"""What a job is called: 128 bits that its client draws, so that a job that is sent twice is done once."""


def model_file(digest: str) -> str:
    """What a model is called on the device, and so in what the device says of it."""
    return f"{digest}.onnx"


@dataclass(frozen=True)
class Limits:
    """What the agent allows.

    Args:
        upload_bytes: Largest file.
        memory_bytes: Address space of a job; 0 for no limit.
        job_s: Wall seconds that a job may run.
        queued_jobs: Jobs that may be unfinished at one time.
        lease_s: Seconds without a question after which a job is taken to be forgotten.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    upload_bytes: int = 512 * 2**20
    memory_bytes: int = 0
    job_s: float = 1800.0
    queued_jobs: int = 16
    lease_s: float = 60.0

    def __post_init__(self) -> None:
        if min(self.upload_bytes, self.job_s, self.queued_jobs, self.lease_s) <= 0 or self.memory_bytes < 0:
            raise InvalidInput(f"{self}: expected numbers above 0")


@dataclass(frozen=True)
class Health:
    """That the agent is there.

    Args:
        status: "ok".
        version: Release of autocompress.
        jobs: Unfinished ones.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="ignore")
    status: str
    version: str
    jobs: int


@dataclass(frozen=True)
class Capabilities:
    """What the machine is, and what the agent allows.

    Args:
        processor: What the processor says it is.
        memory_bytes: Memory of the machine, 0 if unknown.
        threads: Processors that may be used.
        runtime: Name and version of the runtime.
        providers: Execution providers that the runtime has.
        version: Release of autocompress.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="ignore")
    processor: str
    memory_bytes: int
    threads: int
    runtime: str
    providers: tuple[str, ...]
    version: str
    limits: Limits


@dataclass(frozen=True)
class Job:
    """What is to be done; the files were sent before.

    Args:
        kind: `measure` to time and weigh models beside one another, `run` for the outputs of one.
        models: The first is the reference of a measurement; a run has one.
        examples: An .npz file without pickle, with the inputs in order.
        weighed: Models whose memory and kernels are asked for.
        provider: Execution provider of ONNX Runtime.
        threads: Threads of one inference.
        protocol: How latency is taken.
        limit_s: Wall seconds to give it; the agent's own limit stands above.
        batch_size: Samples of one inference of a run; None for all at once.
        id: Its name; a second job of the same name is the first.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    kind: Literal["measure", "run"]
    models: tuple[Digest, ...]
    examples: Digest
    weighed: tuple[Digest, ...] = ()
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    protocol: Protocol = field(default_factory=Protocol)
    limit_s: float = 1800.0
    batch_size: int | None = None
    id: Name = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        if not 1 <= len(self.models) <= MOST_MODELS or (self.kind == "run" and len(self.models) > 1):
            raise InvalidInput(
                f"a {self.kind} job with {len(self.models)} models: expected 1 to {MOST_MODELS}, 1 to run"
            )
        if len(set(self.models)) < len(self.models) or not set(self.weighed) <= set(self.models):
            raise InvalidInput("a job whose models come twice, or with weighed ones that are not among its models")
        if self.threads < 1 or not (math.isfinite(self.limit_s) and self.limit_s > 0):
            raise InvalidInput(f"a job of {self.threads} threads and {self.limit_s} s: expected numbers above 0")
        if self.batch_size is not None and self.batch_size < 1:
            raise InvalidInput(f"a job with batches of {self.batch_size}: expected a whole number from 1 up")

    @property
    def files(self) -> tuple[str, ...]:
        """Digests of all that it needs."""
        return (*self.models, self.examples)


@dataclass(frozen=True)
class JobStatus:
    """How far a job is.

    Args:
        id: Its name on the agent.
        state: A job that has ended is `done`, whether well or not.
        answer: What came of it, once it is done.
        processor: What did it.
        outputs: Digest of the .npz file with the outputs, in order, of a run.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="ignore")
    id: str
    state: Literal["queued", "running", "done"]
    answer: Answer | None = None
    processor: str = ""
    outputs: str = ""


@dataclass(frozen=True)
class Problem:
    """The body of every answer that is not a success.

    Args:
        error: Name of the error's class.
        message: What went wrong.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="ignore")
    error: str
    message: str
