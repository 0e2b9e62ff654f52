"""What the process that searches can do: simulated trials, hundreds at a time, through the real loop and Ray.

python experiments/scale/run.py [--trials 10000] [--concurrent 500] [--strategy random] [--over ray]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.executors import TrialExecutor
from autocompress.executors._ray.connecting import the_ray
from autocompress.executors._ray.tasks import Outcome, work
from autocompress.executors.ray import RayExecutor
from autocompress.interrupts import Interrupts
from autocompress.landscapes import landscape
from autocompress.loop import Calls, Clock, SearchLoop, TrialTimes
from autocompress.objective import make_objectives
from autocompress.plan import ORIGINAL, Plan
from autocompress.planner import planner, policy_plans, resolve_epochs
from autocompress.probe import Probe, Sensitivity
from autocompress.profile import HardwareProfile
from autocompress.record import Proposal, Record, Remeasured, SplitScore, Trial
from autocompress.run_directory import RunConfig, RunDirectory
from autocompress.screen import Screen
from autocompress.snapshot import Snapshot
from autocompress.space import SearchSpace, load_space
from autocompress.strategies import STRATEGIES, Fits, Problem, SearchStrategy, always
from experiments.scale.trials import simulated
from experiments.search_efficiency.asking import network

ROOT = Path(__file__).resolve().parents[2]

PROFILE = HardwareProfile("made up", channel_multiple=16, kernels={"conv": ("int8",), "linear": ("int8",)})
ACTORS = 5
"""Processes of Ray in which the simulated trials sleep, hundreds in each: real ones need a process each."""

REPORTS = 10


class Sleepers(RayExecutor):
    """The Ray executor with its tasks in a few processes of many threads, so that hundreds fit into one machine."""

    def __init__(self, workers: int, threads: int) -> None:
        super().__init__(workers, threads)

        class Sleeper:
            def call(self, function: Callable[..., Any], args: tuple[Any, ...], threads: int) -> Outcome:
                return work(function, args, threads)

        kind = the_ray().remote(num_cpus=0, max_concurrency=-(-workers // ACTORS))(Sleeper)
        self._actors = cycle([kind.remote() for _ in range(ACTORS)])
        self._task = self

    def options(self, **options: Any) -> Any:
        """As a remote function has them."""
        return next(self._actors).call.options(name=options["name"])


class Threads(ThreadPoolExecutor):
    """Without Ray: what the loop alone can do."""

    def kill(self) -> None:
        """Nothing of this lasts."""


@dataclass
class Watched:
    """A strategy, and how long it took to ask."""

    strategy: SearchStrategy
    asked_s: list[float] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.strategy, name)

    def ask(self, fits: Fits = always) -> Trial | Probe | None:
        """Ask the strategy."""
        started = time.perf_counter()
        try:
            return self.strategy.ask(fits)
        finally:
            self.asked_s.append(time.perf_counter() - started)


class Progress:
    """Prints rates, memory and times of asking as records come.

    Args:
        total: Records to come.
        reports: Lines that are printed while they come.
        strategy: Being watched.
    """

    def __init__(self, total: int, reports: int, strategy: Watched) -> None:
        self._step, self._strategy = max(1, total // reports), strategy
        self._since, self._count = time.monotonic(), 0

    def __call__(self, snapshot: Snapshot) -> None:
        """A change of the search."""
        if snapshot.complete - self._count < self._step:
            return
        now = time.monotonic()
        rate = (snapshot.complete - self._count) / (now - self._since)
        asked_ms = 1000 * statistics.median(self._strategy.asked_s[-500:])
        print(
            f"{snapshot.complete:6d} records, {rate:6.0f} a second, asking {asked_ms:.1f} ms in the median, "
            f"{peak_memory_mib():.0f} MiB at most, {snapshot.running} at work, front of {len(snapshot.front)}",
            flush=True,
        )
        self._since, self._count = now, snapshot.complete


def peak_memory_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run a simulated search and print what the driver did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--concurrent", type=int, default=500)
    parser.add_argument("--sleep", type=float, default=2.0, help="seconds of a trial")
    parser.add_argument("--strategy", default="random", choices=sorted(STRATEGIES))
    parser.add_argument("--over", default="ray", choices=["ray", "threads"])
    parser.add_argument("--layers", type=int, default=38, help="38 layers make about 150 knobs")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)  # processes of Ray load the trials by their name
    with tempfile.TemporaryDirectory() as folder:
        _run(options, Path(folder) / "run")


def _run(options: argparse.Namespace, path: Path) -> None:
    pool = Sleepers(options.concurrent, 1) if options.over == "ray" else Threads(options.concurrent)
    cpu = time.process_time()
    try:
        driven = searched(options, path, pool, REPORTS)
    finally:
        pool.shutdown()
    each_ms = (time.process_time() - cpu) / options.trials * 1000
    print(
        f"{options.trials} trials of {options.sleep:g} s, {options.concurrent} at a time over {options.over}: "
        f"{driven.seconds:.0f} s, {options.trials / driven.seconds:.0f} records a second; "
        f"{each_ms:.1f} ms of the driver each, {driven.memory_mib:.0f} MiB at most"
    )


@dataclass(frozen=True)
class Driven:
    """What a search took.

    Args:
        seconds: Wall time.
        memory_mib: The most memory that the process had by its end.
    """

    seconds: float
    memory_mib: float


def searched(options: argparse.Namespace, path: Path, pool: Any, reports: int | None) -> Driven:
    """A simulated search, of which each trial has one record in the end.

    Args:
        options: How it is to be.
        path: Its run directory.
        pool: Carries the trials out.
        reports: Lines that are printed on the way.
    """
    directory = RunDirectory.create(path)
    space = replace(resolve_epochs(load_space("joint"), 9), widths=(), depths=(), students=False, policies=())
    directory.write_config(_config(space, options))
    baseline = simulated(str(path), Trial(0, Plan(), proposal=Proposal("baseline")), 0.0)
    directory.append(
        replace(baseline, values={**baseline.values, "accuracy": 0.9, "latency_ms": 1.0, "size_bytes": 1e6})
    )
    strategy = Watched(_strategy(space, options, path))
    strategy.tell(directory.records()[0])
    if isinstance(pool, TrialExecutor):
        pool.begin(path)
    loop = SearchLoop(
        directory=directory,
        strategy=strategy,  # type: ignore[arg-type]
        calls=_calls(pool, str(path), options.sleep),
        clock=Clock(0.0, time.monotonic()),
        times=TrialTimes(0.01),
        interrupts=Interrupts(),
        observer=Progress(options.trials, reports, strategy) if reports else None,
    )
    started = time.monotonic()
    loop.run()
    driven = Driven(time.monotonic() - started, peak_memory_mib())
    numbers = [line.number for line in directory.lines() if isinstance(line, Record)]
    assert sorted(numbers) == list(range(options.trials + 1)), "each has one record"
    return driven


def _config(space: SearchSpace, options: argparse.Namespace) -> RunConfig:
    return RunConfig(
        task="simulated",
        task_reference="",
        metric="accuracy",
        is_percentage=True,
        direction="maximize",
        fingerprints={},
        space=space,
        profiles=(PROFILE,),
        objectives=make_objectives((), "accuracy", "maximize"),
        constraints=(),
        strategy=options.strategy,
        budget_s=None,
        trials=options.trials,
        workers=options.concurrent,
        seed=0,
    )


def _strategy(space: SearchSpace, options: argparse.Namespace, path: Path) -> SearchStrategy:
    view = network(options.layers)
    plan = planner(space, {ORIGINAL: view}, PROFILE)
    return STRATEGIES[options.strategy](
        Problem(
            plan=plan,
            policies=policy_plans(space, plan),
            objectives=make_objectives((), "accuracy", "maximize"),
            constraints=(),
            seed=0,
            journal=path / "study.journal",
            landscapes={ORIGINAL: landscape(space, plan, view, PROFILE)},
            trials=options.trials,
            workers=options.concurrent,
        )
    )


def _calls(pool: Any, run: str, sleep_s: float) -> Calls:
    def trial(trial: Trial, screen: Screen) -> Future[Record]:
        del screen
        future: Future[Record] = pool.submit(simulated, run, trial, sleep_s)
        return future

    def again(
        records: tuple[Record, ...], baseline: Mapping[str, float], each_s: float
    ) -> Future[tuple[Remeasured, ...]]:
        del baseline, each_s
        return _done(tuple(Remeasured(record.number, record.measurements, dict(record.values)) for record in records))

    def look(probe: Probe) -> Future[Sensitivity]:
        return _done(Sensitivity(probe, divergence=0.05, values={"latency_ratio": 0.98, "size_bytes": 9.8e5}))

    return Calls(
        run=trial,
        look=look,
        test_score=lambda record: _done(SplitScore({"accuracy": record.values["accuracy"]})),
        device_score=lambda record, limit_s: _done(None),
        remeasure=again,
        kill=pool.kill,
    )


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


if __name__ == "__main__":
    main()
