"""A search under Ray Tune that loses a worker and then its driver, against one without Tune.

python experiments/tune/run.py --folder DIR [--strategy random] [--trials 20] [--seed 0] [--at-once 2]
python experiments/tune/run.py --show                # the table of all records
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

import autocompress
from autocompress.record import Record
from autocompress.run_directory import RunDirectory
from autocompress.serialization import from_json, to_json, write_atomically
from experiments.provenance import commit, machine, versions

HERE = Path(__file__).parent
TASK = HERE.parent / "digits" / "task.py"
CPUS = 2
EXPERIMENT = "tuned"

WORKER_DIES_AT, DRIVER_DIES_AT = 5, 12
"""Finished trials after which the processes are killed."""

LIMIT_S = 1800.0


@dataclass(frozen=True)
class Asked:
    """What is searched, with Tune and without.

    Args:
        strategy, trials, seed: Of the search.
        at_once: Trials at the same time; each has its share of the processors.
    """

    strategy: str
    trials: int
    seed: int
    at_once: int


@dataclass(frozen=True)
class Outcome:
    """What came of a search under Tune, beside that of the same search without it.

    Args:
        asked: The same for both searches.
        killed_worker_after, killed_driver_after: Finished trials by then.
        again: Trials that Tune began before the driver died, and again after it.
        left_processes: Processes of Ray that outlived the driver by a minute.
        tune_trials, tune_ended: Trials that Tune knows in the end, and those of them that ended well.
        numbers: Numbers of the trials with a record, in order, as often as they have one.
        same_plans: Trials that have the same plan in both searches.
        same_status: Those of them that ended alike.
        complete: Those of them that are complete in both.
        same_scores: Those of these with the same metric, bit by bit.
        same_sizes: Those of these with a file of the same number of bytes.
        intervals_meet: Those of these whose intervals of the latency ratio have a value in common.
        confirmed: Models that were measured again and scored on test data, in either search.
        seconds: Wall time of the search under Tune, that of both processes, and of the one without.
        commit, machine, versions: Where the figures come from.
        fronts: Numbers of the trials on the front of either search.
    """

    asked: Asked
    killed_worker_after: int
    killed_driver_after: int
    again: int
    left_processes: int
    tune_trials: int
    tune_ended: int
    numbers: tuple[int, ...]
    same_plans: int
    same_status: int
    complete: int
    same_scores: int
    same_sizes: int
    intervals_meet: int
    confirmed: tuple[int, int]
    seconds: tuple[float, float]
    commit: str
    machine: str
    versions: Mapping[str, str] = field(default_factory=dict)
    fronts: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


def drive(folder: Path, asked: Asked) -> None:
    """Begin a search under Tune in a folder, or go on with the one that is there, to its end."""
    import ray
    from ray import tune

    import autocompress.tune as actune

    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
    search = actune.AutocompressSearcher(
        str(TASK), output=folder / "tune", trials=asked.trials, strategy=asked.strategy, seed=asked.seed
    )
    trainable = tune.with_resources(actune.trainable, {"cpu": CPUS // asked.at_once})
    experiment = str(folder / "ray" / EXPERIMENT)
    if tune.Tuner.can_restore(experiment):
        tuner = tune.Tuner.restore(experiment, trainable=trainable)
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric="accuracy",
                mode="max",
                search_alg=search,
                num_samples=asked.trials,
                max_concurrent_trials=asked.at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=EXPERIMENT,
                storage_path=str(folder / "ray"),
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )
    results = tuner.fit()
    run = search.finish()
    metrics = [results[index].metrics or {} for index in range(len(results))]
    ended = sum("status" in one for one in metrics)
    write_atomically(folder / "tune.json", json.dumps({"trials": len(results), "ended": ended, "status": run.status}))


def compare(folder: Path, asked: Asked) -> Outcome:
    """Have both searches made, the one under Tune with its losses, and hold them against one another."""
    state = commit()
    words = [word for name, value in asdict(asked).items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, str(Path(__file__)), "--drive", "--folder", str(folder), *words]
    started = time.monotonic()
    with (folder / "driver.log").open("ab") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: count_records(folder) > WORKER_DIES_AT and bool(trial_processes(driver.pid)), driver)
        worker_after = count_records(folder) - 1
        os.kill(trial_processes(driver.pid)[0], signal.SIGKILL)
        wait_until(lambda: count_records(folder) > DRIVER_DIES_AT, driver)
        processes = descendants(driver.pid)
        begun = handed(folder)
        driver.kill()
        driver.wait()
        driver_after = count_records(folder) - 1
        left = left_after(processes, 60.0)
        subprocess.run(command, stdout=log, stderr=log, check=True, timeout=LIMIT_S)
    tuned_s = time.monotonic() - started
    started = time.monotonic()
    autocompress.search(
        str(TASK),
        output=folder / "plain",
        trials=asked.trials,
        strategy=asked.strategy,
        seed=asked.seed,
        workers=asked.at_once,
    )
    plain_s = time.monotonic() - started
    told = json.loads((folder / "tune.json").read_text())
    tuned, plain = RunDirectory.open(folder / "tune"), RunDirectory.open(folder / "plain")
    by_number = {record.number: record for record in plain.records()}
    lines = [line for line in tuned.lines() if isinstance(line, Record)]
    pairs = [(one, by_number[one.number]) for one in tuned.records() if one.number in by_number]
    same = [(a, b) for a, b in pairs if a.trial.plan == b.trial.plan]
    complete = [(a, b) for a, b in same if a.status == b.status == "complete"]
    config = plain.config
    return Outcome(
        asked=asked,
        killed_worker_after=worker_after,
        killed_driver_after=driver_after,
        again=len(begun) - driver_after,
        left_processes=left,
        tune_trials=told["trials"],
        tune_ended=told["ended"],
        numbers=tuple(sorted(line.number for line in lines)),
        same_plans=len(same),
        same_status=sum(a.status == b.status for a, b in same),
        complete=len(complete),
        same_scores=sum(a.values[config.metric] == b.values[config.metric] for a, b in complete),
        same_sizes=sum(a.values["size_bytes"] == b.values["size_bytes"] for a, b in complete),
        intervals_meet=sum(meet(a, b) for a, b in complete),
        confirmed=(len(tuned.confirmations()), len(plain.confirmations())),
        seconds=(round(tuned_s, 1), round(plain_s, 1)),
        commit=state,
        machine=machine(config.profile),
        versions=versions(),
        fronts=(front_of(tuned), front_of(plain)),
    )


def front_of(directory: RunDirectory) -> tuple[int, ...]:
    """Numbers of the trials on a front, in order."""
    return tuple(sorted(point.number for point in directory.points()[1]))


def count_records(folder: Path) -> int:
    """Finished trials of the search under Tune, the baseline among them."""
    return len(RunDirectory(folder / "tune").records())


def handed(folder: Path) -> list[Path]:
    """The trials that Tune was given."""
    return list((folder / "tune" / "handed").glob("*.json"))


def meet(one: Record, other: Record) -> bool:
    """True if the intervals of two latency ratios have a value in common."""
    assert one.measurement is not None, "complete trials have one"
    assert other.measurement is not None, "complete trials have one"
    (low, high), (other_low, other_high) = (r.latency_ratio_interval for r in (one.measurement, other.measurement))
    return low <= other_high and other_low <= high


def wait_until(what: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    """Wait until something is so.

    Raises:
        SystemExit: If the driver ends before, or it takes too long.
    """
    end = time.monotonic() + LIMIT_S
    while not what():
        if driver.poll() is not None or time.monotonic() > end:
            driver.kill()
            raise SystemExit("the search under Tune ended too early or hangs; see driver.log in the folder")
        time.sleep(0.1)


def processes_now() -> Iterator[tuple[int, int, str]]:
    """Process, its parent and its command line, of all that run."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        pid, parent, *words = line.split(maxsplit=2)
        yield int(pid), int(parent), " ".join(words)


