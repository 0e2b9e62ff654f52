"""The agent's paths: what each of them takes and answers."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from autocompress.devices.agent.bodies import Patience, discard, limited, whole
from autocompress.devices.agent.files import FileStore
from autocompress.devices.agent.jobs import Jobs
from autocompress.devices.agent.messages import VERSION, Capabilities, Health, Job, Problem
from autocompress.devices.agent.refusals import BadContent, Refusal, TooLarge, TooSlow, Unauthorized
from autocompress.errors import InvalidInput
from autocompress.serialization import from_json, to_json

LONGEST_WAIT_S = 30.0
"""What a client may have its question wait for an answer."""

LARGEST_JOB_BYTES = 256 * 2**10
"""A job names files by digest, so it is small."""

HEALTH = f"/{VERSION}/health"


@dataclass(frozen=True)
class Setting:
    """What the paths work with.

    Args:
        folder: Files and jobs are kept below it.
        quota_bytes: What files may take.
        capabilities: Of the machine, with the limits.
        patience: How slow a client may be.
    """

    folder: Path
    quota_bytes: int
    capabilities: Capabilities
    patience: Patience


def build_application(setting: Setting, token: str) -> Starlette:
    """The agent without its server.

    Args:
        token: What clients must give; empty for none.
    """

    @asynccontextmanager
    async def life(application: Starlette) -> AsyncIterator[None]:
        files = FileStore(setting.folder, setting.quota_bytes)
        limits, processor = setting.capabilities.limits, setting.capabilities.processor
        jobs = Jobs(setting.folder / "jobs", files, limits, processor)
        application.state.setting, application.state.files, application.state.jobs = setting, files, jobs
        watch = asyncio.create_task(jobs.watch())
        yield
        watch.cancel()
        await jobs.close()

    return Starlette(
        lifespan=life,
        middleware=[Middleware(TokenRequired, token=token)],
        routes=[
            Route(HEALTH, health),
            Route(f"/{VERSION}/capabilities", capabilities),
            Route(f"/{VERSION}/files/{{digest}}", send_file, methods=["GET", "HEAD"]),
            Route(f"/{VERSION}/files/{{digest}}", receive_file, methods=["PUT"]),
            Route(f"/{VERSION}/jobs", submit, methods=["POST"]),
            Route(f"/{VERSION}/jobs/{{name}}", job_status, methods=["GET"]),
            Route(f"/{VERSION}/jobs/{{name}}", cancel, methods=["DELETE"]),
        ],
        exception_handlers={
            Refusal: _refused,
            InvalidInput: _invalid,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )


class TokenRequired:
    """Lets nobody past without the token, but to ask for health."""

    def __init__(self, application: ASGIApp, token: str) -> None:
        self._application = application
        self._expected = f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        if scope["type"] == "http" and self._expected and scope["path"] != HEALTH:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                error = Unauthorized("the token is missing or wrong; give it as Authorization: Bearer TOKEN")
                await _problem(error, Unauthorized.status)(scope, receive, send)
                return
        await self._application(scope, receive, send)


async def health(request: Request) -> Response:
    """That the agent is there."""
    jobs: Jobs = request.app.state.jobs
    return _json(Health("ok", _setting(request).capabilities.version, jobs.unfinished))


async def capabilities(request: Request) -> Response:
    """What the machine is."""
    return _json(_setting(request).capabilities)


async def send_file(request: Request) -> Response:
    """A file's content, or with HEAD whether it is there."""
    files: FileStore = request.app.state.files
    return FileResponse(files.path(request.path_params["digest"]), media_type="application/octet-stream")


async def receive_file(request: Request) -> Response:
    """Keep a file, unless it is there already."""
    files: FileStore = request.app.state.files
    setting, most = _setting(request), _setting(request).capabilities.limits.upload_bytes
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > most:
        await discard(request.stream())
        raise TooLarge(f"{announced} bytes; this agent takes at most {most}")
    await files.receive(request.path_params["digest"], limited(request.stream(), most, setting.patience))
    return Response(status_code=HTTPStatus.CREATED)


async def submit(request: Request) -> Response:
    """Put a job into the queue; with `if_free=1` only into an empty one."""
    jobs: Jobs = request.app.state.jobs
    if request.headers.get("content-type") != "application/json":  # what no page of the web sends without being asked
        raise BadContent("expected Content-Type: application/json")
    body = await whole(request.stream(), LARGEST_JOB_BYTES, _setting(request).patience)
    try:
        job = from_json(Job, body)
    except RecursionError as error:
        raise BadContent("nested too deeply for a job") from error
    machine = _setting(request).capabilities
    if job.threads > machine.threads:
        raise InvalidInput(f"{job.threads} threads; this machine has {machine.threads} processors")
    return _json(jobs.submit(job, if_free=request.query_params.get("if_free") == "1"), HTTPStatus.ACCEPTED)


async def job_status(request: Request) -> Response:
    """How far a job is, answered when it has ended or `wait_s` is over."""
    jobs: Jobs = request.app.state.jobs
    given = request.query_params.get("wait_s", "0")
    if not given.replace(".", "", 1).isdecimal():
        raise InvalidInput(f"wait_s {given[:20]!r}: expected seconds")
    return _json(await jobs.status(request.path_params["name"], min(float(given), LONGEST_WAIT_S)))


async def cancel(request: Request) -> Response:
    """End a job."""
    jobs: Jobs = request.app.state.jobs
    return _json(await jobs.cancel(request.path_params["name"]))


def _setting(request: Request) -> Setting:
    setting: Setting = request.app.state.setting
    return setting


def _json(fact: object, status: int = HTTPStatus.OK) -> Response:
    return Response(to_json(fact), status, media_type="application/json")


def _problem(error: Exception, status: int) -> Response:
    return _json(Problem(type(error).__name__, str(error)), status)


async def _refused(_: Request, error: Exception) -> Response:
    answer = _problem(error, error.status if isinstance(error, Refusal) else HTTPStatus.INTERNAL_SERVER_ERROR)
    if isinstance(error, TooLarge | TooSlow):  # what may be left of the body is not waited for
        answer.headers["Connection"] = "close"
    return answer


async def _invalid(_: Request, error: Exception) -> Response:
    return _problem(error, HTTPStatus.UNPROCESSABLE_ENTITY)


async def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
    return _problem(error, status)


async def _gone(_: Request, error: Exception) -> Response:
    return _problem(error, HTTPStatus.BAD_REQUEST)  # read by nobody


async def _failed(_: Request, error: Exception) -> Response:
    return _problem(error, HTTPStatus.INTERNAL_SERVER_ERROR)
