"""Measuring on the node of the search for workers on others: one process there, in which few measure at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from autocompress.executors._ray.connecting import the_ray
from autocompress.executors._ray.tasks import WITHOUT_GPUS, Outcome, attempt

FEWEST, MOST = 2, 8
"""Calls at the same time, at least and at most. One of them times its models and holds the machine for that, while the
others load and weigh theirs: a core is busy with each, and a machine is kept busy by few."""


class Meter:
    """Measures on the node of the search for workers elsewhere; each call has a thread, the rest queue."""

    def __init__(self) -> None:
        self._quiet = threading.Lock()

    def work(self, function: Callable[..., Any], args: tuple[Any, ...], *, is_quiet: bool = False) -> Outcome:
        """Call a function.

        Args:
            function, args: The call.
            is_quiet: Whether it times by the clock on the wall, so that it waits for others that do, too.
        """
        with self._quiet if is_quiet else nullcontext():
            return attempt(function, args)


def start_meter() -> Any:
    """Start the actor on this node; if it dies, it is started anew, and what it was at is begun again once."""
    ray = the_ray()
    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(num_cpus=0, max_concurrency=at_once(), max_restarts=-1, max_task_retries=1)(Meter)
        .options(
            runtime_env=WITHOUT_GPUS,
            scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote()
    )


def at_once() -> int:
    """Calls at the same time on this machine."""
    return max(FEWEST, min(MOST, os.cpu_count() or 1))
