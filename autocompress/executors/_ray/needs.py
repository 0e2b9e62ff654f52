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
from autocompress.executors._ray.connecting import PATIENCE_S, the_ray

LOOK_S = 2.0
"""Seconds between two looks at whether the cluster still has what is waited for."""

TRAINER_WAIT_S = 600.0
"""Seconds for which training waits for a node that it fits on, where none has been left."""


@dataclass(frozen=True)
class Need:
    """What one node has to have.

    Args:
        resources: The least of each of Ray's resources.
        whose: Whom it is needed by, for messages.
        what: The resources in words.
        advice: What to do where no node has them.
        wait_s: Seconds to wait for such a node.
    """

    resources: Mapping[str, float]
    whose: str
    what: str
    advice: str
    wait_s: float

    def is_met(self) -> bool:
        """Whether some node has all of it, though others may be using it."""
        alive = [node["Resources"] for node in the_ray().nodes() if node["Alive"]]
        return any(all(has.get(name, 0.0) >= least for name, least in self.resources.items()) for has in alive)

    def told(self, *, is_met: bool) -> str:
        """What there is to tell when no node has it any more, or when one has it again."""
        if is_met:
            return f"machines with {self.what} are back"
        limit = f", up to {format_duration(self.wait_s)}" if math.isfinite(self.wait_s) else ""
        return f"machines with {self.what} are waited for{limit}; {self.advice}"


def wait_for(reference: Any, need: Need, tell: Callable[[str], None]) -> None:
    """Wait until a task has ended, for as long as some node can begin it.

    Args:
        reference: Of the task.
        need: What it needs.
        tell: Told when no node has it any more, and when one has it again.

    Raises:
        DeviceUnavailable: If there has been none for too long.
    """
    ray, missing_s = the_ray(), 0.0
    while not ray.wait([reference], timeout=LOOK_S)[0]:
        is_met, was_met = need.is_met(), missing_s == 0
        missing_s = 0.0 if is_met else missing_s + LOOK_S
        if is_met != was_met:
            tell(need.told(is_met=is_met))
        if missing_s > need.wait_s:
            ray.cancel(reference, force=True)
            raise DeviceUnavailable(
                f"{need.whose}: no node of the cluster has had {need.what} for {missing_s:g} s; {need.advice}"
            )


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
        with suppress(the_ray().exceptions.RayError, OSError):  # the cluster itself is gone, as calls will say
            while not self._ended.wait(LOOK_S):
                is_met = self._need.is_met() if self._is_wanted() else was_met
                if is_met != was_met:
                    self._tell(self._need.told(is_met=is_met))
                was_met = is_met
