"""Print the table of the records as markdown.

python experiments/methods/show.py [--records DIR]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.serialization import from_json
from experiments.methods.run import RECORDS, Cell, Outcome
from experiments.methods.settings import SETTINGS, Setting

HEADER = (
    "setting",
    "task",
    "seeds",
    "baseline, %",
    "right after, %",
    "recovered, %",
    "drop, points",
    "bytes",
    "fewer bytes",
    "latency ratio",
    "MACs",
    "aim",
)


def main() -> None:
    """One line a setting, in the order of the settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=RECORDS)
    cells = [from_json(Cell, path.read_text()) for path in sorted(parser.parse_args().records.glob("*.json"))]
    rows = [HEADER, ("---",) * len(HEADER)]
    for name, setting in SETTINGS.items():
        if found := [cell for cell in cells if cell.setting == name]:
            rows.append(row(name, setting, found))
    print("\n".join("| " + " | ".join(line) + " |" for line in rows))


def row(name: str, setting: Setting, cells: list[Cell]) -> tuple[str, ...]:
    """One line of the table: means over the seeds, or why a cell failed."""
    failed = [cell.recovered.record.reason for cell in cells if cell.recovered.accuracy is None]
    if failed:
        return (name, setting.task, str(len(cells)), *[""] * 8, failed[0].replace("|", "/")[:120])
    before, after = mean_accuracy([cell.baseline for cell in cells]), mean_accuracy([cell.recovered for cell in cells])
    without = [cell.right_after for cell in cells if cell.right_after is not None]
    size = mean(cell.recovered.record.values["size_bytes"] for cell in cells)
    factor = mean(cell.baseline.record.values["size_bytes"] for cell in cells) / size
    latency = mean(cell.recovered.record.values["latency_ratio"] for cell in cells)
    macs = mean(cell.recovered.record.details["macs"] / cell.baseline.record.details["macs"] for cell in cells)
    drop = round(100 * (before - after), 6)
    return (
        name + (" (cut short)" if any(cell.shortened for cell in cells) else ""),
        setting.task,
        str(len(cells)),
        f"{before:.2%}".rstrip("%"),
        f"{mean_accuracy(without):.2%}".rstrip("%") if without else "",
        f"{after:.2%}".rstrip("%"),
        f"{drop:+.2f}",
        f"{size:,.0f}",
        f"{factor:.1f}×",
        f"{latency:.2f}",
        f"{macs:.2f}",
        aims(setting, drop, factor, latency),
    )


def mean_accuracy(outcomes: list[Outcome]) -> float:
    """Over outcomes that were scored; nan if one was not."""
    return mean(float("nan") if one.accuracy is None else one.accuracy for one in outcomes)


def aims(setting: Setting, drop: float, factor: float, latency: float) -> str:
    """Each aim of a setting with whether it was reached."""
    held = []
    if setting.most_drop is not None:
        held.append((f"drop ≤ {setting.most_drop:g}", drop <= setting.most_drop))
    if setting.least_size_factor is not None:
        held.append((f"≥ {setting.least_size_factor:g}× fewer bytes", factor >= setting.least_size_factor))
    if setting.most_latency_ratio is not None:
        held.append((f"latency ≤ {setting.most_latency_ratio:g}", latency <= setting.most_latency_ratio))
    return ", ".join(f"{text}: {'yes' if reached else 'NO'}" for text, reached in held)


if __name__ == "__main__":
    main()
