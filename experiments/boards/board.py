"""Agents to try things on: each with a folder, temporary files, a log and, if wanted, a network of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
PORT = 8765
TOKEN = "of-the-boards"

_DONE = re.compile(r"job (\w{32}), (\w+) .*?, [\d.]+ s: (.*)")


def environment(folder: Path, *, installed: bool) -> dict[str, str]:
    """What an agent finds in its environment: the token, a home, a place for temporary files, and this checkout."""
    for name in ("home", "temporary"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    checkout = {} if installed else {"PYTHONPATH": str(ROOT)}
    return checkout | {
        "PATH": os.environ["PATH"],
        "AUTOCOMPRESS_TOKEN": TOKEN,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "temporary"),
    }


class Board:
    """An agent that runs until the block ends; a context manager.

    Args:
        folder: For all that is its own.
        python: Interpreter of the environment that it runs in.
        network: Name of the network namespace that it runs in; empty for this machine's own network.
        host: Address that it listens on.
        options: Words for `autocompress device serve`.
        installed: True if autocompress is installed in its environment; else it takes this checkout.
    """

    def __init__(
        self,
        folder: Path,
        *,
        python: str = sys.executable,
        network: str = "",
        host: str = "127.0.0.1",
        options: tuple[str, ...] = (),
        installed: bool = False,
    ) -> None:
        self.folder, self.log, self.address = folder, folder / "log", f"http://{host}:{PORT}"
        inside = ("ip", "netns", "exec", network) if network else ()
        serve = ("-P", "-m", "autocompress", "device", "serve", "--host", host, "--port", str(PORT))
        self._network = network
        self._command = (*inside, python, *serve, "--folder", str(folder / "agent"), *options)
        self._environment = environment(folder, installed=installed)
        self._process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(
            base_url=f"{self.address}/v1",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=httpx.Timeout(60.0, connect=2.0),
            trust_env=False,
        )

    def __enter__(self) -> Board:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)

    @property
    def pid(self) -> int:
        """The process of the agent."""
        assert self._process is not None, "it was started"
        return self._process.pid

    def start(self) -> float:
        """Start it; the seconds until it answered."""
        started = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        while True:
            try:
                self.health()
            except httpx.TransportError:
                if self._process.poll() is not None:
                    raise RuntimeError(f"the agent ended: {self.log.read_text()}") from None
                time.sleep(0.01)
            else:
                return time.monotonic() - started

    def health(self) -> Mapping[str, Any]:
        """What it says of itself."""
        said: Mapping[str, Any] = self.http.get("/health").raise_for_status().json()
        return said

    @property
    def is_busy(self) -> bool:
        """True if it is there and has a job."""
        return bool(self.health()["jobs"])

    @property
    def memory_bytes(self) -> int:
        """What the agent's process holds in memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    def endings(self) -> Iterator[tuple[str, str]]:
        """Name of each job that has ended there and how, as its log tells."""
        for line in self.log.read_text().splitlines():
            if found := _DONE.search(line):
                yield found[1], found[3]

    # -- what may happen to it -----------------------------------------------------------------------------------

    def kill(self) -> None:
        """As when the power fails."""
        assert self._process is not None, "it was started"
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """It is there, and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was frozen."""
        os.kill(self.pid, signal.SIGCONT)

    def cut(self) -> None:
        """As when its cable is pulled."""
        _ip("-n", self._network, "link", "set", "eth0", "down")

    def join(self) -> None:
        """Its cable is back."""
        _ip("-n", self._network, "link", "set", "eth0", "up")


@contextmanager
def networks(count: int) -> Iterator[dict[str, str]]:
    """Network namespaces, each joined to this one by a cable: name to the address in it. Linux, as root."""
    made: dict[str, str] = {}
    try:
        for number in range(1, count + 1):
            name, near, far = f"board{number}", f"10.77.{number}.1", f"10.77.{number}.2"
            _ip("netns", "add", name)
            made[name] = far
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("address", "add", f"{near}/24", "dev", name)
            _ip("link", "set", name, "up")
            _ip("-n", name, "address", "add", f"{far}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
        yield made
    finally:
        for name in made:
            _ip("netns", "delete", name)
        # the cables go with them, a little later; the next networks have the same names
        wait_for(lambda: not any(Path("/sys/class/net", name).exists() for name in made), limit_s=10)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def wait_for(condition: Callable[[], bool], *, limit_s: float) -> bool:
    """Look every 20 ms until a condition holds; False if the time is over."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
