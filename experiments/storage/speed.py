"""What a database costs a search: time of a proposal of TPE with and without it, and of writing studies anew.

python experiments/storage/speed.py [--records 300] [--layers 8] [--proposals 10]    # writes speed.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

import numpy as np

from autocompress.devices.detection import detect_profile
from autocompress.landscapes import landscape
from autocompress.objective import make_objectives
from autocompress.plan import ORIGINAL, Plan, Scalar
from autocompress.planner import planner, policy_plans, resolve_epochs
from autocompress.probe import Probe, Sensitivity
from autocompress.record import Proposal, Record, Trial
from autocompress.run_directory import RunDirectory
from autocompress.serialization import dumps, write_atomically
from autocompress.space import load_space, neutral
from autocompress.storage import Database, StudyCopy, write_study
from autocompress.strategies import STRATEGIES, Problem, SearchStrategy
from experiments.provenance import commit, machine, versions
from experiments.search_efficiency.asking import PROFILE, _original_alone, made_up, network, random_trial
from experiments.storage.postgres import server


class World:
    """A made-up search.

    Args:
        layers: Of the network.
        records: Trials that have ended before.
    """

    def __init__(self, layers: int, records: int) -> None:
        space, view = resolve_epochs(_original_alone(load_space("joint")), 9), network(layers)
        self.records = records
        self._plan = planner(space, {ORIGINAL: view}, PROFILE)
        self._policies = policy_plans(space, self._plan)
        self._landscape = landscape(space, self._plan, view, PROFILE)
        self._rng = np.random.default_rng(0)
        self.knobs = len(self._landscape.sites)
        baseline = Trial(0, Plan(), proposal=Proposal("baseline"))
        past = (random_trial(number, self._landscape, self._plan, self._rng) for number in range(1, records))
        self._past = [self._result(trial) for trial in (baseline, *map(self._with_all_answers, past))]

    def begun(self, name: str, folder: Path) -> SearchStrategy:
        """A strategy that has been told of all records; the same proposals follow each time."""
        self._rng = np.random.default_rng(1)
        problem = Problem(
            plan=self._plan,
            policies=self._policies,
            objectives=make_objectives((), "accuracy", "maximize"),
            constraints=(),
            seed=0,
            journal=folder / "study.journal",
            landscapes={ORIGINAL: self._landscape},
        )
        strategy = STRATEGIES[name](problem)
        for record in self._past:
            strategy.tell(record)
        return strategy

    def asked_ms(self, strategy: SearchStrategy, count: int) -> list[tuple[float, float]]:
        """Milliseconds of proposals on the clock and of its own thread, a moment apart, as trials of a search are."""
        times: list[tuple[float, float]] = []
        while len(times) < count:
            began, began_cpu = time.perf_counter(), time.thread_time()
            asked = strategy.ask()
            took = 1000 * (time.perf_counter() - began), 1000 * (time.thread_time() - began_cpu)
            if isinstance(asked, Probe):
                strategy.note(Sensitivity(asked, divergence=0.05, values={"latency_ratio": 0.98, "size_bytes": 9.8e5}))
                continue
            assert asked is not None, "the space is large"
            times.append(took)
            strategy.tell(self._result(asked))
            time.sleep(0.2)
        return times

    def _with_all_answers(self, trial: Trial) -> Trial:
        """The trial with an answer to every knob, as those have that an Optuna sampler proposes."""
        given, params = trial.proposal.params, dict[str, Scalar]()
        self._plan(lambda name, knob: params.setdefault(name, given.get(name, neutral(knob))))
        return replace(trial, proposal=replace(trial.proposal, params=params))

    def _result(self, trial: Trial) -> Record:
        return made_up(trial, self._landscape, self._rng)


@contextmanager
def databases() -> Iterator[Mapping[str, Database]]:
    """A file of SQLite and a server of PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder, server() as postgres:
        yield {
            "SQLite": Database.of(f"sqlite:///{folder}/study.db"),
            "PostgreSQL": Database.of(postgres.url_with_password),
        }


def measured(world: World, proposals: int) -> Iterator[dict[str, Any]]:
    """Seconds in which studies are written, and milliseconds of proposals with and without a database."""
    with databases() as found, tempfile.TemporaryDirectory() as name:
        for strategy in ("guided", "tpe"):
            directory = RunDirectory.create(Path(name) / strategy)
            world.begun(strategy, directory.path)
            for title, database in found.items():
                with database.opened():
                    pass  # the tables
                write_study(directory, database, directory.path.name)
                yield {"strategy": strategy, "database": title, **written_anew(directory, database)}
        yield {"way": "no database", **asked(world, world.begun("tpe", Path(name)), proposals)}
        for title, database in found.items():
            begun = world.begun("tpe", directory.path)
            with StudyCopy(directory, database, directory.path.name):
                yield {"way": f"{title} follows, writing all anew", **asked(world, begun, proposals)}
            begun = world.begun("tpe", directory.path)
            with StudyCopy(directory, database, "followed"):
                until_written(database, "followed", world.records)
                yield {"way": f"{title} follows", **asked(world, begun, proposals)}


def written_anew(directory: RunDirectory, database: Database) -> dict[str, float]:
    """Seconds of writing a study in the place of the one before, on the clock and of the processor in this process."""
    began, began_cpu = time.perf_counter(), time.thread_time()
    write_study(directory, database, directory.path.name)
    return {"wall_s": round(time.perf_counter() - began, 1), "cpu_s": round(time.thread_time() - began_cpu, 1)}


def until_written(database: Database, name: str, count: int) -> None:
    """Wait until a study has so many trials."""
    with database.opened() as storage:
        while name not in [study.study_name for study in storage.get_all_studies()]:
            time.sleep(0.1)
        study = storage.get_study_id_from_name(name)
        while storage.get_n_trials(study) < count:
            time.sleep(1.0)


def asked(world: World, strategy: SearchStrategy, proposals: int) -> dict[str, float]:
    """The median of proposals on the clock, and of the processor's time of their thread."""
    wall, cpu = zip(*world.asked_ms(strategy, proposals), strict=True)
    return {"median_ms": round(statistics.median(wall), 1), "cpu_ms": round(statistics.median(cpu), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--layers", type=int, default=8, help="8 layers make about 30 knobs")
    parser.add_argument("--proposals", type=int, default=10)
    chosen = parser.parse_args()
    about = {"commit": commit(), "machine": machine(detect_profile()), "versions": versions()}
    world = World(chosen.layers, chosen.records)
    rows = []
    for row in measured(world, chosen.proposals):
        print(row, flush=True)
        rows.append(row)
    found = {**about, "records": chosen.records, "knobs": world.knobs, "rows": rows}
    write_atomically(Path(__file__).with_name("speed.json"), dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
