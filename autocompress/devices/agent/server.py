"""The agent as a server: address, token, certificate."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvicorn
from filelock import FileLock, Timeout

from autocompress import __version__
from autocompress.devices._process import TOKEN_VARIABLE
from autocompress.devices.agent.application import Setting, build_application
from autocompress.devices.agent.bodies import Patience
from autocompress.devices.agent.connections import impatient
from autocompress.devices.agent.messages import Capabilities, Limits
from autocompress.devices.agent.runtime import installed_runtime
from autocompress.devices.detection import memory_bytes, processor_name, usable_cores
from autocompress.errors import InvalidInput

DEFAULT_FOLDER = Path("~/.cache/autocompress/agent")
"""Where files are kept unless another folder is given."""

MOST_CONNECTIONS = 64
"""At one time; more are answered 503."""


@dataclass(frozen=True)
class ServerOptions:
    """How the agent is reached, and what it allows.

    Args:
        host: Name or address of the network interface to listen on.
        port: 0 for any that is free.
        token: What clients must give; may be empty only on the loopback interface.
        certificate, key: Files in PEM format, for TLS; both or neither.
        folder: Files and jobs are kept below it.
        quota_bytes: What files may take.
        limits: Of each job; without a limit of memory the machine's memory is the limit.
        patience: How slow a client may be.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str = ""
    certificate: Path | None = None
    key: Path | None = None
    folder: Path = DEFAULT_FOLDER
    quota_bytes: int = 4 * 2**30
    limits: Limits = field(default_factory=Limits)
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise InvalidInput(
                f"host {self.host}: others can reach it, so a token is needed; write one into a file and give "
                f"--token-file, or set {TOKEN_VARIABLE}"
            )
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput("--certificate and --key go together; one of them is missing")
        for path in filter(None, (self.certificate, self.key)):
            if not path.is_file():
                raise InvalidInput(f"{path}: no such file; expected a PEM file")


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine can reach.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("board.local")
    (True, True, False, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may stand for anything
        return False


def read_token(path: Path | None) -> str:
    """The token from a file, or from the environment; empty if there is none.

    Raises:
        InvalidInput: If the file can't be read or is empty, or the token is not plain text without spaces.
    """
    if path is None:
        token, source = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
    else:
        source = str(path)
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path}: the token can't be read: {error}") from error
        if not token:
            raise InvalidInput(f"{path}: empty; expected a token")
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise InvalidInput(f"{source}: expected a token of letters, digits and signs without spaces")
    return token


def serve(options: ServerOptions, announce: Callable[[str], None]) -> None:
    """Answer clients until Ctrl-C or SIGTERM.

    Args:
        announce: Told the address, once connections are taken.

    Raises:
        InvalidInput: If the address or the folder is in use.
        DeviceUnavailable: If ONNX Runtime is not installed.
    """
    limits = options.limits if options.limits.memory_bytes else replace(options.limits, memory_bytes=memory_bytes())
    runtime = installed_runtime()
    machine = Capabilities(
        processor=processor_name(),
        memory_bytes=memory_bytes(),
        threads=usable_cores(),
        runtime=runtime.name,
        providers=runtime.providers,
        version=__version__,
        limits=limits,
    )
    folder = options.folder.expanduser()
    setting = Setting(folder, options.quota_bytes, machine, options.patience)
    config = uvicorn.Config(
        build_application(setting, options.token),
        http=impatient(options.patience),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
    )
    with _own_folder(folder), _listen(options.host, options.port) as listening:
        name = f"[{options.host}]" if ":" in options.host else options.host
        announce(f"{'https' if options.certificate else 'http'}://{name}:{listening.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listening])


def _own_folder(folder: Path) -> FileLock:
    """The lock on a folder, held, so that no other agent empties it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InvalidInput(f"{folder}: another agent uses it; give --folder") from error
    except OSError as error:
        raise InvalidInput(f"{folder}: can't be used: {error}") from error
    return lock


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InvalidInput(f"can't listen on {host} port {port}: {error}; give --port") from error
