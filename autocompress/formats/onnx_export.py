"""A torch model to ONNX."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from autocompress.data import Array
from autocompress.errors import ConversionError, one_line
from autocompress.graph.onnx_fields import replace_entries
from autocompress.graph.running import inference

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

OUTPUT = "output"
OPSET = 20


def export(model: nn.Module, examples: tuple[Array, ...]) -> ModelProto:
    """The ONNX graph of a model, with a batch axis of any size and BatchNorm folded into its neighbors.

    The TorchScript exporter is used: it takes a tenth of the time of the dynamo exporter, its files carry no
    metadata, and its node names hold the module scopes by which layers are found again.

    Args:
        model: Left as it is, its mode included.
        examples: Inputs of one inference, arrays (batch, …).

    Returns:
        A checked model with inputs `input_0`, `input_1`, … and the output `output`.

    Raises:
        ConversionError: If the exporter fails or its graph is invalid.
    """
    import onnx
    import torch

    names = [f"input_{index}" for index in range(len(examples))]
    inputs = tuple(torch.from_numpy(array.copy()) for array in examples)
    buffer = io.BytesIO()
    try:
        with _quiet(), inference(model):
            torch.onnx.export(
                model,
                inputs,
                buffer,  # type: ignore[arg-type]  # the TorchScript exporter takes a file object
                input_names=names,
                output_names=[OUTPUT],
                dynamic_axes={name: {0: "batch"} for name in (*names, OUTPUT)},
                opset_version=OPSET,
                dynamo=False,
            )
        graph = onnx.load_from_string(buffer.getvalue())
        onnx.checker.check_model(graph)
    except Exception as error:  # the exporter raises whatever torch, the model or its operators raise
        raise ConversionError(
            f"export to ONNX failed: {type(error).__name__}: {one_line(error)}; the model has to be traceable by "
            "torch.onnx.export"
        ) from error
    return _share_nothing(graph)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's advice about itself and constant folding, and graphs that it fails on, from the terminal.

    The exporter means to print graphs when asked for it alone, but forgets to call the function that says so (torch
    2.13, `setup_onnx_logging`), and an operator that it does not know gives hundreds of lines.
    """
    import torch

    logger = logging.getLogger("torch.onnx")
    level, printing = logger.level, torch._C._jit_onnx_log
    logger.setLevel(logging.ERROR)
    torch._C._jit_onnx_log = lambda *_: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        torch._C._jit_onnx_log = printing


def _share_nothing(graph: ModelProto) -> ModelProto:
    """Replace `Identity` nodes that the exporter makes of equal initializers by copies.

    Fresh batch norms give equal biases; shared ones would tie layers that later steps change one by one.
    """
    from onnx import TensorProto

    known = {tensor.name: tensor for tensor in graph.graph.initializer}
    kept = []
    for node in graph.graph.node:
        if node.op_type == "Identity" and node.input[0] in known:
            copy = TensorProto()
            copy.CopyFrom(known[node.input[0]])
            copy.name = node.output[0]
            graph.graph.initializer.append(copy)
            known[copy.name] = copy
        else:
            kept.append(node)
    replace_entries(graph.graph.node, kept)
    return graph
