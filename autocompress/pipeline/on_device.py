"""Scores of finished model files by what the device computes, beside those by ONNX Runtime on the host."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator

import numpy as np

from autocompress.data import Batch, batch_size_of, joined
from autocompress.errors import InvalidInput, MeasurementError, one_line
from autocompress.pipeline.workbench import Workbench
from autocompress.record import DeviceScore, Record, TooSlow

RUN_BYTES, RUN_S, RUNS = 2**25, 30.0, 4
"""Inputs that are sent to the device at once, seconds that their inferences may take by the latency of one, and into
how many parts the time is cut at least: after the first it shows how long all of them will take."""


class _OutOfTime(Exception):
    """Scoring would take longer than it may.

    Args:
        expected_s: Seconds that it would take.
    """

    def __init__(self, expected_s: float) -> None:
        super().__init__(expected_s)
        self.expected_s = expected_s


def score_on_device(record: Record, bench: Workbench, *, limit_s: float = math.inf) -> DeviceScore | TooSlow:
    """The metric of a finished model file on validation data, by the outputs that the (first) device computes.

    The inferences are those of the score on the host, of the same samples each. What the device can't do with the model
    is the reason in the result.

    Args:
        record: Complete.
        bench: Task, machines and run directory.
        limit_s: Seconds that it may take; it is given up as soon as it shows that they are not enough.

    Raises:
        DeviceUnavailable: If the device is missing or stays busy.
        TaskFailed: If the user's own metric raises.
    """
    started = time.monotonic()
    score, reason = None, ""
    try:
        score = _score(record, bench, limit_s)
    except _OutOfTime as error:
        return TooSlow(record.number, error.expected_s)
    except (MeasurementError, InvalidInput) as error:
        reason = one_line(error)
    return DeviceScore(record.number, score, reason, seconds=time.monotonic() - started)


def _score(record: Record, bench: Workbench, limit_s: float) -> float:
    """The score.

    Raises:
        _OutOfTime: If it would take longer than the limit: by the latency of the model before it is begun, by what the
            inferences took so far later.
    """
    artifact, size = bench.artifact(record.plan), batch_size_of(bench.task.examples)
    bytes_each = sum(array.nbytes for array in bench.task.examples)
    each_s = record.values["latency_ms"] / 1000
    inferences = bench.validation_inferences if limit_s < math.inf else 0
    _require_time(inferences * each_s, limit_s)
    most = max(1, min(RUN_BYTES // max(1, bytes_each), int(min(RUN_S, limit_s / RUNS) / each_s)))
    outputs, targets, started = [], [], time.monotonic()
    for batch in together(bench.task.split("validation").batches(size), size, most):
        outputs.append(bench.devices[0].run(artifact, batch.inputs, batch_size=size)[0])
        targets.append(batch.targets)
        done = sum(math.ceil(len(part) / size) for part in targets)
        if done < bench.validation_inferences:  # what is complete is not thrown away
            _require_time((time.monotonic() - started) * inferences / done, limit_s)
    return bench.task.evaluate(np.concatenate(outputs), np.concatenate(targets), "validation")


def _require_time(expected_s: float, limit_s: float) -> None:
    if expected_s > limit_s:
        raise _OutOfTime(expected_s)


def together(batches: Iterable[Batch], size: int, most: int) -> Iterator[Batch]:
    """Batches joined to larger ones, which fall into the same batches again when they are cut after every `size`.

    Args:
        batches: Of up to `size` samples.
        size: Samples of a whole batch.
        most: Batches to join at most.
    """
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        if len(waiting) == most or len(batch) < size:
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)
