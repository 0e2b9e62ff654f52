"""What ONNX Runtime makes of a graph when it loads it."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.errors import ConversionError, one_line

if TYPE_CHECKING:
    from onnx import ModelProto


def optimized_operators(graph: ModelProto) -> Counter[str]:
    """How often each operator stands in a graph as it is optimized for this machine.

    Raises:
        ConversionError: If ONNX Runtime refuses the graph.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise ConversionError(f"ONNX Runtime can't load the graph: {one_line(error)}") from error
        optimized = onnx.load(options.optimized_model_filepath)
    return Counter(f"{node.domain}.{node.op_type}" for node in optimized.graph.node)
