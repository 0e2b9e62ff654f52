"""What the guided strategy costs by itself: time of a proposal after many records, memory of a large space."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.graph.view import Block, ChannelGroup, Layer, LayerView
from autocompress.landscape import Landscape
from autocompress.landscapes import landscape
from autocompress.objective import make_objectives
from autocompress.plan import ORIGINAL, Plan
from autocompress.planner import Planner, planner, policy_plans, resolve_epochs
from autocompress.probe import Probe, Sensitivity
from autocompress.profile import HardwareProfile
from autocompress.record import Proposal, Record, Trial
from autocompress.space import SearchSpace, load_space, neutral
from autocompress.strategies import Problem
from autocompress.strategies.guided import Guided

PROFILE = HardwareProfile("made up", channel_multiple=16, kernels={"conv": ("int8",), "linear": ("int8",)})


def network(layers: int) -> LayerView:
    """A residual network of so many convolutions, two in each block."""
    names = [f"layer{number // 2}.conv{number % 2 + 1}" for number in range(layers)]
    made = tuple(Layer(name, "conv", 36864, 2_000_000, (64, 64, 3, 3)) for name in names)
    groups = tuple(
        ChannelGroup(name, (name,), 64, readers=(after,), read_shares=(1.0,), shares=(1.0,))
        for name, after in zip(names[::2], names[1::2], strict=True)
    )
    blocks = tuple(
        Block(f"layer{number}", 73728, 4_000_000, tuple(names[2 * number : 2 * number + 2]))
        for number in range(layers // 2)
    )
    return LayerView(ORIGINAL, made, groups, blocks)


def made_up(trial: Trial, land: Landscape, rng: np.random.Generator) -> Record:
    """What a trial might have given."""
    work = land.work(land.point(trial.proposal.params)[None])
    share = float(work.macs.sum()) / sum(land.macs)
    size = float(work.stored_bytes.sum()) / (4 * sum(land.weights))
    values = {
        "accuracy": 0.9 - 0.2 * (1 - share) ** 2 - 0.05 * (1 - size) ** 3 + rng.normal(0, 0.002),
        "latency_ms": 0.1 + 0.9 * share,
        "latency_ratio": 0.1 + 0.9 * share,
        "size_bytes": 1e6 * (0.02 + size),
        "peak_memory_bytes": 1e6,
    }
    return Record(trial, "complete", values=values, seconds={"build": 1.0, "train": 10.0})


def random_trial(number: int, land: Landscape, plan: Planner, rng: np.random.Generator) -> Trial:
    """A random point, most of it unchanged."""
    drawn = np.where(rng.random(len(land.sizes)) < 0.2, rng.random(len(land.sizes)) * land.sizes, 0).astype(np.int64)
    answers = land.answers(land.canonical(drawn[None])[0])
    return Trial(
        number, plan(lambda name, knob: answers.get(name, neutral(knob))), proposal=Proposal("random", answers)
    )


def main() -> None:
    """Print milliseconds of a proposal and megabytes of a space."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=38, help="38 layers make about 150 knobs")
    parser.add_argument("--proposals", type=int, default=64)
    chosen = parser.parse_args()
    space = resolve_epochs(_original_alone(load_space("joint")), 9)
    tracemalloc.start()
    large = network(60)
    made = landscape(space, planner(space, {ORIGINAL: large}, PROFILE), large, PROFILE)
    made.work(np.zeros((100, len(made.sites)), np.int64))
    print(
        f"60 layers, {len(space.methods)} methods: {len(made.sites)} sites, {len(made.changes)} changes, "
        f"{tracemalloc.get_traced_memory()[1] / 1e6:.1f} MB at the peak"
    )
    tracemalloc.stop()
    view = network(chosen.layers)
    plan = planner(space, {ORIGINAL: view}, PROFILE)
    land = landscape(space, plan, view, PROFILE)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        problem = Problem(
            plan=plan,
            policies=policy_plans(space, plan),
            objectives=make_objectives((), "accuracy", "maximize"),
            constraints=(),
            seed=0,
            journal=Path(folder) / "study.journal",
            landscapes={ORIGINAL: land},
        )
        strategy = Guided(problem)
        strategy.tell(made_up(Trial(0, Plan(), proposal=Proposal("baseline")), land, rng))
        started = time.perf_counter()
        for number in range(1, chosen.records):
            strategy.tell(made_up(random_trial(number, land, plan, rng), land, rng))
        told_s = time.perf_counter() - started
        times: list[float] = []
        while len(times) < chosen.proposals:
            started = time.perf_counter()
            asked = strategy.ask()
            took = time.perf_counter() - started
            if isinstance(asked, Probe):
                values = {"latency_ratio": 0.98, "size_bytes": 9.8e5}
                strategy.note(Sensitivity(asked, divergence=float(rng.exponential(0.05)), values=values))
                continue
            assert asked is not None, "the space is large"
            times.append(1000 * took)
            strategy.tell(made_up(asked, land, rng))
    print(
        f"{len(land.sites)} knobs, {chosen.records} records: told in {told_s:.0f} s; a proposal takes "
        f"{statistics.median(times):.0f} ms in the median, {statistics.mean(times):.0f} ms in the mean, "
        f"{max(times):.0f} ms at most"
    )


def _original_alone(space: SearchSpace) -> SearchSpace:
    return replace(space, widths=(), depths=(), students=False, policies=space.policies[:2])


if __name__ == "__main__":
    main()
