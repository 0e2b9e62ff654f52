"""The running process: outputs of a model, by ONNX Runtime and numpy alone; one JSON request in, one JSON answer out.

`python -m autocompress.devices._running < request.json > answer.json`, started by the local device.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from autocompress.data import Array
from autocompress.devices._lease import held
from autocompress.devices._measuring import Answer, answer_request, runtime_name
from autocompress.devices._session import Request, make_feed, open_session, read_examples, runtime_errors
from autocompress.errors import MeasurementError

OUTPUTS = "outputs.npz"
"""The file that a run leaves in its scratch folder."""


def run(request: Request) -> Answer:
    """Write the outputs of the only model of a request to the file `OUTPUTS`, in order; see `outputs_of`."""
    np.savez(Path(request.scratch) / OUTPUTS, *outputs_of(request, read_examples(request.examples)))
    return Answer(runtime=runtime_name())


def outputs_of(request: Request, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
    """The outputs of the only model of a request.

    Args:
        request: Model, provider, threads and samples of one inference.
        inputs: Arrays (samples, …) in the order of the model's inputs.

    Returns:
        Arrays (samples, …), those of all inferences behind one another.

    Raises:
        MeasurementError: If the model can't be loaded or run, or gives something other than arrays of numbers.
        DeviceUnavailable: If the runtime lacks the provider.
    """
    (path,) = request.models
    session = open_session(path, request)
    found = []
    with held(request.lease):  # nobody's measurement is to be disturbed
        for batch in _batches(inputs, request.batch_size, path):
            feed = make_feed(session, batch, path)
            with runtime_errors(f"{path}: can't be run"):
                outputs = session.run(None, feed)
            if not all(isinstance(output, np.ndarray) and not output.dtype.hasobject for output in outputs):
                raise MeasurementError(f"{path}: gives sequences, maps or text; expected arrays of numbers")
            found.append(outputs)
    if len(found) == 1:
        return tuple(found[0])
    with runtime_errors(f"{path}: outputs of several inferences can't be joined"):
        return tuple(np.concatenate(outputs) for outputs in zip(*found, strict=True))


def _batches(inputs: tuple[Array, ...], size: int | None, path: str) -> Iterator[tuple[Array, ...]]:
    """The inputs of each inference; the last may be smaller."""
    if size is None:
        yield inputs
        return
    counts = [len(array) if array.ndim else 0 for array in inputs] or [0]
    if len(set(counts)) > 1 or not counts[0]:
        shapes = ", ".join(str(array.shape) for array in inputs) or "none"
        raise MeasurementError(f"{path}: inputs of shapes {shapes} can't be cut into batches; expected (samples, …)")
    for start in range(0, counts[0], size):
        yield tuple(array[start : start + size] for array in inputs)


if __name__ == "__main__":
    answer_request(run)
