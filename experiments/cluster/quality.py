"""Whether a search on a cluster of three nodes finds what one with processes finds, on the same machine.

python experiments/cluster/quality.py [TASK] [--trials 30] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.front import growing_hypervolume
from autocompress.run_directory import RunDirectory
from experiments.cluster.nodes import Nodes, started

ROOT = Path(__file__).resolve().parents[2]

REFERENCES = (0.02, 0.10, 0.60)
"""Losses of accuracy at which a model is worth nothing, as in `experiments/search_efficiency`."""

WORKERS = 3


def main() -> None:
    """Search with each seed in both ways, and print the hypervolumes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default=str(ROOT / "experiments" / "digits" / "task.py"))
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    found: dict[str, list[tuple[float, ...]]] = {"processes": [], "ray": []}
    print("| seed | executor | seconds | within 2 points | within 10 | within 60 |\n|--:|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder, started((1,) * WORKERS) as nodes:
        for seed in options.seeds:
            for executor, volumes in found.items():
                run = Path(folder) / f"{executor}-{seed}"
                took_s = _search(options, executor, seed, run, nodes)
                volumes.append(_volumes(run))
                print(_row(str(seed), executor, f"{took_s:.0f}", volumes[-1]), flush=True)
    means = {name: tuple(map(statistics.fmean, zip(*volumes, strict=True))) for name, volumes in found.items()}
    for name, mean in means.items():
        print(_row("mean", name, "", mean))
    ratios = [ray / processes for ray, processes in zip(means["ray"], means["processes"], strict=True)]
    print(_row("", "ray / processes", "", ratios))


def _search(options: argparse.Namespace, executor: str, seed: int, run: Path, nodes: Nodes) -> float:
    where = ["--address", nodes.address] if executor == "ray" else []
    words = ["search", options.task, "--trials", str(options.trials), "--seed", str(seed), "--output", str(run)]
    words += ["--executor", executor, "--workers", str(WORKERS), *where]
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "autocompress", *words],
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.monotonic() - began


def _volumes(run: Path) -> tuple[float, ...]:
    """Hypervolume of all trials on validation data, for each reference."""
    directory = RunDirectory.open(run)
    metric, records = directory.config.metric, [one for one in directory.records() if one.status == "complete"]
    baseline = next(record for record in records if record.number == 0).values
    volumes = []
    for reference in REFERENCES:
        points = [
            (
                max(0.0, (baseline[metric] - record.values[metric]) / reference),
                record.values["latency_ratio"],
                record.values["size_bytes"] / baseline["size_bytes"],
            )
            for record in records
        ]
        volumes.append(growing_hypervolume(points, (1.0, 1.0, 1.0))[-1])
    return tuple(volumes)


def _row(seed: str, name: str, seconds: str, volumes: tuple[float, ...] | list[float]) -> str:
    return " | ".join([f"| {seed}", name, seconds, *(f"{volume:.3f}" for volume in volumes)]) + " |"


if __name__ == "__main__":
    main()
