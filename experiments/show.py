"""Draw the fronts of runs as a picture and as Markdown tables.

python experiments/show.py RUN... [--png FILE] [--svg FILE] [--markdown]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

DIRECTIONS = ((9, 5), (9, -12), (-14, 6), (-14, -13), (-3, 12), (-3, -20), (16, 14), (16, -22), (-26, 14), (-26, -22))
"""Where a label may stand beside its point, in typographic points, best first."""


@dataclass(frozen=True)
class Model:
    """One row of the table and one marker of the picture."""

    label: str
    name: str
    validation: float
    test: float | None
    latency_ms: float
    latency_ratio: float
    size_bytes: int
    size_ratio: float


@dataclass(frozen=True)
class Front:
    """The front of one run; `models` holds the baseline first."""

    task: str
    metric: str
    models: tuple[Model, ...]

    @property
    def has_test(self) -> bool:
        """True once all models are scored on test data."""
        return all(model.test is not None for model in self.models)


def read_front(run: Path) -> Front:
    """The front of a run, as `autocompress show RUN --format json` prints it."""
    command = [str(Path(sys.executable).with_name("autocompress")), "show", str(run), "--format", "json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)  # the command has said why
    return parse_front(json.loads(done.stdout))


def parse_front(facts: Mapping[str, Any]) -> Front:
    """The front in the JSON of a run."""
    baseline = facts["baseline"]
    if baseline is None:
        raise SystemExit(f"the run of task {facts['task']!r} has no baseline yet; wait until it is measured")
    (metric,) = baseline["validation"]
    others = sorted((point for point in facts["front"] if point["name"] != baseline["name"]), key=_latency)
    models = [_model("baseline", baseline, metric)]
    models += [_model(str(number), point, metric) for number, point in enumerate(others, start=1)]
    return Front(facts["task"], metric, tuple(models))


def _latency(point: Mapping[str, Any]) -> float:
    return float(point["latency_ms"])


def _model(label: str, point: Mapping[str, Any], metric: str) -> Model:
    kept = ("name", "latency_ms", "latency_ratio", "size_bytes", "size_ratio")
    scores = {"validation": point["validation"][metric], "test": point["test"].get(metric)}
    return Model(label=label, **scores, **{key: point[key] for key in kept})


def markdown(front: Front) -> str:
    """The front as a Markdown table; numbers are those of the picture."""
    lines = [
        f"| # | model | {front.metric}: validation | test | latency ms | ratio | size KiB | ratio |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for model in front.models:
        cells = (
            model.label if model.label != "baseline" else "",
            model.name,
            score(front.metric, model.validation),
            score(front.metric, model.test),
            f"{model.latency_ms:.3f}",
            f"{model.latency_ratio:.2f}",
            f"{model.size_bytes / 1024:.0f}",
            f"{model.size_ratio:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def score(metric: str, value: float | None) -> str:
    """A score for people: accuracies in percent."""
    if value is None:
        return "–"
    return f"{value:.2%}" if metric == "accuracy" else f"{value:.4g}"


def draw(fronts: Sequence[Front]) -> Figure:
    """One panel a run: score against latency, the area of a marker is the size of the file."""
    mpl.use("Agg")
    figure, panels = plt.subplots(1, len(fronts), figsize=(7.2 * len(fronts), 4.8), squeeze=False, layout="constrained")
    for axes, front in zip(panels[0], fronts, strict=True):
        _draw_panel(axes, front)
    return figure


def _draw_panel(axes: Axes, front: Front) -> None:
    scores = [_height(front, model) for model in front.models]
    latencies = [model.latency_ms for model in front.models]
    areas = [24 + 420 * model.size_ratio for model in front.models]
    axes.scatter(latencies[1:], scores[1:], areas[1:], color="#2f6db3", alpha=0.65, zorder=2, label="front")
    axes.scatter(latencies[:1], scores[:1], areas[:1], color="#d1495b", alpha=0.75, zorder=2, label="baseline")
    axes.axhline(scores[0], color="#d1495b", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    # 1, 2 and 5 of every decade get a number
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    split = "test" if front.has_test else "validation"
    axes.set_xlabel("latency of one inference, ms (logarithmic)")
    axes.set_ylabel(f"{front.metric} on {split} data" + (", %" if front.metric == "accuracy" else ""))
    axes.set_title(f"{front.task}: front found (marker area: size of the file)", fontsize=10)
    axes.grid(alpha=0.25, which="both")
    axes.margins(0.1)
    axes.legend(loc="lower right", markerscale=0.6, fontsize=9)
    points = zip(latencies, scores, areas, strict=True)
    _label(axes, [(model.label, *point) for model, point in zip(front.models, points, strict=True)])


def _height(front: Front, model: Model) -> float:
    value = model.test if front.has_test and model.test is not None else model.validation
    return value * 100 if front.metric == "accuracy" else value


def _label(axes: Axes, points: Sequence[tuple[str, float, float, float]]) -> None:
    """Write the label of every (label, x, y, area) where it covers nothing, as far as that can be had."""
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    pixels = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    taken = [_box(axes.transData.transform((x, y)), pixels * area**0.5 / 2) for _, x, y, area in points]
    for text, x, y, area in points:
        for right, up in DIRECTIONS:
            away = area**0.5 / 40
            offset = (right * (0.7 + away), up * (0.7 + away))
            label = axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", fontsize=8)
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
            if (right, up) != DIRECTIONS[-1]:
                label.remove()
        taken.append(box)


def _box(center: npt.NDArray[np.float64], half: float) -> Bbox:
    return Bbox.from_extents(center[0] - half, center[1] - half, center[0] + half, center[1] + half)


def main() -> None:
    """Read the arguments, the runs, and write what was asked for."""
    parser = argparse.ArgumentParser(description="Draw the fronts of runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory of a search")
    parser.add_argument("--png", type=Path, help="picture to write")
    parser.add_argument("--svg", type=Path, help="the same as SVG")
    parser.add_argument("--markdown", action="store_true", help="print a table for each run")
    given = parser.parse_args()
    fronts = [read_front(run) for run in given.runs]
    for picture in filter(None, (given.png, given.svg)):
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(fronts).savefig(picture, dpi=130)
    if given.markdown:
        print("\n\n".join(f"**{front.task}**\n\n{markdown(front)}" for front in fronts))


if __name__ == "__main__":
    main()
