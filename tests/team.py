"""Processes that stay for many calls and form a team of `torch.distributed`, as trainers of a cluster do."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PATIENCE_S = 90.0
"""Seconds that a call may take; what hangs fails the test then."""


class Team:
    """Several processes; each is told of the same calls."""

    def __init__(self, ends: list[Connection]) -> None:
        self._ends = ends

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What a function of a module returns in each of them, or the error that it raises there."""
        for end in self._ends:
            end.send((function, args))
        answers = []
        for end in self._ends:
            assert end.poll(PATIENCE_S), f"{function.__name__} hangs"
            answers.append(end.recv())
        return answers


@contextmanager
def together(size: int, folder: Path) -> Iterator[Team]:
    """A team for a while, which meets by a file in a folder."""
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["tests.conftest", "tests.tasks.stripes", "autocompress.recovery"])
    pairs = [fresh.Pipe() for _ in range(size)]
    members = [
        fresh.Process(target=_serve, args=(theirs, rank, size, str(folder / "meeting")), daemon=True)
        for rank, (_, theirs) in enumerate(pairs)
    ]
    for member in members:
        member.start()
    try:
        yield Team([ours for ours, _ in pairs])
    finally:
        for member in members:
            member.kill()
            member.join()


def _serve(calls: Connection, rank: int, size: int, meeting: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    patience = timedelta(seconds=PATIENCE_S)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=patience)
    while True:
        function, args = calls.recv()
        try:
            calls.send(function(*args))
        except Exception as error:
            error.add_note(traceback.format_exc())
            calls.send(error)
