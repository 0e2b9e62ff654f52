"""Print the table of the records as markdown.

python experiments/coverage/show.py [--records FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd


def main() -> None:
    """Summary, then one line an architecture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, default=Path(__file__).parent / "records.jsonl")
    table = pd.read_json(parser.parse_args().records, lines=True)
    counts = table.pivot_table(index="cell", columns="status", values="architecture", aggfunc="count", fill_value=0)
    counts["equal, %"] = (100 * counts["equal"] / counts.sum(axis=1)).round(1)
    print(_markdown(counts.reset_index()), end="\n\n")
    print(_markdown(_lines(table)))


def _markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.fillna("").values.tolist()]
    return "\n".join("| " + " | ".join(str(value) for value in row) + " |" for row in rows)


def _lines(table: pd.DataFrame) -> pd.DataFrame:
    def cell(row: pd.Series) -> str:
        if row.status != "equal":
            return f"{row.status}: {row.reason[:90]}"
        return f"equal ({row.layers} parts, {row.macs:.0%} of the MACs)"

    shown = table.assign(outcome=table.apply(cell, axis=1))
    wide = shown.pivot_table(
        index=["library", "family", "architecture"], columns="cell", values="outcome", aggfunc="first"
    )
    return wide.reset_index()


if __name__ == "__main__":
    main()
