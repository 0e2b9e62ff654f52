"""The process of one job: checks the models, then measures or runs them.

`python -m autocompress.devices.agent._job measure < request.json > answer.json`, in a folder of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from autocompress.devices._measuring import Answer, answer_request, measure, runtime_name
from autocompress.devices._session import Request, make_feed, open_session, read_examples, runtime_errors
from autocompress.devices.agent.model_check import require_self_contained
from autocompress.errors import MeasurementError

OUTPUTS = "outputs.npz"
"""The file that a run leaves in its folder."""


def run(request: Request) -> Answer:
    """Write the outputs of the only model of a request to the file `OUTPUTS`, in order.

    Raises:
        MeasurementError: If it can't be loaded or run, or gives something other than arrays of numbers.
        DeviceUnavailable: If the runtime lacks the provider.
    """
    (path,) = request.models
    session = open_session(path, request)
    feed = make_feed(session, read_examples(request.examples), path)
    with runtime_errors(f"{path}: can't be run"):
        outputs = session.run(None, feed)
    if not all(isinstance(output, np.ndarray) and not output.dtype.hasobject for output in outputs):
        raise MeasurementError(f"{path}: gives sequences, maps or text; expected arrays of numbers")
    np.savez(Path(request.scratch) / OUTPUTS, *outputs)
    return Answer(runtime=runtime_name())


def work(request: Request) -> Answer:
    """Do what the first argument says, with models that keep to themselves.

    Raises:
        MeasurementError: If a model reaches out of its file, can't be loaded or can't be run.
        DeviceUnavailable: If the runtime lacks the provider.
    """
    for path in request.models:
        require_self_contained(Path(path))
    return {"measure": measure, "run": run}[sys.argv[1]](request)


if __name__ == "__main__":
    answer_request(work)
