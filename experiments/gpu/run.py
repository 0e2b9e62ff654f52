"""Whether recovery on a GPU reaches what it reaches on the processor, and how much sooner.

python experiments/gpu/run.py [--seeds 3] [--records FILE]   # a few minutes; needs a GPU
python experiments/gpu/run.py --show                          # the tables of the records
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

import numpy as np
import torch

from autocompress.devices import resolve_profile
from autocompress.graph.inspect import layer_view
from autocompress.pipeline import Workbench, build_architecture, run_baseline, run_trial
from autocompress.plan import Plan, Recovery
from autocompress.record import Trial
from autocompress.recovery import Lessons, compute_name, epoch_seconds
from autocompress.serialization import from_json, to_json
from autocompress.task import Task
from experiments.digits.task import task as digits
from experiments.methods.settings import Setting, plan_of, space
from experiments.networks import CifarResNet
from experiments.provenance import commit, machine, versions

HERE = Path(__file__).parent
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
TRAINED = Recovery(epochs=6, learning_rate=0.003)
ALL: Mapping[str, Setting] = {
    "half the channels": Setting(
        "digits", (("channel_pruning", space(("layer*.conv1",), pruning_ratio=(0.0, 0.5))),), TRAINED
    ),
    "80 % zeros": Setting("digits", (("sparsity", space(sparsity=(0.0, 0.8))),), TRAINED),
    "quarter rank": Setting("digits", (("low_rank", space(rank_ratio=(1.0, 0.25))),), TRAINED),
    "codebooks of 2 bits": Setting("digits", (("clustering", space(bits=(32, 2))),), TRAINED),
    "weights of 3 bits": Setting("digits", (("quantization", space(precision=("fp32", "int8"), bits=(3,))),), TRAINED),
    "half the width, from scratch": Setting(
        "digits", recovery=Recovery(epochs=12, learning_rate=0.01), architecture="width_0.5"
    ),
}
IMAGES, BATCHES = 8192, (128, 1024)
"""Random images of the epoch of ResNet-20 that is timed, and how many come at once."""

PROCESSOR = "the processor"
"""How the project calls it."""


@dataclass(frozen=True)
class Line:
    """One thing that was trained.

    Args:
        trained_on: The GPU's name or "the processor".
        what: Name of a plan, or the epoch of ResNet-20 and its batches.
        seed: Of the training.
        accuracy: Of the ONNX file on validation data; None for an epoch.
        train_s: Seconds of the training.
        machine, threads, versions, commit: Where, and by which state of the project.
    """

    trained_on: str
    what: str
    seed: int
    accuracy: float | None
    train_s: float
    machine: str
    threads: int
    versions: Mapping[str, str]
    commit: str


def main() -> None:
    """Run both sides in processes of their own, of which one sees no GPU, or show what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--records", type=Path, default=HERE / "records.jsonl")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(options.seeds, options.records)
        return
    if not options.show:
        if not torch.cuda.is_available():
            raise SystemExit("no GPU here; run this where torch.cuda.is_available()")
        command = [sys.executable, __file__, "--side", "--seeds", str(options.seeds), "--records", str(options.records)]
        for environment in ({}, WITHOUT_GPU):
            subprocess.run(command, env=os.environ | environment, check=True)
    if not options.records.is_file():
        raise SystemExit(f"no records in {options.records}; run this without --show first, where there is a GPU")
    lines = [from_json(Line, text) for text in options.records.read_text().splitlines()]
    print("\n".join(tables(lines)))


def run_side(seeds: int, records: Path) -> None:
    """Train everything where this process trains; a line a training, so that nothing is lost with a process."""
    began_at, where = commit(), machine(resolve_profile("local"))

    def note(what: str, seed: int, accuracy: float | None, train_s: float) -> None:
        name, threads = compute_name(), torch.get_num_threads()
        line = Line(name, what, seed, accuracy, train_s, where, threads, versions(), began_at)
        with records.open("a", encoding="utf-8") as file:
            file.write(to_json(line) + "\n")
        print(f"{name}: {what}, seed {seed}: {f'{accuracy:.2%}, ' if accuracy else ''}{train_s:.2f} s", flush=True)

    for size in BATCHES:
        note(_epoch(size), 0, None, _resnet_epoch_s(size))
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(digits, (resolve_profile("local"),), Path(folder))
        run_baseline(Trial(0, Plan()), bench)
        for name, setting in ALL.items():
            view = layer_view(build_architecture(bench, setting.architecture), digits.examples, setting.architecture)
            plan = plan_of(setting, view, bench.target)
            for seed in range(seeds):
                record = run_trial(Trial(1, plan, seed), bench)
                if record.status != "complete":
                    raise SystemExit(f"{name}: {record.reason}")
                note(name, seed, record.values["accuracy"], record.seconds["train"])


def _resnet_epoch_s(batch_size: int) -> float:
    """Seconds of an epoch of ResNet-20 with distillation on random images."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((IMAGES, 3, 32, 32)).astype(np.float32)
    data = (images, rng.integers(0, 10, IMAGES))
    task = Task(name="random", model=CifarResNet, train=data, validation=data, batch_size=batch_size)
    return epoch_seconds(task.build_model(), Lessons(task, task.build_model()), None, steps=8)


def tables(lines: Sequence[Line]) -> Iterator[str]:
    """Both tables as Markdown, of what was trained on both sides."""
    here = [line for line in lines if line.trained_on == PROCESSOR]
    there = [line for line in lines if line.trained_on != PROCESSOR]
    yield "| plan | on the processor | on the GPU | difference in points | times as fast |"
    yield "|---|--:|--:|--:|--:|"
    for name in ALL:
        if (ours := _of(here, name)) and (theirs := _of(there, name)):
            difference = 100 * (mean(map(_accuracy, theirs)) - mean(map(_accuracy, ours)))
            yield f"| {name} | {_shown(ours)} | {_shown(theirs)} | {difference:+.2f} | {_faster(ours, theirs):.1f} |"
    yield ""
    yield "| epoch | on the processor | on the GPU | times as fast |"
    yield "|---|--:|--:|--:|"
    for name in map(_epoch, BATCHES):
        if (ours := _of(here, name)) and (theirs := _of(there, name)):
            yield f"| {name} | {ours[0].train_s:.2f} s | {theirs[0].train_s:.2f} s | {_faster(ours, theirs):.1f} |"


def _epoch(batch_size: int) -> str:
    return f"{IMAGES} images, ResNet-20, batches of {batch_size}"


def _of(lines: Sequence[Line], what: str) -> list[Line]:
    return [line for line in lines if line.what == what]


def _accuracy(line: Line) -> float:
    return line.accuracy or 0.0


def _faster(here: Sequence[Line], there: Sequence[Line]) -> float:
    return mean(line.train_s for line in here) / mean(line.train_s for line in there)


def _shown(lines: Sequence[Line]) -> str:
    """Mean and deviation over the seeds."""
    values = [100 * _accuracy(line) for line in lines]
    return f"{mean(values):.2f} ± {stdev(values):.2f} %" if len(values) > 1 else f"{values[0]:.2f} %"


if __name__ == "__main__":
    main()
