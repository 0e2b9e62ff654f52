"""Ranges of a graph's activations, from running it on samples."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from autocompress.data import Array, Split
from autocompress.errors import InfeasiblePlan
from autocompress.graph.ranges import Histogram, Range, histogram_of, range_of

if TYPE_CHECKING:
    from onnx import ModelProto

BATCH = 32
"""Samples of one run; graphs with a fixed batch size get theirs."""


def calibrate(graph: ModelProto, methods: Mapping[str, str], samples: Split) -> dict[str, Range]:
    """The range to quantize for some values of a graph.

    Args:
        graph: Left as it is.
        methods: Name of a value, float, to minmax, percentile, entropy or mse.
        samples: Gone through once, and once more for methods that need the distribution.

    Raises:
        InfeasiblePlan: If the samples fill no batch of the size that the graph asks for.
    """
    lowest: dict[str, float] = {}
    highest: dict[str, float] = {}
    for name, value in _values(graph, tuple(methods), samples):
        lowest[name] = min(lowest.get(name, np.inf), float(value.min(initial=np.inf)))
        highest[name] = max(highest.get(name, -np.inf), float(value.max(initial=-np.inf)))
    if methods and not lowest:
        raise InfeasiblePlan(
            "quantization: the calibration samples fill no batch of the size that the model takes; give it more"
        )
    shaped = tuple(name for name, method in methods.items() if method != "minmax")
    counts: dict[str, Array] = {}
    for name, value in _values(graph, shaped, samples) if shaped else ():
        counts[name] = counts.get(name, 0) + histogram_of(value, lowest[name], highest[name]).counts
    nothing = np.zeros(1, np.int64)
    return {
        name: range_of(Histogram(counts.get(name, nothing), lowest[name], highest[name]), method)
        for name, method in methods.items()
    }


def _values(graph: ModelProto, names: tuple[str, ...], samples: Split) -> Iterator[tuple[str, Array]]:
    """What some values of the graph become, batch after batch."""
    import onnxruntime

    inputs = {value.name for value in graph.graph.input}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # trials run side by side
    wanted = [name for name in names if name not in inputs]
    session = onnxruntime.InferenceSession(
        _giving(graph, wanted).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for feed in _feeds(graph, samples):
        yield from ((name, feed[name]) for name in names if name in inputs)
        if wanted:
            yield from zip(wanted, session.run(wanted, feed), strict=True)


def _giving(graph: ModelProto, names: list[str]) -> ModelProto:
    """The graph with more outputs."""
    from onnx import TensorProto, helper

    more = copy.deepcopy(graph)
    known = {value.name for value in more.graph.output}
    more.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in known
    )
    return more


def _feeds(graph: ModelProto, samples: Split) -> Iterator[dict[str, Array]]:
    """Batches by the names of the graph's inputs."""
    fixed = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    names = [value.name for value in graph.graph.input]
    for batch in samples.batches(fixed or BATCH):
        if not fixed or len(batch) == fixed:
            yield dict(zip(names, batch.inputs, strict=True))
