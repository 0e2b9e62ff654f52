"""Whether a stranger's ONNX file keeps to itself, found without the package onnx.

An ONNX file can name other files: its weights ("external data"), contexts of compiled nodes, functions of Python. The
agent refuses all of them. ONNX Runtime 1.32 by itself refuses weights in absolute paths and above the model's folder,
whether it is given a path or bytes, but it reads those beside the model. Libraries of custom operators are not among
them: only a session's options load those, and the agent sets none.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from autocompress.errors import MeasurementError

_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "tensor": {},
}
"""Messages of onnx.proto that can hold a tensor or a node: number of the field to the message in it."""

_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of TensorProto
_OPERATOR = 4  # of NodeProto
_REACHING_OUT = frozenset({b"EPContext", b"PythonOp", b"PyOp"})
_FLATBUFFER = b"ORTM"  # bytes 4 to 8 of the runtime's own format, which this check does not know

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5

Field = tuple[int, int, int | memoryview]
"""Number of the field, kind on the wire, and value."""


def require_self_contained(path: Path) -> None:
    """Refuse a model that is more than its file.

    Args:
        path: A file that may hold anything.

    Raises:
        MeasurementError: If it is no ONNX model, or names another file; the message begins with `path`.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise MeasurementError(f"{path}: can't be loaded: the file is empty")
        # mapped, not read: what is read here must not count as the model's memory later
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        if bytes(data[4:8]) == _FLATBUFFER:
            raise ValueError("it is in ONNX Runtime's own format; expected an ONNX file")
        _check(data)
    except ValueError as error:
        raise MeasurementError(f"{path}: can't be loaded: {error}") from error


def _check(data: memoryview) -> None:
    """Go through all messages that can hold a tensor or a node.

    Raises:
        ValueError: If one can't be read or is refused.
    """
    if not any(number == 7 for number, _, _ in _fields(data)):
        raise ValueError("not an ONNX file: it has no graph")
    waiting = [("model", data)]
    while waiting:
        message, content = waiting.pop()
        inside = _INSIDE[message]
        for number, kind, value in _fields(content):
            if message == "tensor" and _is_external(number, value):
                raise ValueError("its weights are in another file; expected a file that holds them")
            if isinstance(value, int):
                continue
            if message == "node" and number == _OPERATOR and bytes(value[:20]) in _REACHING_OUT:
                raise ValueError(f"the operator {bytes(value).decode()} reaches out of the file")
            if kind == _LENGTH and number in inside:
                waiting.append((inside[number], value))


def _is_external(number: int, value: int | memoryview) -> bool:
    return number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)


def _fields(data: memoryview) -> Iterator[Field]:
    """The fields of one protobuf message.

    Raises:
        ValueError: If it is none.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        value: int | memoryview
        if kind == _VARINT:
            value, position = _varint(data, position)
        elif kind in {_EIGHT_BYTES, _FOUR_BYTES, _LENGTH}:
            size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind)
            if size is None:
                size, position = _varint(data, position)
            value = data[position : position + size]
            position += size
        else:
            raise ValueError("not an ONNX file: it is no protobuf message")
        if position > len(data) or not 0 < number < 2**29:
            raise ValueError("not an ONNX file, or one that was cut off")
        yield number, kind, value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError("not an ONNX file, or one that was cut off")
