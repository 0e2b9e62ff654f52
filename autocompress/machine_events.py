"""What happens to machines and databases elsewhere, found in the log of a run, for those who watch."""

from __future__ import annotations

from autocompress.run_directory import RunDirectory

MARKS = ("machine", "storage")
"""How the lines begin that are about machines, written by the workers, and about the database of the study."""


class MachineEvents:
    """Finds what is new in the log of a run about these; what several workers say of one machine comes once.

    Args:
        directory: The run.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._path = directory.path / "log.txt"
        self._read_bytes = self._path.stat().st_size if self._path.exists() else 0
        self._last: dict[str, str] = {}
        """What was said last of each, without the details."""

    def new(self) -> tuple[str, ...]:
        """What has been added since the last call, as far as the lines are whole."""
        if not self._path.exists() or self._path.stat().st_size == self._read_bytes:
            return ()
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            content, _, _ = file.read().rpartition(b"\n")
        self._read_bytes += len(content) + bool(content)
        lines = (line.split(" ", 2)[-1] for line in content.decode("utf-8", "replace").splitlines())
        return tuple(line for line in lines if line.startswith(MARKS) and self._is_news(line))

    def _is_news(self, line: str) -> bool:
        _, place, what, *_ = (*line.split(" ", 2), "", "")
        said = what.partition(":")[0]
        is_news = self._last.get(place) != said
        self._last[place] = said
        return is_news
