"""The hypervolume that strategies had reached at each moment of a search, as a Markdown table and a picture.

python experiments/wall_clock/show.py [--task NAME...] [--png FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.data import Array
from autocompress.front import growing_hypervolume
from autocompress.objective import Objective
from autocompress.serialization import from_json
from experiments.wall_clock.run import ALONE, Model, Search

HERE = Path(__file__).parent
REFERENCE = 2.0
"""Loss at which a model is worth nothing: in points for shares, in percent of the baseline's for other metrics."""

UNIT = (1.0, 1.0, 1.0)
"""The corner up to which volumes count: that loss, the baseline's latency and its size."""

OURS, OTHERS = "guided", ("tpe", ALONE)
COLORS = {OURS: "tab:blue", "tpe": "tab:orange", ALONE: "tab:gray"}

Key = tuple[str, float, int]
"""Task, budget in seconds and seed."""


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", help="by default all that have records")
    parser.add_argument("--records", type=Path, default=HERE / "records")
    parser.add_argument("--png", type=Path)
    chosen = parser.parse_args()
    found = [from_json(Search, path.read_bytes()) for path in sorted(chosen.records.glob("*/*.json"))]
    found = [search for search in found if chosen.task is None or search.task in chosen.task]
    if not found:
        sys.exit(f"{chosen.records}: no records of {' or '.join(chosen.task or ['any task'])}; run.py makes some")
    runs: dict[Key, dict[str, Search]] = {}
    for search in found:
        runs.setdefault((search.task, search.budget_s, search.seed), {})[search.strategy] = search
    print(
        f"| task | budget | seed | {OURS} | other | ratio | {OURS} passes its end at | on test: {OURS} | other |\n"
        "|---|--:|--:|--:|---|--:|--:|--:|--:|"
    )
    for key, by_strategy in sorted(runs.items()):
        for row in rows(key, by_strategy):
            print(row)
    if chosen.png:
        draw(runs, chosen.png)


def rows(key: Key, runs: Mapping[str, Search]) -> Iterator[str]:
    """A row for each strategy that ours is compared with; those of unlike machines are left out."""
    if OURS not in runs:
        return
    ours, (task, budget_s, seed) = runs[OURS], key
    moments, curve = over_time(ours)
    for other in (runs[name] for name in OTHERS if name in runs):
        if (ours.cpu, ours.workers) != (other.cpu, other.workers):
            machines = f"{ours.cpu} × {ours.workers} and {other.cpu} × {other.workers}"
            print(f"{key}: {other.strategy} is left out: {machines} can't be compared", file=sys.stderr)
            continue
        end = over_time(other)[1][-1]
        passed = moments[curve > end]
        when = f"{passed[0] / budget_s:.2f} of the time" if len(passed) else "never"
        ratio = f"{curve[-1] / end:.2f}" if end else "–"
        yield (
            f"| {task} | {budget_s / 60:g} min | {seed} | {curve[-1]:.3f} | {other.strategy} {end:.3f} | {ratio} "
            f"| {when} | {on_test(ours):.3f} | {on_test(other):.3f} |"
        )


def over_time(search: Search) -> tuple[Array, Array]:
    """When trials ended, in seconds, and the hypervolume on validation data from then on; both (trials + 1,)."""
    done = sorted((trial for trial in search.trials if trial.score is not None), key=lambda trial: trial.ended_s)
    points = []
    for trial in done:
        assert trial.score is not None, "sorted out above"
        assert trial.latency_ratio is not None, "complete trials have all"
        assert trial.size_ratio is not None, "complete trials have all"
        lost = lost_share(search, trial.score, search.baseline.validation)
        points.append((lost, trial.latency_ratio, trial.size_ratio))
    return np.array([0.0, *(trial.ended_s for trial in done)]), np.array([0.0, *growing_hypervolume(points, UNIT)])


def on_test(search: Search) -> float:
    """Hypervolume of the final front on test data."""

    def place(model: Model) -> tuple[float, float, float]:
        assert model.test is not None, "confirmed"
        assert search.baseline.test is not None, "confirmed"
        return lost_share(search, model.test, search.baseline.test), model.latency_ratio, model.size_ratio

    found = growing_hypervolume((place(model) for model in search.front if model.test is not None), UNIT)
    return found[-1] if found else 0.0


def lost_share(search: Search, score: float, baseline: float) -> float:
    """Loss as a share of the reference; a gain of the metric counts no more than the baseline's."""
    metric = Objective(search.metric, "maximize" if search.direction == "maximize" else "minimize")
    return max(0.0, metric.lost(score, baseline, is_share=search.is_percentage) / REFERENCE)


def draw(runs: Mapping[Key, Mapping[str, Search]], path: Path) -> None:
    """Curves over time, a panel a task; each seed a line."""
    mpl.use("Agg")
    tasks = sorted({task for task, _, _ in runs})
    figure, panels = plt.subplots(1, len(tasks), figsize=(4.6 * len(tasks), 4.2), layout="constrained", squeeze=False)
    for panel, task in zip(panels[0], tasks, strict=True):
        named: set[str] = set()
        searches = [search for key, found in sorted(runs.items()) if key[0] == task for search in found.values()]
        for search in sorted(searches, key=lambda search: search.strategy):
            moments, curve = over_time(search)
            label = search.strategy if search.strategy not in named else None
            named.add(search.strategy)
            times = np.append(moments, search.budget_s) / 60
            panel.step(times, np.append(curve, curve[-1]), where="post", label=label, color=COLORS.get(search.strategy))
        panel.set(title=task, xlabel="minutes", ylabel=f"hypervolume within {REFERENCE:g} points")
        panel.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
