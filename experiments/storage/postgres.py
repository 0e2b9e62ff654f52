"""A PostgreSQL server of our own for a while, from Debian's packages (apt install postgresql)."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "postgres"
"""Whom the server runs as where this process is root's, whom PostgreSQL refuses."""


class Server:
    """A cluster in a folder, on a free port of the loopback interface, with a password.

    Args:
        folder: Of the server's user.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._data = folder, folder / "data"
        self.log = folder / "postgres.log"
        self.password = secrets.token_urlsafe(12)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        secret = folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)  # in a folder that its user alone can enter
        self._run("initdb", "-U", "optuna", "-A", "scram-sha-256", f"--pwfile={secret}")

    @property
    def url(self) -> str:
        """Of its database, without the password."""
        return f"postgresql+psycopg2://optuna@127.0.0.1:{self._port}/postgres"

    @property
    def url_with_password(self) -> str:
        return self.url.replace("optuna@", f"optuna:{self.password}@")

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self._port} -k {self._folder}"
        self._run("pg_ctl", "-l", str(self.log), "-o", options, "-w", "start")

    def stop(self) -> None:
        """As a crash would: nobody is asked to finish."""
        self._run("pg_ctl", "-m", "immediate", "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [_binary(program), "-D", str(self._data), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            user=USER if os.geteuid() == 0 else None,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{program} failed ({done.returncode}); see {self.log}")


@contextmanager
def server() -> Iterator[Server]:
    """A running server that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="autocompress-postgres-") as name:
        if os.geteuid() == 0:
            shutil.chown(name, USER)
        made = Server(Path(name))
        made.start()
        try:
            yield made
        finally:
            made.stop()


def _binary(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = shutil.which(name) or (str(found[-1]) if found else None)
    if path is None:
        raise SystemExit(f"no {name} here; apt install postgresql")
    return path
