"""Whether twice the workers carry out twice the trials: trials that but wait, through the real loop and Ray.

python experiments/scale/linear.py [--workers 2 8 64] [--rounds 6] [--sleep 10]

Each worker is a process of Ray of its own, on a cluster of three nodes of this machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.cluster import Cluster
from autocompress.executors._base import WORKER_BYTES
from autocompress.executors.ray import RayExecutor
from experiments.cluster.nodes import started
from experiments.scale.run import searched


def main() -> None:
    """Run a simulated search with each number of workers, and print what share of linear it reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--rounds", type=int, default=6, help="trials of each worker")
    parser.add_argument("--sleep", type=float, default=10.0, help="seconds of a trial")
    parser.add_argument("--strategy", default="random")
    parser.add_argument("--layers", type=int, default=38, help="38 layers make about 150 knobs")
    options = parser.parse_args()
    most = max(options.workers)
    print("| workers | trials | seconds | trials a second | of linear |\n|--:|--:|--:|--:|--:|")
    cpus = (most - 2 * (most // 3), most // 3, most // 3)
    with started(cpus, memory_bytes=int(WORKER_BYTES * max(cpus))) as nodes:  # trials that wait need none of it
        for workers in options.workers:
            executor = RayExecutor(workers, 1, Cluster(nodes.address))
            try:
                _warm(executor, workers)
                with tempfile.TemporaryDirectory() as folder:
                    options.concurrent, options.trials = workers, workers * options.rounds
                    took_s = searched(options, Path(folder) / "run", executor, None).seconds
            finally:
                executor.shutdown()
            rate, linear = options.trials / took_s, workers / options.sleep
            print(f"| {workers} | {options.trials} | {took_s:.0f} | {rate:.2f} | {rate / linear:.1%} |", flush=True)


def _warm(executor: RayExecutor, workers: int) -> None:
    """Have all workers started and ready, each of which then waits for the last: it takes a processor some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        for future in [executor.submit(_meet, Path(folder), index, workers) for index in range(workers)]:
            future.result()


def _meet(folder: Path, index: int, count: int) -> None:
    import experiments.scale.trials  # noqa: F401 - what trials need

    (folder / str(index)).touch()
    while folder.exists() and len(list(folder.iterdir())) < count:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
