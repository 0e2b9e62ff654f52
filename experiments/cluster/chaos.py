"""A search on a cluster that loses workers, a node and its driver: whether each trial has one record in the end.

python experiments/cluster/chaos.py [TASK] [--trials 100] [--every 20]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.record import Record
from autocompress.run import Run
from autocompress.run_directory import RunDirectory
from experiments.cluster.nodes import Nodes, started

ROOT = Path(__file__).resolve().parents[2]
BEGUN_AGAIN = "begun again"


def main() -> None:
    """Search, kill, resume, and say what became of the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default=str(ROOT / "experiments" / "digits" / "task.py"))
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two workers that are killed")
    parser.add_argument("--strategy", default="random")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started((1, 1, 1)) as nodes:
        _suffer(options, nodes, Path(folder) / "run")


def _suffer(options: argparse.Namespace, nodes: Nodes, run: Path) -> None:
    began = time.monotonic()
    cluster = ["--executor", "ray", "--address", nodes.address, "--workers", "3"]
    driver = _driver("search", options.task, "--trials", str(options.trials), "--output", str(run), *cluster,
                     "--strategy", options.strategy)  # fmt: skip
    draw, killed, at_work = random.Random(options.seed), list[str](), 0
    next_s, is_node_lost, is_driver_lost = options.every, False, False
    while driver.poll() is None or not is_driver_lost:
        time.sleep(0.5)
        done, now_s = _finished(run), time.monotonic() - began
        if driver.poll() is not None and not is_driver_lost:
            raise SystemExit(f"the search ended with exit code {driver.returncode} before its driver was killed")
        if now_s > next_s:
            next_s = now_s + options.every
            count, work = len(nodes.working()), nodes.kill_worker(draw)
            if work:
                killed.append(work)
                at_work += count
                print(f"{now_s:5.0f} s, {done} trials: killed a worker at: {work}", flush=True)
        if done >= options.trials / 3 and not is_node_lost:
            is_node_lost, at_work = True, at_work + len(nodes.working())
            nodes.kill_node(nodes.names[-1])
            print(f"{now_s:5.0f} s, {done} trials: killed a node", flush=True)
        if done >= 2 * options.trials / 3 and not is_driver_lost:
            is_driver_lost = True
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            print(f"{now_s:5.0f} s, {done} trials: killed the driver", flush=True)
            driver = _driver("search", "--resume", str(run))
    print(f"exit code {driver.returncode} after {time.monotonic() - began:.0f} s")
    print(f"{len(killed)} workers killed, a node and the driver; calls at work at the kills: {at_work}")
    _tell(run, options.trials)


def _tell(run: Path, trials: int) -> None:
    records = [line for line in RunDirectory.open(run).lines() if isinstance(line, Record)]
    numbers = Counter(record.number for record in records)
    log = (run / "log.txt").read_text(encoding="utf-8").splitlines()
    again = [line for line in log if BEGUN_AGAIN in line]
    statuses = Counter(record.status for record in records if record.number)
    print(f"calls begun again: {len(again)}")
    print(f"{dict(statuses)}; {len(Run(run).points)} models on the front")
    print(f"trials without a record: {sorted(set(range(trials + 1)) - set(numbers)) or 'none'}")
    print(f"trials with two: {[number for number, count in numbers.items() if count > 1] or 'none'}")
    for record in records:
        if record.status == "failed":
            print(f"failed: {record.number}: {record.reason}")


def _finished(run: Path) -> int:
    path = run / "records.jsonl"
    if not path.is_file():
        return 0
    return sum(1 for line in path.read_bytes().splitlines() if b'"trial"' in line[:12]) - 1


def _driver(*words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "autocompress", *words], env=environment)


if __name__ == "__main__":
    main()
