"""Where a worker works, and how it reaches the rest of its search from there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from autocompress.profile import HardwareProfile
from autocompress.run_directory import RunDirectory

T = TypeVar("T")


@dataclass(frozen=True)
class Site:
    """The machine of the search itself, where the run directory and what measures are at hand.

    Executors whose workers are on other machines have sites of their own. A site travels with every call, so it is
    small, and it is hashable, since workers keep what they have loaded by it.
    """

    def directory(self, run: Path) -> Path:
        """The folder of this machine that stands for the run directory."""
        return run

    def file(self, path: Path) -> Path:
        """A file of the search's machine, readable here."""
        return path

    def has(self, file: Path) -> bool:
        """Whether a file of the run exists; it is here then.

        Args:
            file: In the folder that stands for the run directory.
        """
        return file.is_file()

    def share(self, file: Path) -> None:
        """Let all other workers, and the search itself, have a file of the run that is written here."""

    def forget(self, file: Path) -> None:
        """Delete a file of the run, if there is one."""
        file.unlink(missing_ok=True)

    def log(self, run: Path, line: str) -> None:
        """Write a line into the log of the run."""
        RunDirectory(run).log(line)

    def measures_here(self, profile: HardwareProfile) -> bool:
        """Whether models are measured on a machine right from this worker: it is this one, or an agent answers."""
        del profile
        return True

    def at_device(self, profile: HardwareProfile, function: Callable[..., T], *args: object) -> T:
        """Call a function where a machine measures, which is held for that time.

        Raises:
            DeviceUnavailable: If the machine is missing or stays busy.
        """
        del profile
        return function(*args)

    @property
    def trains_here(self) -> bool:
        """Whether models are trained in the worker's own process."""
        return True

    def at_trainer(self, function: Callable[..., T], *args: object) -> T:
        """Call a function where models are trained."""
        return function(*args)


HERE = Site()
