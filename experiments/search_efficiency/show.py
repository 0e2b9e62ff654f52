"""The hypervolume that each strategy reached, as Markdown tables and a picture.

python experiments/search_efficiency/show.py [--network NAME] [--png FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.data import Array
from autocompress.front import growing_hypervolume
from experiments.search_efficiency.contenders import CONTENDERS

HERE = Path(__file__).parent
REFERENCES = (0.02, 0.10, 0.60)
"""Losses of accuracy at which a model is worth nothing."""

UNIT = (1.0, 1.0, 1.0)
"""The corner up to which volumes count: such a loss, the baseline's latency and its size."""

MARKS = (30, 100, 300)


def main() -> None:
    """Print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--records", type=Path, default=HERE / "records")
    parser.add_argument("--png", type=Path)
    chosen = parser.parse_args()
    folder = chosen.records / chosen.network
    runs = {name: read(folder, name) for name in CONTENDERS}
    runs = {name: found for name, found in runs.items() if found}
    if not runs:
        sys.exit(f"{folder}: no records; run.py --network {chosen.network} makes some")
    for reference in REFERENCES:
        print(table(runs, reference))
    if chosen.png:
        draw(runs, chosen.png)


@dataclass(frozen=True)
class Cell:
    """A strategy with one seed.

    Args:
        baseline: Values of the original.
        trials: What each trial gave.
    """

    baseline: Mapping[str, float]
    trials: Sequence[Mapping[str, Any]]


def read(folder: Path, name: str) -> list[Cell]:
    """The cells of a strategy, one a seed."""
    cells = []
    for path in sorted(folder.glob(f"{name}-[0-9]*.jsonl")):
        head, *trials = map(json.loads, path.read_text().splitlines())
        cells.append(Cell(head["baseline"], trials))
    return cells


def volumes_of(cell: Cell, reference: float) -> Array:
    """Hypervolume after each trial: accuracy from the baseline down to the reference, latency and size up to its own.

    A gain of accuracy counts no more than the baseline's.
    """
    baseline = cell.baseline
    points = [
        (
            max(0.0, (baseline["accuracy"] - trial["accuracy"]) / reference),
            trial["latency_ratio"],
            trial["size_bytes"] / baseline["size_bytes"],
        )
        if trial["status"] == "complete"
        else None
        for trial in cell.trials
    ]
    return np.array(growing_hypervolume(points, UNIT))


def table(runs: Mapping[str, list[Cell]], reference: float) -> str:
    """Mean and standard deviation over seeds after some numbers of trials."""
    heads = " | ".join(f"{mark} trials" for mark in MARKS)
    lines = [
        f"\nHypervolume with a loss of {100 * reference:g} points as the reference:\n",
        f"| strategy | seeds | {heads} | looks beside {MARKS[0]} trials | seconds of evaluating both |",
        "|---|--:|" + "--:|" * (len(MARKS) + 2),
    ]
    for name, seeds in runs.items():
        curves = [volumes_of(cell, reference) for cell in seeds]
        cells = []
        for mark in MARKS:
            values = [curve[mark - 1] for curve in curves if len(curve) >= mark]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            fewer = f" ({len(values)} seeds)" if 0 < len(values) < len(seeds) else ""
            cells.append(f"{np.mean(values):.3f}{spread}{fewer}" if values else "–")
        first = [cell.trials[min(MARKS[0], len(cell.trials)) - 1] for cell in seeds]
        looks, spent = (np.mean([trial[what] for trial in first]) for what in ("probes", "spent_s"))
        lines.append(f"| {name} | {len(seeds)} | {' | '.join(cells)} | {looks:.0f} | {spent:.0f} |")
    return "\n".join(lines)


def draw(runs: Mapping[str, list[Cell]], path: Path) -> None:
    """Curves of the mean with the spread of the seeds."""
    mpl.use("Agg")
    figure, axes = plt.subplots(1, len(REFERENCES), figsize=(18, 5), layout="constrained")
    for axis, reference in zip(axes, REFERENCES, strict=True):
        for name, seeds in runs.items():
            curves = [volumes_of(cell, reference) for cell in seeds]
            length = min(map(len, curves))
            stacked = np.array([curve[:length] for curve in curves])
            steps = np.arange(1, length + 1)
            style = {"linewidth": 2 if name == "guided" else 1, "linestyle": "--" if "_without_" in name else "-"}
            (line,) = axis.plot(steps, stacked.mean(axis=0), label=name, **style)
            axis.fill_between(steps, stacked.min(axis=0), stacked.max(axis=0), color=line.get_color(), alpha=0.12)
        axis.set(xscale="log", xlabel="trials", title=f"hypervolume within {100 * reference:g} points")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
