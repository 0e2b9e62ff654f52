"""How well latencies repeat: six variants of ResNet-20, each measured in fresh processes again and again.

python experiments/repeatability/run.py [--hardware NAME] [--repetitions 20] [--records FILE]   # a quarter of an hour
python experiments/repeatability/run.py --show                                                  # tables of the records
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.artifact import Artifact
from autocompress.data import Array
from autocompress.devices import resolve_profile
from autocompress.pipeline import Workbench
from autocompress.serialization import from_json, to_json, write_atomically
from experiments.latency.measure import RESNET, artifacts, random_task
from experiments.methods.settings import Setting
from experiments.networks import CifarResNet
from experiments.provenance import commit, machine, versions

HERE = Path(__file__).parent
REFERENCE = "fp32"
VARIANTS: Mapping[str, Setting] = {
    "int8": RESNET["int8"],
    "width ¾": Setting("", architecture="width_0.75"),
    "width ½": RESNET["half width"],
    "half rank": RESNET["spatial half rank"],
    "half rank, int8": RESNET["spatial half rank, int8"],
}
LOADS = ("idle", "one core busy")

CLEAR = 0.08
"""Relative difference of two variants from which on their order has to be right."""


@dataclass(frozen=True)
class Reading:
    """One variant in one repetition.

    Args:
        load, variant, repetition: Which.
        ratio: Of latencies to fp32, as autocompress takes it.
        interval: Its 95 % interval.
        wall_ms, cpu_ms: Times of a process that runs the variant alone.
    """

    load: str
    variant: str
    repetition: int
    ratio: float
    interval: tuple[float, float]
    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]


@dataclass(frozen=True)
class Study:
    """All readings, and where they were taken."""

    commit: str
    machine: str
    versions: Mapping[str, str]
    readings: tuple[Reading, ...]


def main() -> None:
    """Measure and record, or show what is recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="local", help="a hardware profile of this machine")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--records", type=Path, default=HERE / "records.json")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.show:
        profile = resolve_profile(options.hardware)
        with tempfile.TemporaryDirectory() as folder:
            readings = tuple(measure_all(options.hardware, options.repetitions, Path(folder)))
        study = Study(commit(), machine(profile), versions(), readings)
        write_atomically(options.records, to_json(study))
    show(from_json(Study, options.records.read_text()))


# -- measuring -------------------------------------------------------------------------------------------------------


def measure_all(hardware: str, repetitions: int, folder: Path) -> Iterator[Reading]:
    """Every variant in turn, so that what changes with the hour falls on all alike."""
    bench = Workbench(random_task("resnet20", CifarResNet, (3, 32, 32)), (resolve_profile(hardware),), folder)
    made = dict(artifacts(bench, VARIANTS))
    made[REFERENCE] = _another(Path(made[REFERENCE].path), folder / "another.onnx")
    examples = folder / "examples.npz"
    np.savez(examples, *bench.task.examples)
    for load in LOADS:
        with _busy() if load != LOADS[0] else _nothing():
            for repetition, (variant, artifact) in itertools.product(range(repetitions), made.items()):
                (own,) = bench.devices[0].measure([artifact], bench.reference, examples=bench.task.examples)
                command = [sys.executable, str(HERE / "naive.py"), artifact.path, str(examples)]
                alone = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
                print(f"{load} {repetition:2} {variant:16} {own.latency_ratio:.3f}", file=sys.stderr)
                times = {name: tuple(round(time, 5) for time in alone[name]) for name in ("wall_ms", "cpu_ms")}
                yield Reading(load, variant, repetition, own.latency_ratio, own.latency_ratio_interval, **times)


def _another(path: Path, copy: Path) -> Artifact:
    """The same model in a file of other bytes, which is measured for itself."""
    model = onnx.load(path)
    model.doc_string = "another"
    onnx.save(model, copy)
    return Artifact.of(copy)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _busy() -> Iterator[None]:
    """Another process that takes all of a core."""
    process = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def spin() -> None:
    """Take all of a core."""
    while True:
        pass


# -- what the readings say -------------------------------------------------------------------------------------------

