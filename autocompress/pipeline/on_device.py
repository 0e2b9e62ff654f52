"""Scores of finished model files by what the device computes, beside those by ONNX Runtime on the host."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np

from autocompress.artifact import Artifact
from autocompress.data import Batch, batch_size_of, joined
from autocompress.errors import InvalidInput, MeasurementError, one_line
from autocompress.pipeline.workbench import Workbench
from autocompress.record import DeviceScore, Record

RUN_BYTES, RUN_S = 2**25, 30.0
"""Inputs that are sent to the device at once, and seconds that their inferences may take by the latency of one."""


def score_on_device(record: Record, bench: Workbench) -> DeviceScore:
    """The metric of a finished model file on validation data, by the outputs that the (first) device computes.

    The inferences are those of the score on the host, of the same samples each. What the device can't do with the model
    is the reason in the result.

    Raises:
        DeviceUnavailable: If the device is missing or stays busy.
        TaskFailed: If the user's own metric raises.
    """
    started = time.monotonic()
    score, reason = None, ""
    try:
        score = _score(record, bench)
    except (MeasurementError, InvalidInput) as error:
        reason = one_line(error)
    return DeviceScore(record.number, score, reason, seconds=time.monotonic() - started)


def _score(record: Record, bench: Workbench) -> float:
    artifact, size = Artifact.of(bench.artifact_path(record.plan)), batch_size_of(bench.task.examples)
    bytes_each = sum(array.nbytes for array in bench.task.examples)
    most = max(1, min(RUN_BYTES // max(1, bytes_each), int(1000 * RUN_S / record.values["latency_ms"])))
    outputs, targets = [], []
    for batch in together(bench.task.split("validation").batches(size), size, most):
        outputs.append(bench.devices[0].run(artifact, batch.inputs, batch_size=size)[0])
        targets.append(batch.targets)
    return bench.task.evaluate(np.concatenate(outputs), np.concatenate(targets), "validation")


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
