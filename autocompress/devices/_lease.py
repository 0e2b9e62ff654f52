"""Holding a machine alone: the lock that whoever measures on it takes, and for how long."""

from __future__ import annotations

import getpass
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout
from pydantic import ConfigDict

from autocompress.errors import DeviceUnavailable

LOOK_AGAIN_S = 0.01
"""Seconds between two tries to take the lock: many may wait for it, and some hold it for a quarter of a second."""


@dataclass(frozen=True)
class Lease:
    """How a process is to hold the machine.

    Args:
        device: What messages call the machine.
        wait_s: Seconds to wait for others of this user that measure.
        limit_s: Wall seconds that the process may work before it holds the machine, and as many while it does.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    device: str
    wait_s: float
    limit_s: float


def lease_path() -> Path:
    """The lock file that whoever measures on this machine holds; one for each user."""
    user = getattr(os, "getuid", getpass.getuser)()
    return Path(tempfile.gettempdir()) / f"autocompress-{user}.lock"


def limit_work(lease: Lease | None) -> None:
    """Have the system end this process with SIGALRM, whatever it is at, if it works for longer than it may from now on.

    Windows does not offer that; there whoever started the process gives it up.
    """
    if lease is not None and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, lease.limit_s)


@contextmanager
def held(lease: Lease | None) -> Iterator[None]:
    """Keep all others of this user from measuring on this machine; without a lease whoever started this process does.

    One lock for the machine, not one for each profile: two profiles of one machine share its processor.

    Raises:
        DeviceUnavailable: If others measure for too long.
    """
    if lease is None:
        yield
        return
    lock = FileLock(lease_path())
    limit_work(replace(lease, limit_s=0.0))  # waiting is no work
    try:
        lock.acquire(timeout=lease.wait_s, poll_interval=LOOK_AGAIN_S)
    except Timeout as error:
        raise DeviceUnavailable(
            f"device {lease.device!r}: another process was measuring on this machine for all of the "
            f"{lease.wait_s:g} s that were waited (lock {lock.lock_file}); wait for it, or end it"
        ) from error
    limit_work(lease)
    try:
        yield
    finally:
        lock.release()
