"""The remote device with real agents: its pool, and what it does when they are lost."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocompress.cli import main
from autocompress.devices.agent.messages import Job
from autocompress.devices.remote import RemoteDevice
from autocompress.errors import DeviceUnavailable, InvalidInput, MeasurementError
from autocompress.profile import HardwareProfile, Protocol, load_profile
from tests.agents import (
    LIMITS,
    Agent,
    artifact,
    endless,
    examples,
    model,
    relu,
    running_agent,
    wait_for,
)

QUICK = Protocol(warmup_runs=1, block_ms=1.0, min_cpu_s=0.02, max_cpu_s=0.05, interval=0.5)
EXAMPLES = (np.array([[-1, 0, 1, 2]], np.float32),)
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running_agent(tmp_path_factory.mktemp("agent")) as running:
        yield running


def remote(*addresses: str, wait_s: float = 60.0, time_limit_s: float = 60.0, certificate: str = "") -> RemoteDevice:
    profile = HardwareProfile(
        name="boards", device="remote", addresses=addresses, protocol=QUICK, certificate=certificate
    )
    return RemoteDevice(profile, wait_s=wait_s, time_limit_s=time_limit_s)


def test_a_file_is_sent_once_for_many_measurements(agent: Agent, tmp_path: Path) -> None:
    model_file, device = artifact(tmp_path / "model.onnx", relu()), remote(agent.address)
    for _ in range(5):
        assert device.measure([model_file], model_file, examples=EXAMPLES)
    assert agent.said.count(f"file {model_file.sha256}") == 1


def test_a_run_gives_the_outputs_of_the_model(agent: Agent, tmp_path: Path) -> None:
    (output,) = remote(agent.address).run(artifact(tmp_path / "model.onnx", relu()), EXAMPLES)
    assert output.tolist() == [[0, 0, 1, 2]]


def test_a_model_that_never_ends_is_a_measurement_error_that_names_it(agent: Agent, tmp_path: Path) -> None:
    device = remote(agent.address, time_limit_s=1.0)
    with pytest.raises(MeasurementError, match=rf"{tmp_path}/endless\.onnx: not done within the limit of 1 s"):
        device.measure([], artifact(tmp_path / "endless.onnx", endless()), examples=EXAMPLES)


def test_a_file_that_has_changed_or_is_too_large_is_a_measurement_error(agent: Agent, tmp_path: Path) -> None:
    changed = artifact(tmp_path / "changed.onnx", model([]))
    Path(changed.path).write_bytes(b"other")
    large = replace(changed, path=str(tmp_path / "large.onnx"))
    Path(large.path).write_bytes(bytes(LIMITS.upload_bytes + 1))
    with pytest.raises(MeasurementError, match=r"changed\.onnx: .*digest"):
        remote(agent.address).measure([], changed, examples=EXAMPLES)
    with pytest.raises(MeasurementError, match=r"large\.onnx: .*at most 1048576"):
        remote(agent.address).measure([], large, examples=EXAMPLES)


def test_a_machine_that_lacks_the_provider_is_not_waited_for(agent: Agent, tmp_path: Path) -> None:
    profile = replace(remote(agent.address).profile, provider="NoSuchExecutionProvider")
    with pytest.raises(DeviceUnavailable, match=r"no NoSuchExecutionProvider; it has .*CPUExecutionProvider"):
        RemoteDevice(profile).measure([], artifact(tmp_path / "model.onnx", relu()), examples=EXAMPLES)


# -- the pool --------------------------------------------------------------------------------------------------------


def test_where_no_agent_answers_the_error_names_all_addresses(tmp_path: Path) -> None:
    other = "http://localhost:9"
    with pytest.raises(DeviceUnavailable, match=rf"of at most 0\.3 s .*{NOBODY}: no answer.*{other}: no answer"):
        remote(NOBODY, other, wait_s=0.3).measure([], artifact(tmp_path / "model.onnx", relu()), examples=EXAMPLES)


def test_an_agent_that_is_missing_is_passed_by(agent: Agent, tmp_path: Path) -> None:
    model_file = artifact(tmp_path / "model.onnx", relu())
    assert remote(NOBODY, agent.address).measure([model_file], model_file, examples=EXAMPLES)


def test_a_busy_agent_is_passed_by_and_one_alone_is_waited_for(agent: Agent, tmp_path: Path) -> None:
    model_file = artifact(tmp_path / "model.onnx", relu())
    with running_agent(tmp_path / "busy") as busy:
        name = busy.submit(Job("run", (busy.put(endless()),), busy.put(examples())))
        assert remote(busy.address, agent.address).measure([model_file], model_file, examples=EXAMPLES)
        with pytest.raises(DeviceUnavailable, match=rf"{busy.address}: busy"):
            remote(busy.address, wait_s=0.3).measure([], model_file, examples=EXAMPLES)
        wait_for(lambda: busy.jobs == 1)
        busy.http.delete(f"/jobs/{name}")


def test_measurements_at_one_time_go_to_different_agents(agent: Agent, tmp_path: Path) -> None:
    model_file, before = artifact(tmp_path / "model.onnx", relu()), agent.said.count(": done")
    with running_agent(tmp_path / "second") as second:
        given = (model_file, Protocol(min_cpu_s=0.5, max_cpu_s=0.5))
        both = [Measuring(remote(agent.address, second.address), *given) for _ in range(2)]
        assert [one.result() for one in both] == [1, 1]
        assert agent.said.count(": done") - before == second.said.count(": done") == 1


def test_an_agent_killed_in_the_middle_loses_its_job_to_another(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.devices._client.LOST_AFTER_S", 0.5)
    model_file = artifact(tmp_path / "model.onnx", relu())
    with running_agent(tmp_path / "killed") as killed:
        device = remote(killed.address, agent.address)
        measured = Measuring(device, model_file, Protocol(min_cpu_s=0.5, max_cpu_s=0.5))
        wait_for(lambda: killed.jobs == 1)
        killed.kill()
        assert measured.result() == 1


def test_a_job_that_a_new_agent_does_not_know_is_posted_again(tmp_path: Path) -> None:
    model_file = artifact(tmp_path / "model.onnx", relu())
    with running_agent(tmp_path / "board") as first:
        measured = Measuring(remote(first.address), model_file, Protocol(min_cpu_s=0.5, max_cpu_s=0.5))
        wait_for(lambda: first.jobs == 1)
        first.kill()
        with running_agent(tmp_path / "board", port=first.port) as second:
            assert measured.result() == 1
            assert second.said.count(": done") == 1


class Measuring:
    """A measurement that goes on beside the test."""

    def __init__(self, device: RemoteDevice, *given: object) -> None:
        self._found: list[object] = []
        self._thread = threading.Thread(target=self._measure, args=(device, *given))
        self._thread.start()

    def _measure(self, device: RemoteDevice, model_file, protocol: Protocol) -> None:
        self._found += device.measure([model_file], model_file, examples=EXAMPLES, protocol=protocol)

    def result(self) -> int:
        """How many measurements came of it."""
        self._thread.join()
        return len(self._found)


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_a_wrong_token_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_file = artifact(tmp_path / "model.onnx", relu())
    with running_agent(tmp_path / "board", token="right") as board:
        monkeypatch.setenv("AUTOCOMPRESS_TOKEN", "wrong")
        with pytest.raises(DeviceUnavailable, match=r"token is missing or wrong.*AUTOCOMPRESS_TOKEN"):
            remote(board.address).measure([], model_file, examples=EXAMPLES)
        monkeypatch.setenv("AUTOCOMPRESS_TOKEN", "right")
        assert remote(board.address).measure([model_file], model_file, examples=EXAMPLES)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate by openssl")
def test_a_certificate_is_believed_only_if_it_is_known(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=board"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)
    model_file = artifact(tmp_path / "model.onnx", relu())
    with running_agent(tmp_path / "board", tls=(certificate, key)) as board:
        assert board.address.startswith("https:")
        known, unknown = remote(board.address, certificate=str(certificate)), remote(board.address)
        assert known.measure([model_file], model_file, examples=EXAMPLES)
        with pytest.raises(DeviceUnavailable, match="certificate"):
            unknown.measure([], model_file, examples=EXAMPLES)


# -- profiles and commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "addresses"),
    [
        ("remote", ()),
        ("local", (NOBODY,)),
        ("remote", ("board:8765",)),
        ("remote", ("http://board:8765/path",)),
        ("remote", (NOBODY, NOBODY)),
    ],
)
def test_a_remote_device_and_no_other_has_addresses(device: str, addresses: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match="address"):
        HardwareProfile(name="boards", device=device, addresses=addresses)


def test_a_certificate_lies_beside_its_profile(tmp_path: Path) -> None:
    (tmp_path / "boards.yaml").write_text("device: remote\naddresses: ['https://board:8765']\ncertificate: ca.pem\n")
    assert load_profile(str(tmp_path / "boards.yaml")).certificate == str(tmp_path / "ca.pem")


def test_the_machines_of_a_profile_are_listed(agent: Agent, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boards = tmp_path / "boards.yaml"
    boards.write_text(f"device: remote\naddresses: ['{agent.address}', '{NOBODY}']\n")
    assert main(["device", "list", "--hardware", str(boards)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{agent.address}: free; ")
    assert second.startswith(f"{NOBODY}: unavailable: no answer")


@pytest.mark.parametrize("words", [["list", "--hardware", "fake"], ["check", "fake"]])
def test_a_profile_without_addresses_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", *words]) == 2
    assert "'fake' has no addresses" in capsys.readouterr().err


def test_device_alone_shows_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device"]) == 0
    assert "serve" in capsys.readouterr().out


def test_check_measures_a_tiny_model_on_each_machine(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "check", agent.address]) == 0
    assert "measured a tiny model" in capsys.readouterr().out
    assert main(["device", "check", NOBODY]) == 1
    assert "no answer" in capsys.readouterr().out
