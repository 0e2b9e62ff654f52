"""One agent, as seen from its client."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from autocompress import __version__
from autocompress.devices._process import TOKEN_VARIABLE
from autocompress.devices.agent.messages import VERSION, Capabilities, Health, Job, JobStatus, Problem
from autocompress.devices.agent.refusals import NotFound
from autocompress.errors import InvalidInput, MeasurementError
from autocompress.serialization import from_json, to_json

LONG_POLL_S = 20.0
"""What one question for a job waits for its end."""

LOST_AFTER_S = 10.0
"""How long a job is asked for in vain until its agent counts as lost."""

LARGEST_ANSWER_BYTES = 2**24
"""What an answer in JSON may take: that to a measurement holds the times of all its models."""

_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
_SOON = httpx.Timeout(10.0, connect=5.0)
"""For questions that an agent answers at once if it answers at all."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0

T = TypeVar("T")


class AgentLost(Exception):
    """The agent does not answer; another try may succeed."""


class AgentForgot(AgentLost):
    """The agent answers, but has no such file or job: it was started anew, or made room."""


class AgentBusy(AgentLost):
    """The agent takes nothing more at the moment."""


class AgentRefuses(Exception):
    """The agent wants nothing of this client; another try would not help."""


class AgentClient:
    """A connection to one agent; a context manager.

    Args:
        address: http[s]://host:port.
        certificate: File with the authority that signed the agent's certificate; empty for the system's authorities.
        token: The agent's secret; by default from the environment.
    """

    def __init__(self, address: str, *, certificate: str = "", token: str | None = None) -> None:
        self.address = address
        secret = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        headers = {"User-Agent": f"autocompress/{__version__}"}
        if secret:
            headers["Authorization"] = f"Bearer {secret}"
        self._http = httpx.Client(
            base_url=f"{address}/{VERSION}",
            headers=headers,
            timeout=_TIMEOUT,
            verify=_trusting(certificate) if address.startswith("https:") else False,
            trust_env=False,  # a board on the desk is not behind the proxy
        )

    def __enter__(self) -> AgentClient:
        """Keep the connection open between calls."""
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Close the connection."""
        self._http.close()

    def health(self) -> Health:
        """That it is there, and how busy it is; see `_ask` for the errors."""
        return self._fact(Health, "GET", "/health", timeout=_SOON)

    def capabilities(self) -> Capabilities:
        """What the machine is; see `_ask` for the errors."""
        return self._fact(Capabilities, "GET", "/capabilities", timeout=_SOON)

    def upload(self, digest: str, path: Path, most_bytes: int) -> None:
        """Send a file, unless it is there.

        Args:
            digest: Of its content.
            path: Where it lies.
            most_bytes: What the agent takes at most.

        Raises:
            MeasurementError: If it is too large for the agent, or has changed since its digest was taken.
        """
        if self._ask("HEAD", f"/files/{digest}", may_be=HTTPStatus.NOT_FOUND) is not None:
            return
        if path.stat().st_size > most_bytes:
            raise MeasurementError(f"{path}: {path.stat().st_size} bytes; {self.address} takes at most {most_bytes}")
        with path.open("rb") as file:
            self._ask("PUT", f"/files/{digest}", about=str(path), content=file)

    def download(self, digest: str, most_bytes: int) -> bytes:
        """The content of a file; see `_ask` for the errors."""
        with _connection(), self._http.stream("GET", f"/files/{digest}") as answer:
            content = _body(answer, most_bytes)
        if content is None:
            raise MeasurementError(f"device {self.address}: sends more than {most_bytes} bytes")
        return _accepted(answer, content, "")

    def submit(self, job: Job, *, if_free: bool = False) -> None:
        """Put a job into the queue, or with `if_free` only into an empty one; one that is there already stays as it is.

        Raises:
            AgentBusy: If the queue takes no more.
            AgentLost: If the agent does not answer for a while.
        """
        headers = {"Content-Type": "application/json"}
        asked = {"if_free": "1"} if if_free else {}
        content = to_json(job).encode()
        said = self._persistently(
            lambda: self._fact(JobStatus, "POST", "/jobs", params=asked, content=content, headers=headers)
        )
        _require_name(said, job.id)

    def follow(self, name: str, *, queue_limit_s: float, run_limit_s: float) -> JobStatus:
        """Wait for the end of a job.

        Args:
            queue_limit_s: Seconds that it may wait for its turn.
            run_limit_s: Seconds that it may run, by the agent's own limit and something more.

        Raises:
            AgentLost: If the agent does not answer for a while, was started anew, or the job ran for too long.
            AgentBusy: If the job did not get its turn.
        """
        asked, started = time.monotonic(), 0.0
        wait_s = min(LONG_POLL_S, queue_limit_s)
        timeout = httpx.Timeout(wait_s + LOST_AFTER_S, connect=5.0)
        while True:
            status = self._persistently(
                lambda: self._fact(
                    JobStatus, "GET", f"/jobs/{name}", params={"wait_s": f"{wait_s:.3f}"}, timeout=timeout
                )
            )
            answered = time.monotonic()
            _require_name(status, name)
            if status.state == "done":
                return status
            if status.state == "queued" and answered - asked > queue_limit_s:
                raise AgentBusy(f"busy for all of the {queue_limit_s:.1f} s that its queue was waited in")
            if status.state == "running":
                started = started or answered
                if answered - started > run_limit_s:
                    raise AgentLost(f"it did not end the job within {run_limit_s:g} s")

    def cancel(self, name: str) -> None:
        """End a job; one that the agent does not know any more has ended."""
        self._ask("DELETE", f"/jobs/{name}", may_be=HTTPStatus.NOT_FOUND, timeout=_SOON)

    def _persistently(self, question: Callable[[], T]) -> T:
        """The answer to a question that may be asked twice, which is asked again for a while if there is none."""
        start, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                return question()
            except (AgentForgot, AgentBusy):
                raise
            except AgentLost:
                if time.monotonic() - start >= LOST_AFTER_S:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _fact(self, kind: type[T], method: str, path: str, **options: Any) -> T:
        content = self._ask(method, path, **options) or b""
        try:
            return from_json(kind, content)
        except (InvalidInput, RecursionError) as error:
            raise AgentRefuses(f"its answer is not an agent's: {error}") from error

    def _ask(
        self, method: str, path: str, *, may_be: int | None = None, about: str = "", **options: Any
    ) -> bytes | None:
        """One request, and the body of its answer; None where that has the status `may_be`.

        Args:
            may_be: A status code that is an answer, too.
            about: File that the request is about, for messages.

        Raises:
            AgentLost: If no answer comes, or it says that another try may help.
            AgentRefuses: If another try would not help.
            MeasurementError: If what was sent can't be used.
        """
        with _connection(), self._http.stream(method, path, **options) as answer:
            content = _body(answer, LARGEST_ANSWER_BYTES)
        if content is None:
            raise AgentRefuses(f"its answer is not an agent's: more than {LARGEST_ANSWER_BYTES} bytes")
        return None if answer.status_code == may_be else _accepted(answer, content, about)


def _body(answer: httpx.Response, most_bytes: int) -> bytes | None:
    """The body of an answer that is being read; None where it is larger, and the rest is not read."""
    content = bytearray()
    for chunk in answer.iter_bytes():
        content += chunk
        if len(content) > most_bytes:
            return None
    return bytes(content)


@contextmanager
def _connection() -> Iterator[None]:
    """Tell what happens to connections as the errors of this module."""
    try:
        yield
    except httpx.TransportError as error:
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
            raise AgentRefuses(
                f"its certificate is not believed: {error}; give the authority's as certificate"
            ) from error
        raise AgentLost(f"no answer: {type(error).__name__}: {error}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _require_name(status: JobStatus, name: str) -> None:
    """Refuse an agent that tells of another job than it was asked for.

    Raises:
        AgentRefuses: If it does.
    """
    if status.id != name:
        raise AgentRefuses(f"its answer is about the job {status.id[:80]!r}, not {name!r}")


def _accepted(answer: httpx.Response, content: bytes, about: str) -> bytes:
    """The body of an answer that is a success; see `AgentClient._ask`."""
    if answer.is_success:
        return content
    said = _said(answer.status_code, content)
    match answer.status_code:
        case HTTPStatus.UNAUTHORIZED:
            raise AgentRefuses(f"the token is missing or wrong; set {TOKEN_VARIABLE} to the agent's")
        case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.SERVICE_UNAVAILABLE:
            raise AgentBusy(said.message)
        case HTTPStatus.NOT_FOUND if said.error != NotFound.__name__:  # there is a server, but no agent
            raise AgentRefuses(f"no agent there: {said.message}")
        case HTTPStatus.NOT_FOUND:
            raise AgentForgot(said.message)
        case HTTPStatus.REQUEST_TIMEOUT:
            raise AgentLost(said.message)
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE | HTTPStatus.UNPROCESSABLE_ENTITY:
            raise MeasurementError(f"{about}: {said.message}" if about else said.message)
        case _:
            raise AgentRefuses(f"{answer.status_code} {said.error}: {said.message}")


def _said(status: int, content: bytes) -> Problem:
    """What an answer that is no success says, even if it is not an agent's."""
    try:
        return from_json(Problem, content)
    except InvalidInput:
        return Problem(HTTPStatus(status).phrase, f"status {status} without the words of an agent")


def _trusting(certificate: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=certificate or None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"certificate {certificate}: can't be used: {error}; expected a PEM file") from error


def names_in(message: str, names: Mapping[str, str]) -> str:
    """A message in which what files are called on the device is replaced by what they are called here."""
    for there, here in names.items():
        message = message.replace(there, here)
    return message
