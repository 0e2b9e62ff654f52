"""Whether integer products saturate on this machine: models whose exact result is known, run in a fresh process.

x86 processors without VNNI add two products of u8 and s8 in 16 bits, where 2 · 255 · 127 does not fit. Every weight of
the models here is the largest, and every activation too, so that the sums are as large as they can be.

`python -m autocompress.profiling.saturation < question.json > answer.json` is what runs them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import ConfigDict

from autocompress.devices._session import (
    Request,
    end_with_parent,
    make_feed,
    open_session,
    read_examples,
    runtime_errors,
)
from autocompress.devices.local import LocalDevice, run_process
from autocompress.errors import AutocompressError, MeasurementError
from autocompress.profile import HardwareProfile
from autocompress.profiling.findings import Saturation
from autocompress.profiling.forms import rewritten
from autocompress.profiling.models import LayerName, Specimen, specimen
from autocompress.serialization import from_json, to_json

if TYPE_CHECKING:
    from autocompress.data import Array

LAYERS: tuple[LayerName, ...] = ("conv", "linear", "linear_rows")
"""Kinds of layers whose integer kernels are tried."""

LIMIT_S = 120.0
"""Wall seconds that the process may take."""


@dataclass(frozen=True)
class Answer:
    """What the process says of one model.

    Args:
        missing: Largest share of the exact results that is missing; 0 after an error.
        error: What went wrong, or empty.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    missing: float = 0.0
    error: str = ""


def find_saturation(profile: HardwareProfile, folder: Path) -> Saturation:
    """Run models of large sums on the machine of a profile.

    Args:
        profile: Where the runtime runs. A device other than this machine measures, but gives no results back.
        folder: Where the models may be written.

    Returns:
        What was found, or the reason why nothing could be: what else is known of the machine is of use without it.
    """
    if profile.device != LocalDevice.name:
        return Saturation(None, f"the device {profile.device!r} measures models, but gives no results back")
    missing = []
    for layer in LAYERS:
        try:
            answer = _ask(largest_sums(specimen(layer)), profile, folder / layer)
        except MeasurementError as error:
            return Saturation(None, str(error))
        if answer.error:
            return Saturation(None, answer.error)
        missing.append(answer.missing)
    return Saturation(max(missing))


def largest_sums(one: Specimen) -> Specimen:
    """A specimen with weights and inputs that make its integer sums as large as they can be, and without biases.

    Weights are 127 and 126 steps, not 127 alone: of numbers that are all the same, each would be a single step.
    """
    from onnx import numpy_helper

    for tensor in one.model.graph.initializer:
        shape = tuple(tensor.dims)
        steps = np.zeros(shape) if len(shape) == 1 else 127 - np.indices(shape).sum(axis=0) % 2
        values = (steps / (127 * np.prod(shape[1:]))).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return Specimen(one.model, np.ones_like(one.example))


def _ask(one: Specimen, profile: HardwareProfile, folder: Path) -> Answer:
    """Run a float model and its integer form, and compare."""
    import onnx

    folder.mkdir()
    paths = (folder / "fp32.onnx", folder / "int8.onnx")
    for path, model in zip(paths, (one.model, rewritten(one, "int8")), strict=True):
        onnx.save(model, path)
    examples = folder / "examples.npz"
    np.savez(examples, one.example)
    request = Request(
        parent=os.getpid(),
        models=tuple(map(str, paths)),
        weighed=(),
        examples=str(examples),
        scratch=str(folder),
        provider=profile.provider,
        threads=profile.threads,
        protocol=profile.protocol,
    )
    text = run_process(__name__, to_json(request), limit_s=LIMIT_S, subject="test of saturation")
    return from_json(Answer, text)


def missing_share(request: Request) -> float:
    """Largest share of the first model's largest result that the second model lacks."""
    exact, found = (_result(path, request) for path in request.models)
    return float(np.max((exact - found) / np.abs(exact).max()))


def _result(path: str, request: Request) -> Array:
    session = open_session(path, request)
    feed = make_feed(session, read_examples(request.examples), path)
    with runtime_errors(f"{path}: can't be run"):
        return np.asarray(session.run(None, feed)[0])


def main() -> None:
    """Answer the request on standard input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints must not end up in the answer
    request = from_json(Request, sys.stdin.read())
    end_with_parent(request.parent)
    try:
        answer = Answer(missing_share(request))
    except AutocompressError as error:
        answer = Answer(error=str(error))
    answers.write(to_json(answer))
    answers.close()


if __name__ == "__main__":
    main()
