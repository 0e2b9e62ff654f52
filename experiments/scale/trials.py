"""A simulated trial, in a module of its own: like real work it travels to other processes by its name."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from autocompress.artifact import Artifact
from autocompress.measurement import Measurement
from autocompress.record import Record, Trial
from autocompress.task import FOLDS


def simulated(run: str, trial: Trial, sleep_s: float) -> Record:
    """A trial that sleeps for its stages and has values that follow from its plan."""
    rng = np.random.default_rng(int(trial.plan.digest, 16) % 2**32)
    stages = dict(zip(("build", "train", "score", "measure"), sleep_s * rng.dirichlet((1, 6, 1, 2)), strict=True))
    for seconds in stages.values():
        time.sleep(seconds)
    ratio = rng.uniform(0.1, 1.0)
    size = ratio * rng.uniform(0.9, 1.1)
    accuracy = 0.9 - 0.2 * (1 - ratio) ** 2 - abs(rng.normal(0, 0.05))  # few lie near the front, as in real searches
    path = Path(run) / "artifacts" / f"{trial.plan.digest}.onnx"
    path.write_bytes(trial.plan.digest.encode())
    folds = tuple((accuracy + rng.normal(0, 0.01, FOLDS)).tolist())
    values = {"accuracy": accuracy, "latency_ms": ratio, "latency_ratio": ratio, "size_bytes": 1e6 * size}
    measured = Measurement(ratio, ratio, (0.99 * ratio, 1.01 * ratio), ratio, ratio, 1.0, 1_000_000, 1, 9, "made up")
    return Record(
        trial,
        "complete",
        values={**values, "peak_memory_bytes": 1e6},
        artifact=replace(Artifact.of(path), path=f"artifacts/{path.name}"),
        measurements={"made up": measured},
        fold_scores=folds,
        seconds={name: float(seconds) for name, seconds in stages.items()},
    )
