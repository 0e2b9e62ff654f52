"""The process of one job: checks the models, then measures or runs them.

`python -m autocompress.devices.agent._job measure < request.json > answer.json`, in a folder of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from autocompress.devices._measuring import Answer, answer_request, measure
from autocompress.devices._running import run
from autocompress.devices._session import Request
from autocompress.devices.agent.model_check import require_self_contained


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
