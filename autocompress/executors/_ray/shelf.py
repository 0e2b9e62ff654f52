"""An actor on the node of the search.

It serves the run's files to nodes that don't see the folder, writes their log lines, and starts the process that
measures for them.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from autocompress.errors import InvalidInput
from autocompress.executors._ray.connecting import NAMESPACE, PATIENCE_S, search_node, the_ray
from autocompress.executors._ray.folders import OF_SHELF, remove, remove_abandoned, remove_on_nodes
from autocompress.executors._ray.meter import start_meter
from autocompress.machine_events import MARKS
from autocompress.run_directory import RunDirectory
from autocompress.serialization import write_atomically

CALLS = 8
"""Calls that it answers at the same time."""


State = tuple[int, int]
"""When a file was written, in nanoseconds, and its bytes."""


class Shelf:
    """Reads and writes `artifacts/` of one run; names are those of files there."""

    def __init__(self) -> None:
        self._run: Path | None = None
        self._is_copy = False
        self._lines = list[str]()
        """What is to go into the log of a run that is elsewhere."""

        self._writing = threading.Lock()
        self._said: dict[str, str] = {}
        """The last line about each machine."""

        self._carried: dict[str, bytes] = {}
        self._guests: set[str] = set()
        self._meter: Any = None
        self._starting = threading.Lock()

    def begin(self, run: str) -> None:
        """Serve the files of a run from now on; an empty name stands for copies, which the search looks after."""
        self._is_copy = not run
        self._run = Path(run or tempfile.mkdtemp(prefix=OF_SHELF))
        self._artifacts.mkdir(exist_ok=True)
        if not run:
            remove_abandoned()

    def receive(self, node: str) -> None:
        """Remember that a node keeps copies."""
        self._guests.add(node)

    def end(self) -> frozenset[str]:
        """Remove the copies that there are here, and end what measures; the nodes that keep copies."""
        self.drop_meter()
        if self._run is not None and self._is_copy:
            remove(self._run)
        return frozenset(self._guests)

    def carry(self, path: str, content: bytes) -> None:
        """Have a file of the search's machine for everybody."""
        self._carried[path] = content

    def carried(self, path: str) -> bytes:
        """The content of such a file."""
        return self._carried[path]

    def meter(self) -> Any:
        """What measures on this node for workers on others; it begins when it is asked for."""
        with self._starting:
            if self._meter is None:
                self._meter = start_meter()
            return self._meter

    def drop_meter(self) -> None:
        """End what measures, whatever it is at and has been asked for; the next call for it begins another."""
        with self._starting:
            if self._meter is not None:
                the_ray().kill(self._meter)
                self._meter = None

    def names(self) -> frozenset[str]:
        """The files that there are, whole."""
        return whole_files(self._artifacts)

    def states(self) -> dict[str, State]:
        """The same files with what tells the content of each from that of before."""
        os.utime(self._artifacts.parent)  # it is in use
        return {name: state for name in self.names() if (state := _state(self._artifacts / name)) is not None}

    def get(self, name: str) -> bytes | None:
        """The content of a file, or None."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        write_atomically(self._path(name), content)

    def drop(self, name: str) -> None:
        """Delete a file, if there is one."""
        self._path(name).unlink(missing_ok=True)

    def log(self, line: str) -> None:
        """Add a line to the log of the run; what several workers say of one machine comes once."""
        assert self._run is not None, "a run has begun"
        with self._writing:
            if line.startswith(MARKS):
                place = " ".join(line.split(" ", 2)[:2])
                if self._said.get(place) == line:
                    return
                self._said[place] = line
            if self._is_copy:
                self._lines.append(line)
            else:
                RunDirectory(self._run).log(line)

    def new_lines(self) -> tuple[str, ...]:
        """What is to go into the log of the run, if it is elsewhere; each line once."""
        with self._writing:
            lines, self._lines = self._lines, []
            return tuple(lines)

    @property
    def _artifacts(self) -> Path:
        assert self._run is not None, "a run has begun"
        return self._run / "artifacts"

    def _path(self, name: str) -> Path:
        if Path(name).name != name:
            raise InvalidInput(f"file {name!r}: expected a name without a folder")
        return self._artifacts / name


def whole_files(folder: Path) -> frozenset[str]:
    """Names of the files of a folder, without those that are being written."""
    return frozenset(file.name for file in folder.iterdir() if not file.name.startswith("."))


def _state(path: Path) -> State | None:
    """The state of a file; None if it is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def start_shelf(run_id: str) -> Any:
    """Start the actor on the node of the search."""
    ray = the_ray()
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(search_node(), soft=False)
    actor = ray.remote(num_cpus=0, max_concurrency=CALLS)(Shelf)
    return actor.options(name=shelf_name(run_id), namespace=NAMESPACE, scheduling_strategy=here).remote()


def end_shelf(shelf: Any, run_id: str) -> None:
    """End the actor, and remove all copies of a run that are in the cluster."""
    ray = the_ray()
    try:
        nodes = ray.get(shelf.end.remote(), timeout=PATIENCE_S)
    finally:
        ray.kill(shelf)  # without it no worker that is late makes a folder again
    remove_on_nodes(run_id, nodes)


def shelf_name(run_id: str) -> str:
    """What the actor is called in the cluster."""
    return f"shelf-{run_id}"
