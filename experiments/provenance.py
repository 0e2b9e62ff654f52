"""Which state of the project made a record."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """The commit of the repository, with `+changes` where files differ from it."""

    def git(*arguments: str) -> str:
        root = Path(__file__).resolve().parents[1]
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
