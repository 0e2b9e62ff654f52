"""Folders in which machines of a cluster keep copies of a run, and how they go."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from autocompress.executors._ray.connecting import PATIENCE_S, the_ray

OF_NODE, OF_SHELF = "autocompress-node-", "autocompress-shelf-"
"""How names of the two kinds begin: copies that a node works with, and those for a search outside of the cluster."""

ABANDONED_S = 7 * 24 * 3600.0
"""Seconds after which nobody works any more in a folder that nobody has touched: its search was killed, or its node."""

TRIES, PAUSE_S = 5, 0.2
"""How often a folder is removed into which a process that is about to end still writes, and the seconds between."""


def node_folder(run_id: str) -> Path:
    """The folder of a search on this machine."""
    return Path(tempfile.gettempdir()) / f"{OF_NODE}{run_id}"


def occupy(folder: Path) -> None:
    """Make a folder if there is none, and say that it is in use."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        os.utime(folder)
    else:
        remove_abandoned()


def remove_abandoned() -> None:
    """Remove the folders that searches have left on this machine which were killed."""
    here = Path(tempfile.gettempdir())
    for folder in (*here.glob(f"{OF_NODE}*"), *here.glob(f"{OF_SHELF}*")):
        with suppress(OSError):  # another is removing it, or it is another user's
            if time.time() - folder.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(folder)


def remove(folder: Path) -> None:
    """Remove a folder, though others may write there for a moment."""
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(PAUSE_S)


def remove_on_nodes(run_id: str, nodes: Iterable[str]) -> None:
    """Remove the folder of a search on those of some nodes that are alive; one that does not answer keeps it."""
    ray = the_ray()
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task = ray.remote(num_cpus=0, max_retries=0)(_remove_here)
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    places = [affinity(node, soft=False) for node in alive & set(nodes)]
    begun = [task.options(name="remove copies", scheduling_strategy=place).remote(run_id) for place in places]
    if begun:
        ray.wait(begun, num_returns=len(begun), timeout=2 * PATIENCE_S)


def _remove_here(run_id: str) -> None:
    remove(node_folder(run_id))
