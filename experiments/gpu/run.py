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
from autocompress.serialization import from_json, to_json, write_atomically
from autocompress.task import Task
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
IMAGES = 8192
"""Random images of the epoch of ResNet-20 that is timed."""


@dataclass(frozen=True)
class Cell:
    """A plan with one seed.

    Args:
        setting, seed: Which.
        accuracy: Of the ONNX file on validation data.
        train_s: Seconds of its training.
    """

    setting: str
    seed: int
    accuracy: float
    train_s: float


@dataclass(frozen=True)
class Side:
    """What one of the two reaches.

    Args:
        trained_on: What that is.
        cells: All plans and seeds.
        epoch_s: Seconds of an epoch of ResNet-20, by the number of images in a batch.
    """

    trained_on: str
    cells: tuple[Cell, ...]
    epoch_s: Mapping[int, float]


@dataclass(frozen=True)
class Study:
    """Both sides, and where they were run."""

    commit: str
    machine: str
    versions: Mapping[str, str]
    threads: int
    processor: Side
    gpu: Side


def main() -> None:
    """Run both sides in processes of their own, of which one sees no GPU, or show what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--records", type=Path, default=HERE / "records.json")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        options.records.write_text(to_json(run_side(options.seeds)))
        return
    if not options.show:
        if not torch.cuda.is_available():
            raise SystemExit("no GPU here; run this where torch.cuda.is_available()")
        began_at = commit()
        gpu, processor = _apart({}, options.seeds), _apart(WITHOUT_GPU, options.seeds)
        where, threads = machine(resolve_profile("local")), torch.get_num_threads()
        study = Study(began_at, where, versions(), threads, processor, gpu)
        write_atomically(options.records, to_json(study, indent=1).encode())
    print("\n".join(tables(from_json(Study, options.records.read_text()))))


def _apart(environment: Mapping[str, str], seeds: int) -> Side:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "side.json"
        command = [sys.executable, __file__, "--side", "--seeds", str(seeds), "--records", str(result)]
        subprocess.run(command, env=os.environ | environment, check=True)
        return from_json(Side, result.read_text())


def run_side(seeds: int) -> Side:
    """Carry out all plans where this process trains."""
    from experiments.digits.task import task

    cells = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(task, (resolve_profile("local"),), Path(folder))
        run_baseline(Trial(0, Plan()), bench)
        for name, setting in ALL.items():
            view = layer_view(build_architecture(bench, setting.architecture), task.examples, setting.architecture)
            plan = plan_of(setting, view, bench.target)
            for seed in range(seeds):
                record = run_trial(Trial(1, plan, seed), bench)
                if record.status != "complete":
                    raise SystemExit(f"{name}: {record.reason}")
                cells.append(Cell(name, seed, record.values["accuracy"], record.seconds["train"]))
                print(f"{compute_name()}: {name}, seed {seed}: {record.values['accuracy']:.2%}", flush=True)
    return Side(compute_name(), tuple(cells), {size: _resnet_epoch_s(size) for size in (128, 1024)})


def _resnet_epoch_s(batch_size: int) -> float:
    """Seconds of an epoch of ResNet-20 with distillation on random images."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((IMAGES, 3, 32, 32)).astype(np.float32)
    data = (images, rng.integers(0, 10, IMAGES))
    task = Task(name="random", model=CifarResNet, train=data, validation=data, batch_size=batch_size)
    return epoch_seconds(task.build_model(), Lessons(task, task.build_model()), None, steps=8)


def tables(study: Study) -> Iterator[str]:
    """The lines of both tables, as Markdown."""
    yield f"{study.machine}, {study.threads} threads, {study.gpu.trained_on}; commit {study.commit}"
    yield ""
    yield "| plan | on the processor | on the GPU | difference in points | times as fast |"
    yield "|---|--:|--:|--:|--:|"
    for name in ALL:
        here, there = _of(study.processor, name), _of(study.gpu, name)
        difference = 100 * (mean(c.accuracy for c in there) - mean(c.accuracy for c in here))
        faster = sum(c.train_s for c in here) / sum(c.train_s for c in there)
        yield f"| {name} | {_accuracies(here)} | {_accuracies(there)} | {difference:+.2f} | {faster:.1f} |"
    yield ""
    yield "| batch | epoch on the processor | on the GPU | times as fast |"
    yield "|--:|--:|--:|--:|"
    for size, seconds in study.processor.epoch_s.items():
        on_gpu = study.gpu.epoch_s[size]
        yield f"| {size} | {seconds:.2f} s | {on_gpu:.2f} s | {seconds / on_gpu:.1f} |"


def _of(side: Side, name: str) -> list[Cell]:
    return [cell for cell in side.cells if cell.setting == name]


def _accuracies(cells: Sequence[Cell]) -> str:
    """Mean and deviation over the seeds."""
    values = [100 * cell.accuracy for cell in cells]
    return f"{mean(values):.2f} ± {stdev(values):.2f} %" if len(values) > 1 else f"{values[0]:.2f} %"


if __name__ == "__main__":
    main()
