"""Which state of the project made a record, and where."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from autocompress.profile import HardwareProfile

PACKAGES = ("autocompress", "torch", "onnx", "onnxruntime", "optuna", "numpy")


def commit() -> str:
    """The commit of the repository, with `+changes` where tracked files differ from it.

    To be asked before what a record is of, since a long experiment may see a commit go by.
    """

    def git(*arguments: str) -> str:
        root = Path(__file__).resolve().parents[1]
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + (
        "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def machine(profile: HardwareProfile) -> str:
    """The machine in a few words."""
    return f"{platform.node()} {platform.machine()} {profile.cpu}".strip()
