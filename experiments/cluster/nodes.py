"""A Ray cluster of real `ray start` processes on this machine, some of which are to die."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

RAY = str(Path(sys.executable).with_name("ray"))
START = ("start", "--disable-usage-stats")


@dataclass(frozen=True)
class Nodes:
    """A cluster.

    Args:
        address: Of its head.
        names: Of all nodes, the head first.
    """

    address: str
    names: tuple[str, ...]

    def kill_node(self, name: str) -> None:
        """Kill Ray's process on a node; its workers end with it."""
        for process, words in _processes():
            if words[0].endswith("raylet/raylet") and f"--node-name={name}" in words:
                os.kill(process, signal.SIGKILL)

    def kill_worker(self, draw: random.Random) -> str:
        """Kill one of the processes that have a call to work on; returns what it was at, empty if there is none."""
        working = self.working()
        if not working:
            return ""
        process, work = draw.choice(working)
        os.kill(process, signal.SIGKILL)
        return work

    def working(self) -> list[tuple[int, str]]:
        """The processes that have a call to work on, and what they are at."""
        return [(process, work) for process, words in _processes() if (work := _work_of(words)) and self._has(process)]

    def _has(self, process: int) -> bool:
        """Whether a process was started by a node of this cluster."""
        with suppress(OSError):
            status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
            parent = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:"))
            words = Path(f"/proc/{parent}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
            return any(f"--node-name={name}" in words for name in self.names)
        return False

    def shut_down(self) -> None:
        """End all of the cluster."""
        port = self.address.rpartition(":")[2]
        endings = (*(f"={name}" for name in self.names), f":{port}", f"port={port}")
        for process, words in _processes():
            if any(word.endswith(endings) for word in words):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


@contextmanager
def started(cpus: tuple[int, ...], *, memory_bytes: int | None = None) -> Iterator[Nodes]:
    """A cluster for a while.

    Args:
        cpus: Of the head and of the other nodes.
        memory_bytes: What each says it has; by default what the machine has, which real trials need.
    """
    port = _free_port()
    names = tuple(f"chaos-{os.getpid()}-{index}" for index in range(len(cpus)))
    nodes = Nodes(f"127.0.0.1:{port}", names)
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    try:
        for index, (name, count) in enumerate(zip(names, cpus, strict=True)):
            where = (
                ["--head", f"--port={port}", "--include-dashboard=false"]
                if index == 0
                else [f"--address={nodes.address}"]
            )
            memory = [f"--memory={memory_bytes}"] if memory_bytes else []
            command = [RAY, *START, *where, f"--num-cpus={count}", f"--node-name={name}", *memory]
            subprocess.run(command, env=environment, check=True, capture_output=True)
        yield nodes
    finally:
        nodes.shut_down()


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Number and words of every process but this one and its threads."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text(encoding="utf-8", errors="replace").rstrip("\0 ").split("\0")
        except OSError:  # it has ended
            continue
        number = int(path.parent.name)
        if words[0] and number != os.getpid():
            yield number, words


def _work_of(words: list[str]) -> str:
    """What a worker of Ray is at, which is its title; empty for all other processes."""
    title = " ".join(words).strip()
    work = title.removeprefix("ray::")
    return "" if work == title or work.startswith(("IDLE", "Shelf", "Dashboard", "RuntimeEnv")) else work


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