def descendants(root: int) -> dict[int, str]:
    """The processes that a process began, and those that they began, with their command lines."""
    known, everyone = {root: ""}, list(processes_now())
    for _ in itertools.repeat(None, 8):
        known |= {pid: words for pid, parent, words in everyone if parent in known}
    del known[root]
    return known


def trial_processes(driver: int) -> list[int]:
    """Processes of a driver that carry out a trial now."""
    return [pid for pid, words in descendants(driver).items() if words.startswith("ray::ImplicitFunc.train")]


def left_after(processes: Mapping[int, str], limit_s: float) -> int:
    """How many of some processes still run after a while."""
    end = time.monotonic() + limit_s
    while True:
        left = {pid for pid, _, words in processes_now() if processes.get(pid) and "defunct" not in words}
        if not left or time.monotonic() > end:
            return len(left)
        time.sleep(0.5)


def show(outcomes: Sequence[Outcome]) -> None:
    """Print the table of the README."""
    head = ("strategy", "at once", "records", "again", "plans", "status", "complete", "scores", "sizes", "latencies")
    print(f"| {' | '.join(head)} | front | in Tune's table | seconds | without Tune |")
    print("|---|" + "--:|" * 13)
    for one in outcomes:
        each_once = one.numbers == tuple(range(one.asked.trials + 1))
        cells: tuple[object, ...] = (
            one.asked.strategy,
            one.asked.at_once,
            f"{len(one.numbers) - 1} of {one.asked.trials}{', each once' if each_once else ''}",
            one.again,
            one.same_plans - 1,
            one.same_status - 1,
            one.complete - 1,
            one.same_scores - 1,
            one.same_sizes - 1,
            one.intervals_meet - 1,
            f"{len(set(one.fronts[0]) & set(one.fronts[1]))} of {len(set(one.fronts[0]) | set(one.fronts[1]))}",
            f"{one.tune_ended} of {one.tune_trials}",
            *(f"{seconds:.0f}" for seconds in one.seconds),
        )
        print(f"| {' | '.join(map(str, cells))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where both searches are left; has to be empty")
    parser.add_argument("--strategy", default="random")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=2, choices=(1, 2), help="trials at the same time")
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    records, asked = HERE / "records.jsonl", Asked(given.strategy, given.trials, given.seed, given.at_once)
    if given.drive:
        drive(given.folder.resolve(), asked)
        return
    if not given.show:
        folder = given.folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        outcome = compare(folder, asked)
        print(json.dumps(asdict(outcome), indent=2))
        with records.open("a", encoding="utf-8") as file:
            file.write(to_json(outcome) + "\n")
    show([from_json(Outcome, line) for line in records.read_text(encoding="utf-8").splitlines()])


if __name__ == "__main__":
    main()
