"""Running an ONNX file through ONNX Runtime, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autocompress.data import Array
from autocompress.errors import ConversionError, InvalidInput, one_line
from autocompress.task import Predict

if TYPE_CHECKING:
    import onnxruntime
    from onnx import ModelProto

_DTYPES: dict[str, type[np.generic]] = {
    "float": np.float32,
    "float16": np.float16,
    "double": np.float64,
    "int64": np.int64,
    "int32": np.int32,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}


def save(graph: ModelProto, path: Path) -> None:
    """Write a graph to a file, whole or not at all."""
    from autocompress.serialization import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, graph.SerializeToString())


ROUNDS_FLOAT_LAYERS = "WeightBiasQuantization"
"""The optimizer of ONNX Runtime that rounds the weights of float layers between integer ones."""


def predictor(model: Path | ModelProto, *, optimized: bool = True, without: Sequence[str] = ()) -> Predict:
    """An ONNX model as a function of input arrays.

    Args:
        model: A file or a graph.
        optimized: False to run node by node what is written, rounding on floats, instead of the integer kernels that
            the nodes describe.
        without: Names of optimizers of ONNX Runtime to leave out.

    Raises:
        ConversionError: If ONNX Runtime refuses the model.
    """
    session = _session(model, optimized=optimized, without=without)
    names = [item.name for item in session.get_inputs()]

    def predict(inputs: tuple[Array, ...]) -> Array:
        try:
            outputs = session.run(None, dict(zip(names, inputs, strict=True)))
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            shapes = ", ".join(f"{array.dtype}{list(array.shape)}" for array in inputs)
            raise ConversionError(f"ONNX Runtime can't run the model on {shapes}: {one_line(error)}") from error
        return np.asarray(outputs[0])

    return predict


def random_inputs(model: Path, *, batch_size: int = 1, seed: int = 0) -> tuple[Array, ...]:
    """Inputs of one inference that fit a model: normal numbers for floats, zeros for others, unknown axes 1.

    Zeros are in range of every embedding.

    Args:
        model: An ONNX file.
        batch_size: Size of the first axis of each input.
        seed: Of the numbers.

    Raises:
        ConversionError: If ONNX Runtime refuses the model.
        InvalidInput: If the first axis of an input has another size by the model.
    """
    rng = np.random.default_rng(seed)
    inputs = _session(model).get_inputs()
    for item in inputs:
        fixed = item.shape[0] if item.shape and isinstance(item.shape[0], int) and item.shape[0] > 0 else batch_size
        if batch_size not in (1, fixed):
            raise InvalidInput(
                f"batch size {batch_size}: {model} takes batches of {fixed}, by the first axis of {item.name!r}; "
                "export it with a free one"
            )
    return tuple(_random_input(item.shape, batch_size, item.type, rng) for item in inputs)


def _random_input(shape: Sequence[int | str | None], batch_size: int, kind: str, rng: np.random.Generator) -> Array:
    unknown = (batch_size, *[1] * len(shape))
    sizes = [size if isinstance(size, int) and size > 0 else free for size, free in zip(shape, unknown, strict=False)]
    dtype = _DTYPES.get(kind.removeprefix("tensor(").removesuffix(")"))
    if dtype is None:
        raise ConversionError(f"an input of type {kind} can't be made up; expected one of {', '.join(_DTYPES)}")
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(sizes).astype(dtype)
    return np.zeros(sizes, dtype)


def _session(
    model: Path | ModelProto, *, optimized: bool = True, without: Sequence[str] = ()
) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without) or None
        )
    except Exception as error:  # ONNX Runtime's errors share no base class but Exception
        what = f"model {model}" if isinstance(model, Path) else "the model"
        raise ConversionError(
            f"{what}: ONNX Runtime can't load it: {one_line(error)}; expected a valid ONNX file"
        ) from error
