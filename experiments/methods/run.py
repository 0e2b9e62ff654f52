"""Fill the table: every setting on its task with every seed, a record file a cell; cells that are done are left alone.

python experiments/methods/run.py --data DIR [--task cifar10] [--setting int8 …] [--seed 0] [--epochs N --limit N]
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.data import Split, head
from autocompress.devices import resolve_profile
from autocompress.graph.inspect import layer_view
from autocompress.pipeline import Workbench, build_architecture, run_baseline, run_trial, score_test
from autocompress.plan import Plan
from autocompress.record import Record, Trial
from autocompress.serialization import to_json, write_atomically
from autocompress.task import Task
from experiments.methods.settings import SETTINGS, Setting, plan_of
from experiments.provenance import commit, machine, versions
from experiments.training import cache_folder

RECORDS = Path(__file__).parent / "records"


@dataclass(frozen=True)
class Outcome:
    """What became of a model file.

    Args:
        accuracy: On test data, through ONNX Runtime; None if the trial failed.
        record: All that the pipeline knows of the trial.
    """

    accuracy: float | None
    record: Record


@dataclass(frozen=True)
class Cell:
    """One entry of the table.

    Args:
        setting, task, seed: Which.
        baseline: The original.
        right_after: The plan without training; None where the plan has no recovery or starts from fresh weights.
        recovered: The whole plan.
        shortened: How many epochs and samples it was cut to; empty for results that count.
        profile: The machine as the project sees it.
        machine: Processor and host.
        versions: Of the packages.
        commit: Of the repository, with `+changes` where files differ from it.
    """

    setting: str
    task: str
    seed: int
    baseline: Outcome
    right_after: Outcome | None
    recovered: Outcome
    shortened: str
    profile: str
    machine: str
    versions: dict[str, str]
    commit: str


def main() -> None:
    """Run the cells that are asked for and have no record yet."""
    options = _options()
    if options.data:
        os.environ["AUTOCOMPRESS_DATA"] = str(options.data.expanduser().resolve())
    for name, seed in _cells(options):
        path = options.records / f"{name}-{seed}.json"
        if path.is_file():
            print(f"{path.name} is there")
            continue
        cell = run_cell(name, seed, options)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, to_json(cell, indent=1).encode())
        recovered = cell.recovered
        shown = recovered.record.reason if recovered.accuracy is None else f"{recovered.accuracy:.2%}"
        print(f"{path.name}: {shown}", flush=True)


def run_cell(name: str, seed: int, options: argparse.Namespace) -> Cell:
    """Carry out a setting without and with its training; a trial that is cut short goes on where it stopped."""
    setting = SETTINGS[name]
    task = _shortened(importlib.import_module(f"experiments.{setting.task}.task").task, options.limit)
    directory = cache_folder() / "methods" / f"{name}-{seed}-{options.epochs}-{options.limit}"
    bench = Workbench(task, (resolve_profile(options.hardware),), directory)
    baseline = run_baseline(Trial(0, Plan()), bench)
    plan = _plan(setting, bench, options.epochs)
    right_after = None
    if plan.recovery.epochs and plan.steps:
        right_after = _outcome(run_trial(Trial(1, plan.without_recovery(), seed), bench), bench)
    recovered = _outcome(run_trial(Trial(2, plan, seed), bench), bench)
    return Cell(
        name,
        setting.task,
        seed,
        _outcome(baseline, bench),
        right_after,
        recovered,
        f"{options.epochs or 'all'} epochs, {options.limit or 'all'} samples" if _is_short(options) else "",
        bench.target.name,
        machine(bench.target),
        versions(),
        commit(),
    )


def _plan(setting: Setting, bench: Workbench, epochs: int | None) -> Plan:
    model = build_architecture(bench, setting.architecture)
    plan = plan_of(setting, layer_view(model, bench.task.examples, setting.architecture), bench.target)
    if epochs is None:
        return plan
    return replace(plan, recovery=replace(plan.recovery, epochs=min(epochs, plan.recovery.epochs)))


def _outcome(record: Record, bench: Workbench) -> Outcome:
    if record.status != "complete":
        return Outcome(None, record)
    return Outcome(score_test(record, bench).values[bench.task.the_metric.name], record)


def _shortened(task: Task, limit: int | None) -> Task:
    """The task with fewer samples in every split but calibration, to try the way; the whole one without a limit."""
    if limit is None:
        return task

    def cut(split: Split) -> Split:
        return head(split, limit)

    return replace(
        task, train=cut(task.split("train")), validation=cut(task.split("validation")), test=cut(task.split("test"))
    )


def _cells(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    for name, setting in SETTINGS.items():
        if options.task not in (None, setting.task) or (options.setting and name not in options.setting):
            continue
        for seed in range(setting.seeds) if options.seed is None else (options.seed,):
            yield name, seed


def _is_short(options: argparse.Namespace) -> bool:
    return options.epochs is not None or options.limit is not None


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds cifar10/ and banking77/ (AUTOCOMPRESS_DATA)")
    parser.add_argument("--task", choices=sorted({setting.task for setting in SETTINGS.values()}))
    parser.add_argument("--setting", nargs="*", choices=list(SETTINGS), help="all by default")
    parser.add_argument("--seed", type=int, help="by default 0, or as many as the setting wants")
    parser.add_argument("--hardware", default="local", help="a hardware profile")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where the record files go")
    parser.add_argument("--epochs", type=int, help="at most so many, to try the way")
    parser.add_argument("--limit", type=int, help="at most so many samples of each split, to try the way")
    options = parser.parse_args(arguments)
    if _is_short(options) and options.records == RECORDS:
        parser.error("--epochs and --limit give no results that count: name another folder by --records")
    return options


if __name__ == "__main__":
    main()
