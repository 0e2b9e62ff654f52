"""The remote device with real agents: its pool, and what it does when they are lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from autocompress.cli import main
from autocompress.devices import open_device
from autocompress.devices._client import AgentForgot, AgentLost
from autocompress.devices._pool import Pool, Turn
from autocompress.devices.agent.messages import Job
from autocompress.devices.remote import RemoteDevice
from autocompress.errors import DeviceUnavailable, InvalidInput, MeasurementError
from autocompress.profile import HardwareProfile, Protocol, load_profile
from tests.agents import (
    LIMITS,
    Agent,
    artifact,
    between,
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
        name="boards", device="remote", addresses=addresses, protocol=QUICK, certificate=certificate, wait_s=wait_s
    )
    return RemoteDevice(profile, time_limit_s=time_limit_s)


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


def test_a_job_whose_acceptance_is_lost_on_the_way_is_done_once(agent: Agent, tmp_path: Path) -> None:
    model_file, before, lost = artifact(tmp_path / "model.onnx", relu()), agent.said.count(": done"), []

    def lose_first(method: str, path: str, answer: bytes) -> bytes | None:
        if method == "POST" and not lost:
            lost.append(path)
            return None
        return answer

    with between(agent, lose_first) as address:
        assert remote(address).measure([model_file], model_file, examples=EXAMPLES)
    assert lost
    assert agent.said.count(": done") - before == 1


def test_a_job_that_was_lost_on_a_machine_is_found_there_again(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.devices._client.LOST_AFTER_S", 0.2)
    model_file, before, asked = artifact(tmp_path / "model.onnx", relu()), agent.said.count(": done"), []

    def deaf_for_a_while(method: str, path: str, answer: bytes) -> bytes | None:
        asked.append(method)
        return None if "POST" in asked and len(asked) - asked.index("POST") < 6 else answer

    with between(agent, deaf_for_a_while) as address:
        device = remote(address)
        events: list[str] = []
        device.tell = events.append
        assert device.measure([model_file], model_file, examples=EXAMPLES)
    assert agent.said.count(": done") - before == 1
    first, last = events
    assert first.startswith(f"machine {address} is lost: no answer")
    assert last == f"machine {address} is back"


def test_a_machine_that_comes_back_with_a_model_that_fails_is_back(agent: Agent, tmp_path: Path) -> None:
    asked: list[str] = []

    def deaf_at_first(method: str, path: str, answer: bytes) -> bytes | None:
        asked.append(path)
        return None if len(asked) == 1 else answer

    with between(agent, deaf_at_first) as address:
        device, events = remote(address, time_limit_s=1.0), list[str]()
        device.tell = events.append
        with pytest.raises(MeasurementError, match="not done within"):
            device.measure([], artifact(tmp_path / "endless.onnx", endless()), examples=EXAMPLES)
    lost, back = events
    assert lost.startswith(f"machine {address} is lost: no answer")
    assert back == f"machine {address} is back"


@pytest.mark.parametrize(("error", "goes_on"), [(AgentForgot("no such job"), True), (AgentLost("no answer"), False)])
def test_a_machine_that_was_started_anew_is_asked_again_and_a_lost_one_left_alone(
    agent: Agent, error: Exception, goes_on: bool
) -> None:
    errors = [error]

    def work(turn: Turn) -> str:
        if errors:
            raise errors.pop()
        return turn.client.address

    with between(agent, lambda method, path, answer: answer) as other:
        pool = Pool(remote(agent.address, other).profile, tell=lambda event: None)
        assert pool.somewhere(work) == other
        assert pool.somewhere(work) == (agent.address if goes_on else other)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"times": []}, "times of 0 models"),
        ({"session_ms": [1.0, 2.0]}, "load times of 2"),
        ({"footprints": []}, "footprints of 0; expected 1, 1, 1 and 1"),
        ({"energy_mj": []}, "energies of 0"),
        ({"energy_mj": [-5.0]}, "energies that are no numbers"),
        ({"times": [{"cpu_ms": [[]], "wall_ms": [[1.0]]}]}, "empty one"),
        ({"times": [{"cpu_ms": [[-1.0]], "wall_ms": [[1.0]]}]}, "no numbers above 0"),
        ({"times": [{"cpu_ms": [[1.0]], "wall_ms": [[float("nan")]]}]}, "no numbers above 0"),
        ({"times": [{"cpu_ms": [[0.0, 1.0]], "wall_ms": [[1.0, 1.0]]}]}, "no numbers above 0"),
        ({"disturbance": -0.5}, "a disturbance of -0.5"),
        ({"session_ms": [float("nan")]}, "load times that are no numbers"),
        ({"footprints": [{"peak_memory_bytes": 1, "nodes": 1, "integer_nodes": 2}]}, "footprint that can't be"),
        ({"times": "soon"}, "not an agent's"),
    ],
)
def test_an_answer_that_fits_no_job_is_refused_and_the_job_done_elsewhere(
    agent: Agent, tmp_path: Path, changed: dict[str, object], why: str
) -> None:
    model_file = artifact(tmp_path / "model.onnx", relu())

    def lie(method: str, path: str, answer: bytes) -> bytes:
        status = json.loads(answer) if method == "GET" and "/jobs/" in path else {}
        return json.dumps(status | {"answer": status["answer"] | changed}).encode() if status.get("answer") else answer

    with between(agent, lie) as liar:
        with pytest.raises(DeviceUnavailable, match=rf"{liar}: its answer .*{why}"):
            remote(liar).measure([model_file], model_file, examples=EXAMPLES)
        assert remote(liar, agent.address).measure([model_file], model_file, examples=EXAMPLES)


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04 cut off"])
def test_outputs_that_are_no_arrays_are_refused(agent: Agent, tmp_path: Path, content: bytes) -> None:
    model_file = artifact(tmp_path / "model.onnx", relu())

    def lie(method: str, path: str, answer: bytes) -> bytes:
        if method == "GET" and "/jobs/" in path:
            status = json.loads(answer)
            return json.dumps(status | {"outputs": agent.put(content)} if status["answer"] else status).encode()
        return answer

    with between(agent, lie) as liar, pytest.raises(DeviceUnavailable, match=rf"{liar}: the outputs that it sent"):
        remote(liar).run(model_file, EXAMPLES)


def test_an_answer_without_an_end_is_refused(agent: Agent, tmp_path: Path) -> None:
    model_file = artifact(tmp_path / "model.onnx", relu())

    def lie(method: str, path: str, answer: bytes) -> bytes:
        return answer + b" " * 2**24 if path.startswith("/v1/capabilities") else answer

    with between(agent, lie) as liar, pytest.raises(DeviceUnavailable, match=rf"{liar}: .*more than 16777216 bytes"):
        remote(liar).measure([], model_file, examples=EXAMPLES)


class Garbled(BaseHTTPRequestHandler):
    """Answers with what is not compressed as it says."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(b"not compressed at all")

    def log_message(self, *_: object) -> None: ...


