"""Calls for workers, in a module that their processes can import."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from autocompress.profile import HardwareProfile
from autocompress.site import Site


def fail(error: Exception) -> None:
    """Raise an error."""
    raise error


def count_threads() -> int:
    """Threads that torch takes in this process."""
    import torch

    return torch.get_num_threads()


_BUSY = threading.Semaphore(1000)
"""What `share_process` takes one of for a moment."""


def share_process(seconds: float) -> tuple[int, int]:
    """The process that this is called in, and how many calls of this were in it at the end of so many seconds."""
    with _BUSY:
        time.sleep(seconds)
        return os.getpid(), 1000 - _BUSY._value


def share_device(site: Site, profile: HardwareProfile, seconds: float) -> tuple[int, int]:
    """The same where a machine measures."""
    return site.at_device(profile, share_process, seconds)


def say(site: Site, line: str) -> None:
    """Add a line to the log of the run."""
    site.log(Path(), line)


def train_with_patience(site: Site, seconds: float) -> int:
    """Have a call made where models are trained, and wait so long for such a place where there is none."""
    from autocompress.executors._ray import trainers

    trainers.TRAINER_WAIT_S = seconds
    return site.at_trainer(os.getpid)
