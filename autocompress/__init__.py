"""autocompress searches for the best compressed versions of a neural network, measured on real hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.api import apply, check, measure, profile_device, resume, search
    from autocompress.checks import CheckItem, CheckReport
    from autocompress.errors import AutocompressError
    from autocompress.methods import METHODS, CompressionMethod
    from autocompress.plan import Plan, Recovery, Step
    from autocompress.profile import HardwareProfile
    from autocompress.run import Run
    from autocompress.space import Choice, Float, Int, SearchSpace
    from autocompress.student import Student
    from autocompress.task import Metric, Task

__version__ = "0.1.0"

_HOME = {
    "api": ("apply", "check", "measure", "profile_device", "resume", "search"),
    "checks": ("CheckItem", "CheckReport"),
    "errors": ("AutocompressError",),
    "methods": ("METHODS", "CompressionMethod"),
    "plan": ("Plan", "Recovery", "Step"),
    "profile": ("HardwareProfile",),
    "run": ("Run",),
    "space": ("Choice", "Float", "Int", "SearchSpace"),
    "student": ("Student",),
    "task": ("Metric", "Task"),
}

__all__ = [
    "METHODS",
    "AutocompressError",
    "CheckItem",
    "CheckReport",
    "Choice",
    "CompressionMethod",
    "Float",
    "HardwareProfile",
    "Int",
    "Metric",
    "Plan",
    "Recovery",
    "Run",
    "SearchSpace",
    "Step",
    "Student",
    "Task",
    "apply",
    "check",
    "measure",
    "profile_device",
    "resume",
    "search",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing the package stays light."""
    import importlib

    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"autocompress.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