Values = Mapping[str, Array]
"""Variant to what a protocol says of it in each repetition."""


def by_ratio(readings: Sequence[Reading]) -> Values:
    """Ratios to the reference that is measured beside each variant."""
    return _by_variant(readings, lambda reading: reading.ratio)


def mean_of_twenty(readings: Sequence[Reading]) -> Values:
    """Mean of 20 wall times, relative to that of fp32 in its own process."""
    return _relative(_by_variant(readings, lambda reading: float(np.mean(reading.wall_ms[:20]))))


def wall_median(readings: Sequence[Reading]) -> Values:
    """Median of 200 wall times, relative to that of fp32 in its own process."""
    return _relative(_by_variant(readings, lambda reading: float(np.median(reading.wall_ms))))


def absolute(readings: Sequence[Reading]) -> Values:
    """Median of 200 thread-CPU times, in milliseconds."""
    return _by_variant(readings, lambda reading: float(np.median(reading.cpu_ms)))


PROTOCOLS: Mapping[str, Callable[[Sequence[Reading]], Values]] = {
    "autocompress": by_ratio,
    "mean of 20 wall times": mean_of_twenty,
    "wall median of 200": wall_median,
    "CPU median of 200, absolute": absolute,
}


def _by_variant(readings: Sequence[Reading], value: Callable[[Reading], float]) -> Values:
    names = dict.fromkeys(reading.variant for reading in readings)
    return {name: np.array([value(one) for one in readings if one.variant == name]) for name in names}


def _relative(values: Values) -> Values:
    return {name: value / values[REFERENCE] for name, value in values.items()}


def variations(values: Values) -> dict[str, float]:
    """Coefficient of variation of each variant; what is relative to itself varies not at all and is left out."""
    spreads = {name: float(value.std(ddof=1) / value.mean()) for name, value in values.items()}
    return {name: spread for name, spread in spreads.items() if spread > 0}


def rightly_ordered(values: Values) -> tuple[int, int]:
    """Repetitions in which all pairs that clearly differ are in the right order, and all repetitions."""
    pooled = {name: float(np.median(value)) for name, value in values.items()}
    pairs = [(a, b) for a, b in itertools.permutations(pooled, 2) if pooled[a] * (1 + CLEAR) < pooled[b]]
    right = np.all([values[a] < values[b] for a, b in pairs], axis=0)
    return int(right.sum()), len(right)


def covered(readings: Sequence[Reading]) -> float:
    """Share of the intervals that hold the median ratio of their variant over all repetitions."""
    pooled = {name: float(np.median(value)) for name, value in by_ratio(readings).items()}
    return float(np.mean([one.interval[0] <= pooled[one.variant] <= one.interval[1] for one in readings]))


def show(study: Study) -> None:
    """Print tables as markdown."""
    print(f"{study.machine}, commit {study.commit}\n")
    print("| protocol | load | largest variation | typical variation | right order |\n| --- | --- | --: | --: | --: |")
    for (name, protocol), load in itertools.product(PROTOCOLS.items(), LOADS):
        values = protocol([reading for reading in study.readings if reading.load == load])
        spreads = list(variations(values).values())
        right, of_all = rightly_ordered(values)
        print(
            f"| {name} | {load} | {100 * max(spreads):.1f} % | {100 * float(np.median(spreads)):.1f} % "
            f"| {right} of {of_all} |"
        )
    print("\n| variant | ratio, idle | variation | ratio, one core busy | variation |\n| --- | --: | --: | --: | --: |")
    found = [by_ratio([reading for reading in study.readings if reading.load == load]) for load in LOADS]
    for name in found[0]:
        cells = (f"{np.median(v[name]):.3f} | {100 * v[name].std(ddof=1) / v[name].mean():.1f} %" for v in found)
        print(f"| {name} | {' | '.join(cells)} |")
    print()
    for load in LOADS:
        share = covered([reading for reading in study.readings if reading.load == load])
        print(f"{load}: {100 * share:.0f} % of the intervals hold the pooled ratio.")


if __name__ == "__main__":
    main()
