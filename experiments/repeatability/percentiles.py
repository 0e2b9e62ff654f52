"""Which of a model's times tells best how fast it is: ratios by several percentiles, each in fresh processes.

python experiments/repeatability/percentiles.py --load NAME [--busy 1]   # two minutes; adds to percentiles.jsonl
python experiments/repeatability/percentiles.py --show                   # tables of the records
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.devices import resolve_profile
from autocompress.measurement import Blocks
from autocompress.pipeline import Workbench
from autocompress.serialization import from_json, to_json
from experiments.latency.measure import artifacts, random_task
from experiments.networks import CifarResNet
from experiments.provenance import commit, machine
from experiments.repeatability.run import VARIANTS, spin

RECORDS = Path(__file__).parent / "percentiles.jsonl"
PERCENTILES = (0, 5, 10, 25, 50)


@dataclass(frozen=True)
class Reading:
    """The times of one variant and of its reference in one process.

    Args:
        load: What else the machine did.
        variant, repetition: Which.
        cpu_ms, reference_cpu_ms: Percentiles of the times, those of `PERCENTILES`.
        commit, machine: Where it was taken.
    """

    load: str
    variant: str
    repetition: int
    cpu_ms: tuple[float, ...]
    reference_cpu_ms: tuple[float, ...]
    commit: str
    machine: str


def main() -> None:
    """Measure and record, or show what is recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", default="idle", help="what the machine does besides, in words")
    parser.add_argument("--busy", type=int, default=0, help="processes that spin beside it")
    parser.add_argument("--repetitions", type=int, default=12)
    parser.add_argument("--show", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.show:
        spinning = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(options.busy)]
        for process in spinning:
            process.start()
        with tempfile.TemporaryDirectory() as folder, RECORDS.open("a", encoding="utf-8") as file:
            for reading in measure(options.load, options.repetitions, Path(folder)):
                file.write(to_json(reading) + "\n")
        for process in spinning:
            process.kill()
    show([from_json(Reading, line) for line in RECORDS.read_text(encoding="utf-8").splitlines()])


def measure(load: str, repetitions: int, folder: Path) -> Iterator[Reading]:
    """Every variant in turn, each beside the reference in a process of its own."""
    profile = resolve_profile("local")
    bench = Workbench(random_task("resnet20", CifarResNet, (3, 32, 32)), (profile,), folder)
    made = {name: artifact for name, artifact in artifacts(bench, VARIANTS) if name in VARIANTS}
    for repetition in range(repetitions):
        for variant, artifact in made.items():
            (found,) = bench.devices[0].measure([artifact], bench.reference, examples=bench.task.examples)
            own, reference = (percentiles(times.cpu_ms) for times in (found.samples, found.reference_samples) if times)
            yield Reading(load, variant, repetition, own, reference, commit(), machine(profile))


def percentiles(times: Blocks) -> tuple[float, ...]:
    """Those that are compared."""
    return tuple(round(float(value), 5) for value in np.percentile(np.concatenate(times), PERCENTILES))


def show(readings: Sequence[Reading]) -> None:
    """Print tables as markdown: how much the ratio varies, and what it is, by percentile and load."""
    for load in dict.fromkeys(reading.load for reading in readings):
        print(f"\n{load}\n\n| the time that counts | {' | '.join(VARIANTS)} |\n| --- |{' --: |' * len(VARIANTS)}")
        by_variant = {name: [one for one in readings if (one.load, one.variant) == (load, name)] for name in VARIANTS}
        for column, percentile in enumerate(PERCENTILES):
            cells = (_cell(some, column) for some in by_variant.values())
            print(f"| {_title(percentile)} | {' | '.join(cells)} |")
        tenth = sorted(one.reference_cpu_ms[PERCENTILES.index(10)] for some in by_variant.values() for one in some)
        longest = ", ".join(f"{value:.3f}" for value in tenth[-4:])
        print(f"\n10th percentile of the reference: {tenth[0]:.3f} ms at least; the longest: {longest} ms")


def _cell(readings: Sequence[Reading], column: int) -> str:
    ratios = np.array([one.cpu_ms[column] / one.reference_cpu_ms[column] for one in readings])
    return f"{np.median(ratios):.3f} ± {100 * ratios.std(ddof=1) / ratios.mean():.1f} %"


def _title(percentile: int) -> str:
    names: Mapping[int, str] = {0: "shortest", 50: "median"}
    return names.get(percentile, f"{percentile}th percentile")


if __name__ == "__main__":
    main()
