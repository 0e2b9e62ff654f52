"""Fill the table: every architecture × every compression, each architecture in a process of its own.

python experiments/coverage/run.py --records experiments/coverage/records.jsonl [--only resnet18 …]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import traceback
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from experiments.coverage.architectures import architectures
from experiments.coverage.cells import CELLS, Outcome, try_cell

LIMIT_S = 420
"""Wall time for all cells of one architecture."""


def main() -> None:
    """Run what is not in the records yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, default=Path(__file__).parent / "records.jsonl")
    parser.add_argument("--only", nargs="*", help="names of architectures; all by default")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _inside(options.inside, options.records)
        return
    known = architectures()
    for name in options.only or known:
        missing = _missing(name, options.records)
        if missing:
            print(f"{name} ({known[name].family})", flush=True)
            _in_a_process(name, options.records)


def _missing(name: str, records: Path) -> list[str]:
    done = set()
    if records.is_file():
        lines = [json.loads(line) for line in records.read_text().splitlines()]
        done = {line["cell"] for line in lines if line["architecture"] == name}
    return [cell for cell in CELLS if cell not in done]


def _in_a_process(name: str, records: Path) -> None:
    """Cells that the process does not get done are recorded as wrong: nothing may crash or run without end."""
    command = [sys.executable, __file__, "--inside", name, "--records", str(records)]
    try:
        ended = f"the process ended with {subprocess.run(command, timeout=LIMIT_S, check=False).returncode}"
    except subprocess.TimeoutExpired:
        ended = f"not done after {LIMIT_S} s"
    one = architectures()[name]
    for cell in _missing(name, records):
        _append(records, Outcome(one.name, one.library, one.family, cell, "wrong", ended))


def _inside(name: str, records: Path) -> None:
    one = architectures()[name]
    for cell in _missing(name, records):
        try:
            outcome = try_cell(one, cell)
        except Exception as error:  # a defect of the project: it belongs into the table, with its trace on the terminal
            traceback.print_exc()
            outcome = Outcome(one.name, one.library, one.family, cell, "wrong", f"{type(error).__name__}: {error}")
        print(f"  {cell}: {outcome.status} {outcome.reason[:150]} ({outcome.seconds:.1f} s)", flush=True)
        _append(records, outcome)


def _append(records: Path, outcome: Outcome) -> None:
    with records.open("a") as file:
        file.write(json.dumps(asdict(replace(outcome, versions=_versions()))) + "\n")


def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "onnxruntime", "timm", "transformers", "autocompress"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


if __name__ == "__main__":
    main()
