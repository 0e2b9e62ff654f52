"""Search made-up networks in simulated time, and say what the models that a strategy delivers are worth in truth.

python experiments/simulated/run.py [--strategy guided] [--worlds 0 1 2 3] [--budget 45m]
"""

from __future__ import annotations

import argparse
import heapq
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.doubt import likely_front
from autocompress.duration import parse_duration
from autocompress.front import growing_hypervolume
from autocompress.objective import Objective
from autocompress.probe import Probe
from autocompress.record import Record, Trial
from autocompress.strategies import STRATEGIES, SearchStrategy
from experiments.simulated.worlds import LATENCY_MS, LOOK_S, SIZE_BYTES, World

UNIT = (1.0, 1.0, 1.0)
"""The corner up to which volumes count: two points, the baseline's latency and its size."""

MARKS = (0.1, 0.25, 0.5, 1.0)
"""Shares of the budget at which one looks."""


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Args:
        trials: How many.
        volumes: Hypervolume within two points, by true losses, after the shares of the budget in `MARKS`.
        scored: The same in the end, by scores.
        delivered: That of the models on the front, by true losses.
        asking_s: Real seconds of the strategy.
    """

    trials: int
    volumes: tuple[float, ...]
    scored: float
    delivered: float
    asking_s: float


def main() -> None:
    """Search all worlds and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", choices=sorted(STRATEGIES), default="guided")
    parser.add_argument("--worlds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--budget", default="45m")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    heads = " | ".join(f"after {mark:.0%}" for mark in MARKS)
    print(f"| world | trials | {heads} | by scores | delivered | seconds of asking |")
    print("|--:|" + "--:|" * (len(MARKS) + 4))
    rows = []
    for seed in chosen.worlds:
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / "study.journal"
            world = World(seed, journal, budget_s=parse_duration(chosen.budget), workers=chosen.workers)
            found = search(world, STRATEGIES[chosen.strategy](world.problem))
        rows.append((found.trials, *found.volumes, found.scored, found.delivered, found.asking_s))
        print(row(str(seed), rows[-1]), flush=True)
    print(row("mean", np.mean(rows, axis=0).tolist()))


def row(name: str, cells: Sequence[float]) -> str:
    """A line of the table."""
    trials, *between, asking_s = cells
    return f"| {name} | {trials:.0f} | " + " | ".join(f"{cell:.3f}" for cell in between) + f" | {asking_s:.0f} |"


def search(world: World, strategy: SearchStrategy) -> Found:
    """A whole search of a world, in simulated time."""
    budget_s, workers = world.problem.budget_s or 0.0, world.problem.workers
    strategy.tell(world.baseline)
    records, ended_s, asking_s, order = [world.baseline], [0.0], 0.0, count()
    running: list[tuple[float, int, Trial | Probe]] = []
    idle_s = [0.0] * workers
    while True:
        while idle_s:
            started = time.perf_counter()
            asked = strategy.ask()
            asking_s += time.perf_counter() - started
            now_s = idle_s.pop()
            ends_s = now_s + (LOOK_S if isinstance(asked, Probe) else world.seconds(asked.plan) if asked else 0.0)
            if asked is not None and ends_s <= budget_s:
                heapq.heappush(running, (ends_s, next(order), asked))
        if not running:
            break
        now_s, _, ended = heapq.heappop(running)
        idle_s.append(now_s)
        if isinstance(ended, Probe):
            strategy.note(replace(world.look(ended), ended_s=now_s))
            continue
        records.append(replace(world.run(ended), ended_s=now_s))
        ended_s.append(now_s)
        strategy.tell(records[-1])
    true = growing_hypervolume([_costs(record, world.loss(record.plan)) for record in records], UNIT)
    at = [max(value for value, end_s in zip(true, ended_s, strict=True) if end_s <= mark * budget_s) for mark in MARKS]
    baseline = records[0].values["accuracy"]
    scored = growing_hypervolume(
        [_costs(record, 100 * (baseline - record.values["accuracy"])) for record in records], UNIT
    )
    metric = Objective("accuracy", "maximize")
    front = likely_front(records, world.problem.objectives, (), metric, believed=strategy.believed())
    delivered = growing_hypervolume([_costs(one.record, world.loss(one.record.plan)) for one in front], UNIT)
    return Found(len(records) - 1, tuple(at), scored[-1], delivered[-1], asking_s)


def _costs(record: Record, lost: float) -> tuple[float, float, float]:
    """What a model costs, 1 being two points, the baseline's latency and its size."""
    return max(0.0, lost / 2), record.values["latency_ms"] / LATENCY_MS, record.values["size_bytes"] / SIZE_BYTES


if __name__ == "__main__":
    main()
