"""A trial as Ray Tune carries it out: what it is given, and what it reports."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from autocompress import worker
from autocompress.errors import DeviceUnavailable, one_line
from autocompress.executors import prepare_process
from autocompress.loop import UNFORESEEN
from autocompress.record import Record
from autocompress.run_directory import RunDirectory
from autocompress.serialization import to_json
from autocompress.session import assignment
from autocompress.tune.handover import Handed, await_site

RECORD = "record"
"""The key of a result that holds the whole record as JSON; empty where the trial has none."""

TRACEBACK = "traceback"
"""The key of a result that holds where an error came from that nobody foresaw."""


def trainable(config: Mapping[str, Any]) -> None:
    """Carry out a trial of an `AutocompressSearcher`: the first argument of `tune.Tuner`.

    It reports once. A complete trial at full fidelity reports its values; others report why they have none, and NaN in
    the place of each, as Tune wants its metric of all: what a model half trained scores is not what it is worth. One
    that has its record already, which Tune had no time to note, is not repeated.
    """
    given = tune.get_context().get_trial_resources()
    if not given.required_resources.get("GPU"):  # Ray hides none from it
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    prepare_process(max(1, int(given.head_cpus)))
    tune.report(_outcome(Path(config["run"]), int(config["number"])))


def _outcome(path: Path, number: int) -> dict[str, Any]:
    """What a trial of a run directory reports, however it ended."""
    handed, directory = Handed.read(path, number), RunDirectory.open(path)
    trial, names = handed.trial, handed.screen.baseline
    known = next((one for one in directory.records() if one.trial == trial), None)
    if known is not None:
        return told(known, names)
    try:
        task = assignment(directory.config, handed.source, directory, await_site(path))
        return told(worker.run(task, trial, handed.screen), names)
    except DeviceUnavailable as error:
        return {**told(Record(trial, "failed", one_line(error)), names), RECORD: ""}
    except Exception as error:
        reason = f"{UNFORESEEN}{type(error).__name__}: {one_line(error)}"
        return {**told(Record(trial, "failed", reason), names), TRACEBACK: traceback.format_exc()}


def told(record: Record, names: Iterable[str]) -> dict[str, Any]:
    """A record as a result of Tune.

    Args:
        record: Of an ended trial.
        names: Of all values that a model may have.
    """
    status, reason, fidelity = str(record.status), record.reason, record.trial.fidelity
    values = dict(record.values) if status == "complete" else {}
    if values and fidelity < 1:
        status, reason, values = "rung", f"has had {100 * fidelity:.0f} % of full training", {}
    facts = {"number": record.number, "status": status, "reason": reason, RECORD: to_json(record)}
    return {**dict.fromkeys(names, math.nan), **values, **facts}
