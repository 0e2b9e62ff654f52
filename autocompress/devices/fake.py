"""A machine that is worked out from the file, the same every time: for tests and dry runs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from autocompress.artifact import Artifact
from autocompress.data import Array, batch_size_of
from autocompress.devices._base import DEVICES, Device
from autocompress.devices._footprint import is_integer
from autocompress.devices._running import outputs_of
from autocompress.devices._session import Request
from autocompress.errors import MeasurementError
from autocompress.measurement import Measurement, Samples
from autocompress.profile import HardwareProfile, Protocol

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

MACS_PER_MS = 1e7
"""Speed of the machine in fp32."""

INTEGER_SPEEDUP = 2.0
"""How many integer multiply-adds take the time of one in fp32, for kinds of layers where the profile has them fast."""

OVERHEAD_MS = 0.001
"""What an inference takes without any multiply-add."""

Shape = tuple[int, ...]


@DEVICES.register
class FakeDevice(Device):
    """No machine: latency follows from the MACs of the ONNX file, memory from its weights; no time is spent.

    Outputs are those of ONNX Runtime in this process, as there is no machine whose arithmetic could differ.
    """

    name: ClassVar[str] = "fake"

    def measure(
        self,
        artifacts: Sequence[Artifact],
        reference: Artifact,
        *,
        examples: tuple[Array, ...],
        protocol: Protocol | None = None,
    ) -> tuple[Measurement, ...]:
        """Work out what a machine might measure; see `Device.measure`."""
        chosen = protocol or self.profile.protocol
        baseline = _Workload.of(reference, examples, self.profile)
        return tuple(
            _measurement(_Workload.of(artifact, examples, self.profile), baseline, chosen, batch_size_of(examples))
            for artifact in artifacts
        )

    def run(self, artifact: Artifact, inputs: tuple[Array, ...], *, batch_size: int | None = None) -> tuple[Array, ...]:
        """The outputs of a model, computed in this process; see `Device.run`."""
        request = Request(
            parent=os.getpid(),
            models=(artifact.path,),
            weighed=(),
            examples="",
            scratch="",
            provider=self.profile.provider,
            threads=self.profile.threads,
            protocol=self.profile.protocol,
            batch_size=batch_size,
        )
        return outputs_of(request, inputs)


class _Workload:
    """What one inference asks of the machine."""

    def __init__(self, graph: GraphProto, shapes: dict[str, Shape], profile: HardwareProfile) -> None:
        producers = {output: node for node in graph.node for output in node.output}
        self.nodes = len(graph.node)
        self.integer_nodes = 0
        self.latency_ms = OVERHEAD_MS
        self.weight_bytes = sum(initializer.ByteSize() for initializer in graph.initializer)
        for node in graph.node:
            integer = is_integer(node.op_type) or _has_quantized_inputs(node, producers)
            self.integer_nodes += integer
            is_fast = integer and profile.fast("conv" if "Conv" in node.op_type else "linear")
            self.latency_ms += count_macs(node, shapes) / MACS_PER_MS / (INTEGER_SPEEDUP if is_fast else 1.0)

    @classmethod
    def of(cls, artifact: Artifact, examples: tuple[Array, ...], profile: HardwareProfile) -> _Workload:
        """The workload of a file.

        Raises:
            MeasurementError: If it is no valid ONNX model, or its inputs do not fit the examples.
        """
        model = _load(Path(artifact.path))
        _fix_inputs(model.graph, examples, artifact.path)
        return cls(model.graph, _infer_shapes(model), profile)


def count_macs(node: NodeProto, shapes: dict[str, Shape]) -> int:
    """Multiply-adds of one node, without those of its bias; 0 for operators other than convolutions and products.

    Args:
        node: Any node of an ONNX graph.
        shapes: Shape by name of tensor; one that is missing counts as a single number.
    """
    operands = [shapes.get(name, ()) for name in node.input]
    output = math.prod(shapes.get(node.output[0], ()))
    match node.op_type:
        case "Conv" | "ConvInteger" | "QLinearConv":
            return output * math.prod(operands[3 if node.op_type == "QLinearConv" else 1][1:])
        case "ConvTranspose":
            return math.prod(operands[0]) * math.prod(operands[1][1:])
        case "Gemm" | "QGemm":
            return output * (operands[0] or (1, 1))[0 if _whole_number(node, "transA") else -1]
        case "MatMul" | "MatMulInteger" | "QLinearMatMul" | "DynamicQuantizeMatMul" | "MatMulIntegerToFloat":
            return output * (operands[0] or (1,))[-1]
        case "MatMulNBits":
            return math.prod(operands[0]) * _whole_number(node, "N")
        case _:
            return 0


def _whole_number(node: NodeProto, attribute: str) -> int:
    """The value of an attribute; 0 if the node has none of that name."""
    return next((one.i for one in node.attribute if one.name == attribute), 0)


def _has_quantized_inputs(node: NodeProto, producers: dict[str, NodeProto]) -> bool:
    """True where the runtime would fuse DequantizeLinear on both factors into an integer kernel."""
    if node.op_type not in {"Conv", "Gemm", "MatMul"}:
        return False
    return all(name in producers and producers[name].op_type == "DequantizeLinear" for name in node.input[:2])


def _load(path: Path) -> ModelProto:
    import onnx

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's, the checker's and the file system's errors have no common root
        raise MeasurementError(f"{path}: not a valid ONNX file: {error}") from error
    return model


def _fix_inputs(graph: GraphProto, examples: tuple[Array, ...], path: str) -> None:
    """Give the inputs the shapes of the examples."""
    stored = {initializer.name for initializer in graph.initializer}
    inputs = [info for info in graph.input if info.name not in stored]
    if len(inputs) != len(examples):
        raise MeasurementError(f"{path}: takes {len(inputs)} inputs; {len(examples)} examples were given")
    for info, example in zip(inputs, examples, strict=True):
        dims = info.type.tensor_type.shape.dim
        fits = len(dims) == example.ndim and all(
            dim.dim_value in {0, size} for dim, size in zip(dims, example.shape, strict=True)
        )
        if not fits:
            raise MeasurementError(f"{path}: input {info.name!r} does not take an example of shape {example.shape}")
        for dim, size in zip(dims, example.shape, strict=True):
            dim.dim_value = size
    for info in graph.output:  # they may name a dimension that is now fixed
        info.type.tensor_type.ClearField("shape")


def _infer_shapes(model: ModelProto) -> dict[str, Shape]:
    """Shape by name of every tensor whose rank is known; a dimension that is not known is 1."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {initializer.name: tuple(initializer.dims) for initializer in graph.initializer}
    for info in (*graph.value_info, *graph.input, *graph.output):
        shapes[info.name] = tuple(dim.dim_value or 1 for dim in info.type.tensor_type.shape.dim)
    return shapes


def _measurement(workload: _Workload, reference: _Workload, protocol: Protocol, batch_size: int) -> Measurement:
    latency_ms = workload.latency_ms
    ratio = latency_ms / reference.latency_ms
    return Measurement(
        latency_ms=latency_ms,
        latency_ratio=ratio,
        latency_ratio_interval=(ratio, ratio),
        wall_p50_ms=latency_ms,
        wall_p95_ms=latency_ms,
        contention=1.0,
        peak_memory_bytes=workload.weight_bytes,
        integer_nodes=workload.integer_nodes,
        nodes=workload.nodes,
        machine="fake",
        protocol=protocol,
        samples=_samples(latency_ms),
        reference_samples=_samples(reference.latency_ms),
        wall_p99_ms=latency_ms,
        session_ms=0.0,
        batch_size=batch_size,
    )


def _samples(latency_ms: float) -> Samples:
    return Samples(((latency_ms,),), ((latency_ms,),))
