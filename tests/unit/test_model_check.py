"""Models that reach out of their file are found without the package onnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from autocompress.devices.agent.model_check import require_self_contained
from autocompress.errors import MeasurementError
from tests.agents import endless, huge, model, reaching, relu


def check(folder: Path, content: bytes) -> None:
    path = folder / "model.onnx"
    path.write_bytes(content)
    require_self_contained(path)


@pytest.mark.parametrize("build", [relu, endless, huge])
def test_models_that_keep_to_themselves_pass(build, tmp_path: Path) -> None:
    check(tmp_path, build())


@pytest.mark.parametrize("location", ["here.bin", "../there.bin", "/etc/passwd", ""])
@pytest.mark.parametrize("in_constant", [False, True])
def test_external_data_is_found_wherever_it_is(location: str, in_constant: bool, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"model\.onnx: .*another file"):
        check(tmp_path, reaching(location, in_constant=in_constant))


def test_external_data_is_found_in_the_body_of_a_loop(tmp_path: Path) -> None:
    import onnx

    inner = onnx.load_from_string(reaching("../there.bin")).graph
    with pytest.raises(MeasurementError, match="another file"):
        check(tmp_path, model([helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)]))


def test_external_data_is_found_in_what_is_merged_into_a_model(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="another file"):
        check(tmp_path, relu() + reaching("../there.bin"))  # protobuf reads both as one message


@pytest.mark.parametrize("from_bytes", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_the_runtime_itself_reads_no_weights_above_the_model(from_bytes: bool, absolute: bool, tmp_path: Path) -> None:
    (tmp_path / "there.bin").write_bytes(np.full(4, 42, np.float32).tobytes())
    content = reaching(str(tmp_path / "there.bin") if absolute else "../there.bin")
    path = tmp_path / "job" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(Exception, match="External data path"):
        open_quietly(content if from_bytes else str(path))


def test_the_runtime_itself_reads_weights_beside_the_model_which_is_why_the_agent_looks(tmp_path: Path) -> None:
    (tmp_path / "here.bin").write_bytes(np.full(4, 42, np.float32).tobytes())
    (tmp_path / "model.onnx").write_bytes(reaching("here.bin"))
    assert open_quietly(str(tmp_path / "model.onnx"))


def open_quietly(source: bytes | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("operator", ["EPContext", "PythonOp"])
def test_operators_that_reach_out_are_refused(operator: str, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=operator):
        check(tmp_path, model([helper.make_node(operator, ["x"], ["y"], domain="com.microsoft")]))


@pytest.mark.parametrize(
    "content", [b"", b"no model", b"\x00" * 100, b"\xff" * 100, b"\x18\x00\x00\x00ORTM" + b"\x00" * 100, b"\x08\x08"]
)
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"model\.onnx: can't be loaded"):
        check(tmp_path, content)


def test_a_model_cut_off_anywhere_is_refused_or_harmless(tmp_path: Path) -> None:
    content = reaching("../there.bin")
    for length in range(len(content)):
        with pytest.raises(MeasurementError):
            check(tmp_path, content[:length])
