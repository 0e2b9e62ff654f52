"""How a process is started that has ONNX Runtime and numpy alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TOKEN_VARIABLE = "AUTOCOMPRESS_TOKEN"
"""Environment variable with the secret that the agent and its clients share."""

_PACKAGE_ROOT = Path(__file__).parents[2]


def module_command(module: str, *arguments: str) -> list[str]:
    """The words that run a module of this package; no file in the working directory can take a module's place."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """This process's environment without its secret, with the package importable and numpy kept to one thread.

    ONNX Runtime's official builds collect telemetry, and keep it in the home folder (seen with 1.32); not in processes
    that measure.
    """
    paths = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {key: value for key, value in os.environ.items() if key != TOKEN_VARIABLE}
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }
