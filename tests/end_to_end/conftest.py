"""What the end-to-end tests share: projects of a user, and one finished search."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import autocompress, project

FAST = ("--hardware", "fake", "--executor", "inline")
"""No time goes into measuring or into starting workers."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the user with the stripes task in it."""
    return project(tmp_path / "project")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose folder `run` holds a finished search of four trials; to be copied before it is changed."""
    folder = project(tmp_path_factory.mktemp("finished") / "project")
    done = autocompress(folder, "search", "task.py", *FAST, "--trials", "4", "--output", "run")
    assert done.returncode == 0, done.stderr
    return folder