def test_an_answer_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    model_file = artifact(tmp_path / "model.onnx", relu())
    with ThreadingHTTPServer(("127.0.0.1", 0), Garbled) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(DeviceUnavailable, match="its answer can't be read"):
            remote(f"http://127.0.0.1:{server.server_port}").measure([], model_file, examples=EXAMPLES)
        server.shutdown()


def test_an_answer_about_another_job_is_refused(agent: Agent, tmp_path: Path) -> None:
    model_file = artifact(tmp_path / "model.onnx", relu())

    def lie(method: str, path: str, answer: bytes) -> bytes:
        return json.dumps(json.loads(answer) | {"id": "another"}).encode() if method == "POST" else answer

    with between(agent, lie) as liar, pytest.raises(DeviceUnavailable, match=rf"{liar}: its answer is about the job"):
        remote(liar).measure([], model_file, examples=EXAMPLES)


def test_an_error_of_any_name_is_a_measurement_error(agent: Agent, tmp_path: Path) -> None:
    model_file = artifact(tmp_path / "model.onnx", relu())

    def lie(method: str, path: str, answer: bytes) -> bytes:
        status = json.loads(answer) if method == "GET" and "/jobs/" in path else {}
        wrong = {"answer": {"error": "UnknownName", "message": "what?"}}
        return json.dumps(status | wrong).encode() if status.get("answer") else answer

    with between(agent, lie) as liar, pytest.raises(MeasurementError, match=r"UnknownName: what\?"):
        remote(liar).measure([], model_file, examples=EXAMPLES)


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


@pytest.mark.parametrize("wait_s", [-1.0, float("inf"), float("nan")])
def test_a_wait_that_can_not_be_is_refused(wait_s: float) -> None:
    with pytest.raises(InvalidInput, match="wait_s"):
        HardwareProfile(name="boards", wait_s=wait_s)


def test_a_profile_says_how_long_to_wait(tmp_path: Path) -> None:
    (tmp_path / "boards.yaml").write_text(f"device: remote\naddresses: ['{NOBODY}']\nwait_s: 0.2\n")
    device = open_device(load_profile(str(tmp_path / "boards.yaml")))
    with pytest.raises(DeviceUnavailable, match=r"at most 0\.2 s"):
        device.measure([], artifact(tmp_path / "model.onnx", relu()), examples=EXAMPLES)


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


def test_the_machines_of_all_profiles_are_listed(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, address in (("phone", agent.address), ("server", NOBODY)):
        (tmp_path / f"{name}.yaml").write_text(f"device: remote\naddresses: ['{address}']\n")
    (tmp_path / "autocompress.yaml").write_text("hardware: [phone.yaml, server.yaml, fake]\n")
    monkeypatch.chdir(tmp_path)
    assert main(["device", "list"]) == 0
    phone, server, fake = capsys.readouterr().out.splitlines()
    assert phone.startswith(f"phone: {agent.address}: free; ")
    assert server.startswith(f"server: {NOBODY}: unavailable: no answer")
    assert fake == "fake: its device is 'fake', which needs no agent"
    assert main(["device", "list", "--hardware", "server.yaml", "--hardware", "fake"]) == 0
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == ["serve", "fake:"]


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
