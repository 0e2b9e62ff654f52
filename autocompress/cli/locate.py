"""Which task and which run a command means where none is given."""

from __future__ import annotations

import os
from pathlib import Path

from autocompress.cli.config import Config
from autocompress.errors import InvalidInput

RUNS = Path("runs")
"""Where searches go that were given no output."""

DATA_VARIABLE = "AUTOCOMPRESS_DATA"
"""The environment variable in which a task finds the folder of its data."""


def the_task(given: str | None, config: Config) -> str:
    """The task as given, or as the project's configuration has it.

    Raises:
        InvalidInput: If neither names one.
    """
    task = given or config.task
    if task is None:
        raise InvalidInput(
            "no task: give a file with one (task.py), or set `task` in autocompress.yaml or under "
            "[tool.autocompress] in pyproject.toml"
        )
    return task


def offer_data(given: Path | None, config: Config) -> None:
    """Tell the task where its data lies, by the environment, which worker processes inherit.

    Raises:
        InvalidInput: If there is no such folder.
    """
    folder = given or (Path(config.data) if config.data else None)
    if folder is None:
        return
    if not folder.is_dir():
        raise InvalidInput(f"data {str(folder)!r}: no such folder; give the folder that the task reads its data from")
    os.environ[DATA_VARIABLE] = str(folder.resolve())


def the_run(given: Path | None) -> Path:
    """The run directory as given, or the newest one under `runs/`.

    Raises:
        InvalidInput: If none is given and there is none.
    """
    if given is not None:
        return given
    found = sorted(RUNS.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InvalidInput(f"no run: {RUNS.resolve()} holds none; give the folder that `autocompress search` wrote")
    return found[-1].parent
