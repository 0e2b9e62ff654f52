"""The files of a search outside of the cluster, and their copies on the shelf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.executors._ray.connecting import the_ray
from autocompress.executors._ray.shelf import State, whole_files
from autocompress.run_directory import RunDirectory
from autocompress.serialization import write_atomically


class Mirror:
    """Keeps `artifacts/` of a search outside of the cluster equal to the shelf's copy.

    Args:
        shelf: The actor.
        run: The run directory.
    """

    def __init__(self, shelf: Any, run: Path) -> None:
        self._shelf, self._run = shelf, run
        self._known: dict[str, State] = {}
        """Files that both sides had at the last look, with their state on the shelf."""

        the_ray().get(shelf.begin.remote(""))
        for name in self._names():
            self._put(name)
        self._known = the_ray().get(shelf.states.remote())

    def renew(self) -> None:
        """Bring over what either side has made, workers also anew, or deleted, and write down what workers say.

        Nodes that see the folder of the search work there, others on the shelf.
        """
        ray = the_ray()
        there = ray.get(self._shelf.states.remote())
        for name in there:
            content = ray.get(self._shelf.get.remote(name)) if there[name] != self._known.get(name) else None
            if content is not None:
                write_atomically(self._artifacts / name, content)
        here = self._names()
        for name in self._known.keys() & there.keys() - here:
            ray.get(self._shelf.drop.remote(name))
        for name in self._known.keys() & here - there.keys():
            (self._artifacts / name).unlink(missing_ok=True)
        made = here - there.keys() - self._known.keys()
        for name in made:
            self._put(name)
        there |= ray.get(self._shelf.states.remote()) if made else {}
        self._known = {name: there[name] for name in there.keys() & here}
        for line in ray.get(self._shelf.new_lines.remote()):
            RunDirectory(self._run).log(line)

    @property
    def _artifacts(self) -> Path:
        return self._run / "artifacts"

    def _names(self) -> frozenset[str]:
        return whole_files(self._artifacts)

    def _put(self, name: str) -> None:
        the_ray().get(self._shelf.put.remote(name, (self._artifacts / name).read_bytes()))
