"""Run strategies on a network, trial by trial, and keep what each trial gave."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.probe import Probe
from experiments.provenance import commit, machine, versions
from experiments.search_efficiency.contenders import CONTENDERS
from experiments.search_efficiency.problems import NETWORKS, Arena

HERE = Path(__file__).parent


def main() -> None:
    """Run the strategies and seeds that are asked for; those with a record file already are left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--strategy", choices=CONTENDERS, nargs="+", default=list(CONTENDERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--data", help="folder with the data sets")
    parser.add_argument("--kept", type=Path, required=True, help="folder where evaluations of plans are kept")
    parser.add_argument("--records", type=Path, default=HERE / "records")
    chosen = parser.parse_args()
    if chosen.data:
        os.environ["AUTOCOMPRESS_DATA"] = chosen.data
    state = {"commit": commit(), "versions": versions()}
    arena = Arena(chosen.network, chosen.kept)
    (chosen.records / chosen.network).mkdir(parents=True, exist_ok=True)
    names = [name for name in chosen.strategy if arena.trains or not CONTENDERS[name].of_training]
    head = state | {"machine": machine(arena.profile), "baseline": dict(arena.baseline.values)}
    for seed in chosen.seeds:
        for name in names:
            path = chosen.records / chosen.network / f"{name}-{seed}.jsonl"
            if not path.is_file():
                lines = compete(arena, name, seed, chosen.trials)
                path.write_text("".join(json.dumps(line) + "\n" for line in (head, *lines)))


def compete(arena: Arena, name: str, seed: int, trials: int) -> list[dict[str, object]]:
    """One strategy with one seed: a line a trial."""
    contender = CONTENDERS[name]
    lines: list[dict[str, object]] = []
    probes, spent_s, asking_s = 0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        problem = arena.problem(seed, Path(folder) / "study.journal", policies=contender.policies, trials=trials)
        strategy = contender.make(problem)
        strategy.tell(arena.baseline)
        records = [arena.baseline]
        while len(lines) < trials:
            started, before_s = time.perf_counter(), arena.spent_s
            asked = strategy.ask()
            asking_s += time.perf_counter() - started
            if asked is None:
                break
            if isinstance(asked, Probe):
                strategy.note(arena.look(asked))
                probes += 1
                spent_s += arena.spent_s - before_s
                continue
            record = arena.evaluate(asked, arena.screen(records) if contender.screens else None)
            records.append(record)
            spent_s += arena.spent_s - before_s
            started = time.perf_counter()
            strategy.tell(record)
            asking_s += time.perf_counter() - started
            arena.forget_weights(strategy.parents())
            values = {key: round(value, 6) for key, value in record.values.items()}
            line: dict[str, object] = {
                "trial": record.number,
                "source": asked.proposal.source,
                "plan": asked.plan.digest,
                "status": record.status,
                **values,
                "probes": probes,
                "spent_s": round(spent_s, 2),
                "asking_s": round(asking_s, 2),
            }
            lines.append(line)
            if record.number % 10 == 0:
                print(f"{arena.name} {name} {seed}: {record.number} trials, asking {asking_s:.1f} s", file=sys.stderr)
    return lines


if __name__ == "__main__":
    main()
