"""What work needs of the cluster, which may lose it, and how long that is waited for."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from autocompress.duration import format_duration
from autocompress.errors import DeviceUnavailable
from autocompress.executors._ray.connecting import PATIENCE_S, nodes, require_reached, room_in, the_ray
from autocompress.executors._ray.losses import errors_of_lost

LOOK_S = 2.0
"""Seconds between two looks at whether the cluster still has what is waited for."""

TRAINER_WAIT_S = 600.0
"""Seconds for which training waits for a node that it fits on, where none has been left."""


@dataclass(frozen=True)
class Need:
    """What nodes have to have.

    Args:
        resources: The least of each of Ray's resources, all on one node.
        whose: Whom it is needed by, for messages.
        what: The resources in words.
        advice: What to do where no node has them.
        wait_s: Seconds to wait for such nodes.
        count: How many times there has to be room for it.
    """

    resources: Mapping[str, float]
    whose: str
    what: str
    advice: str
    wait_s: float
    count: int = 1

    def is_met(self) -> bool:
        """Whether the nodes have all of it, though others may be using it."""
        return sum(room_in(node, self.resources) for node in nodes()) >= self.count

    def told(self, *, is_met: bool) -> str:
        """What there is to tell when no node has it any more, or when one has it again."""
        if is_met:
            return f"machines with {self.what} are back"
        limit = f", up to {format_duration(self.wait_s)}" if math.isfinite(self.wait_s) else ""
        return f"machines with {self.what} are waited for{limit}; {self.advice}"


@dataclass
class Patience:
    """Waits for what work needs, and no longer than it may.

    Args:
        need: What it needs.
        tell: Told when the cluster does not have it any more, and when it has it again.
    """

    need: Need
    tell: Callable[[str], None]
    missing_s: float = 0.0

    def look(self) -> None:
        """Look again, `LOOK_S` after the last time.

        Raises:
            DeviceUnavailable: If the cluster has not had it for too long.
        """
        is_met, was_met = self.need.is_met(), self.missing_s == 0
        self.missing_s = 0.0 if is_met else self.missing_s + LOOK_S
        if is_met != was_met:
            self.tell(self.need.told(is_met=is_met))
        if self.missing_s > self.need.wait_s:
            raise DeviceUnavailable(
                f"{self.need.whose}: no node of the cluster has had {self.need.what} for {self.missing_s:g} s; "
                f"{self.need.advice}"
            )


def wait_for(reference: Any, patience: Patience) -> None:
    """Wait until a task has ended, for as long as some node can begin it.

    Raises:
        DeviceUnavailable: If there has been none for too long; the task is canceled.
    """
    ray = the_ray()
    while not ray.wait([reference], timeout=LOOK_S)[0]:
        try:
            patience.look()
        except DeviceUnavailable:
            ray.cancel(reference, force=True)
            raise


def quantity(count: float, unit: str) -> str:
    """A number of things in words.

    >>> [quantity(count, "GPU") for count in (0.5, 1, 2)]
    ['0.5 GPU', '1 GPU', '2 GPUs']
    """
    return f"{count:g} {unit}{'s' * (count > 1)}"


class Watch:
    """Tells when no node is left that has what tasks need, and when there is one again; nothing else comes of it.

    Args:
        need: What the tasks need.
        is_wanted: Whether there are tasks at all.
        tell: Told in a thread of its own.
    """

    def __init__(self, need: Need, is_wanted: Callable[[], bool], tell: Callable[[str], None]) -> None:
        self._need, self._is_wanted, self._tell = need, is_wanted, tell
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="autocompress-watch")
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join(PATIENCE_S)

    def _look(self) -> None:
        was_met = True
        with suppress(OSError, *errors_of_lost()):  # the cluster itself is gone, as calls will say
            while not self._ended.wait(LOOK_S):
                require_reached()
                is_met = self._need.is_met() if self._is_wanted() else was_met
                if is_met != was_met:
                    self._tell(self._need.told(is_met=is_met))
                was_met = is_met
