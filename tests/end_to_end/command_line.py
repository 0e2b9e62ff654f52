"""The command line as a user has it: `autocompress` in a process of its own, in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

STRIPES = Path(__file__).parents[1] / "tasks" / "stripes.py"
LIMIT_S = 120.0
"""Far more than any of these commands takes, on a busy machine too."""

_SCRIPT = Path(sys.executable).with_name("autocompress")
COMMAND = [str(_SCRIPT)] if _SCRIPT.is_file() else [sys.executable, "-m", "autocompress"]


def environment(folder: Path) -> dict[str, str]:
    """That of a user, with temporary files beside the folder, so that no lease is shared with other tests.

    One thread is enough for a task this small, and several lose much where other tests run beside them.
    """
    temporary = folder.parent / f"{folder.name}-temporary"
    temporary.mkdir(exist_ok=True)
    own = {"TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return {key: value for key, value in os.environ.items() if not key.startswith("AUTOCOMPRESS_")} | own


def autocompress(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    command = [*COMMAND, *map(str, words)]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def search(folder: Path, *words: str | Path) -> dict[str, Any]:
    """Run `autocompress search` in a folder into its subfolder `run`, which must end well; what `show` says of it."""
    done = autocompress(folder, "search", *words)
    assert done.returncode == 0, done.stderr
    return show(folder / "run")


def show(run: Path) -> dict[str, Any]:
    """What `autocompress show RUN --format json` prints."""
    done = autocompress(run.parent, "show", run, "--format", "json")
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def project(folder: Path, files: Mapping[str, str] = {}) -> Path:
    """A new folder with the stripes task as `task.py`, and other files beside it."""
    folder.mkdir(parents=True)
    shutil.copy(STRIPES, folder / "task.py")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every path below a folder, with the content of files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def lines(run: Path) -> list[dict[str, Any]]:
    """The lines of `records.jsonl` that are whole, as a stranger reads them."""
    path = run / "records.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def trials(run: Path) -> list[dict[str, Any]]:
    """The records of finished trials."""
    return [line for line in lines(run) if line["kind"] == "trial"]


def wait_until(what: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait until something is so."""
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


class Driver:
    """A search that runs while the test goes on; it leads a session, so all its processes can be found."""

    def __init__(self, folder: Path, *words: str | Path) -> None:
        self.run = folder / "run"
        self._log = folder.parent / f"{folder.name}.log"
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "search", *map(str, words)],
                cwd=folder,
                env=environment(folder) | {"AUTOCOMPRESS_TEST_MARK": self._mark(folder)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._environment_mark = f"AUTOCOMPRESS_TEST_MARK={self._mark(folder)}".encode()

    @staticmethod
    def _mark(folder: Path) -> str:
        return str(folder)

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        """Wait until it has printed something."""
        wait_until(lambda: text in self.said or self.process.poll() is not None)
        assert text in self.said, self.said

    def wait_for_lines(self, count: int) -> None:
        """Wait until so many trials have ended, the baseline among them."""
        wait_until(lambda: len(trials(self.run)) >= count or self.process.poll() is not None)
        assert self.process.poll() is None, self.said

    def interrupt(self) -> None:
        """Ctrl-C at the terminal: every process of the group gets it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """kill -9 of the driver alone."""
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(LIMIT_S)

    def processes(self) -> list[str]:
        """The command lines of all processes that it started and that still live."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self._environment_mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it ended meanwhile, or is another user's
        return [command for command in found if command]

    def wait_for_process(self, name: str) -> None:
        """Wait until it has started a process with this in its command line."""
        wait_until(lambda: any(name in command for command in self.processes()) or self.process.poll() is not None)
        assert self.process.poll() is None, self.said

    def leaves_no_process(self) -> None:
        """Wait until everything that it started is gone."""
        wait_until(lambda: not self.processes(), 20.0)
