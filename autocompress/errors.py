"""Every error that autocompress raises on purpose.

AutocompressError
├── InvalidInput          a value given by the user: flag, file, key, number
│   ├── UnknownName       a name that no registry, folder or model knows
│   └── RunDirectoryError a run directory that is locked, damaged or of another search
├── TaskFailed            the user's own code raised; holds their traceback
├── InfeasiblePlan        a plan that this model or machine can't take; a record, not the end
├── RecoveryFailed        fine-tuning gave no usable weights
├── ConversionError       an export that failed or disagrees with its source
├── MeasurementError      a model that can't be timed or run by its runtime
├── DeviceUnavailable     nothing to measure or to train on: a device, or the cluster, is gone
├── SearchFailed          a search that can't get anywhere: every trial fails the same way
└── TeamBroken            processes that train together lost one another; begun again, like work that a lost node took
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutocompressError(Exception):
    """Root of all errors raised on purpose; the message holds value given, value expected, next step."""


class InvalidInput(AutocompressError):
    """A value that the user gave can't be used."""


class UnknownName(InvalidInput):
    """A name that is not among those known; the message offers the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        super().__init__(f"unknown {kind} {name!r}; {did_you_mean(name, self.known)}")

    def __reduce__(self) -> tuple[type[UnknownName], tuple[str, str, tuple[str, ...]]]:
        return type(self), (self.kind, self.name, self.known)


class RunDirectoryError(InvalidInput):
    """A run directory can't be used: locked, damaged, or written by another search."""


class TaskFailed(AutocompressError):
    """The user's own code raised.

    Args:
        message: What autocompress was doing, and the error in one line.
        traceback: The user's traceback as text, so that it survives the way between processes.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback

    def __reduce__(self) -> tuple[type[TaskFailed], tuple[str, str]]:
        return type(self), (str(self), self.traceback)


class InfeasiblePlan(AutocompressError):
    """A plan can't be carried out on this model; the search records it and goes on."""


class RecoveryFailed(AutocompressError):
    """Fine-tuning ended without usable weights, for example with a non-finite loss."""


class ConversionError(AutocompressError):
    """An exported model is invalid or disagrees with the model it came from."""


class MeasurementError(AutocompressError):
    """A model can't be loaded, run or timed on the device."""


class DeviceUnavailable(AutocompressError):
    """Nothing to measure or to train on: a device, or the cluster, is missing, busy for too long, or gone."""


class SearchFailed(AutocompressError):
    """A search can't get anywhere; the message holds the cause of the last failure."""


class TeamBroken(AutocompressError):
    """A process that trains with others can't reach them any more, by no fault of the plan."""


def one_line(error: BaseException) -> str:
    """The first line of an error's text; its name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which known name is nearest, or list all.

    >>> did_you_mean("low_rnk", ["low_rank", "quantization"])
    "did you mean 'low_rank'? Known: low_rank, quantization"
    """
    names = sorted(known)
    if not names:
        return "none is known"
    listing = f"Known: {', '.join(names)}"
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}? {listing}" if near else listing
