"""The agent as strangers meet it: a real one, in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from autocompress.cli import main
from autocompress.cli.application import app
from autocompress.devices.agent.bodies import Patience
from autocompress.devices.agent.messages import Capabilities, Job
from autocompress.devices.agent.server import ServerOptions, read_token
from autocompress.errors import InvalidInput
from autocompress.serialization import from_json
from tests.agents import (
    LIMITS,
    ROOT,
    Agent,
    digest_of,
    endless,
    examples,
    huge,
    model,
    reaching,
    relu,
    running_agent,
    wait_for,
)

TOKEN = "a-secret-of-the-tests"
NOWHERE = "0" * 64


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    folder = tmp_path_factory.mktemp("shared")
    with running_agent(folder, token=TOKEN, patience=Patience(grace_s=0.4, bytes_per_s=2**20)) as agent:
        yield agent


@pytest.fixture
def agent(shared: Agent) -> Iterator[Agent]:
    """The agent, which must be there and idle after each test."""
    yield shared
    wait_for(lambda: shared.jobs == 0)


@pytest.fixture
def works_afterwards(shared: Agent) -> Iterator[None]:
    """The agent must still do its work after the test."""
    yield
    done = shared.finish(run_of(shared, relu()))
    assert done.answer is not None
    assert not done.answer.error


def run_of(agent: Agent, content: bytes, **options: object) -> Job:
    """A run of a model, whose files are sent."""
    return Job("run", (agent.put(content),), agent.put(examples()), **options)  # type: ignore[arg-type]


def error_of(agent: Agent, job: Job) -> tuple[str, str]:
    """What goes wrong with a job."""
    answer = agent.finish(job).answer
    assert answer is not None
    return answer.error, answer.message


def stored(agent: Agent) -> set[str]:
    """Names of all files that the agent has, unfinished ones too."""
    kept = agent.folder / "agent"
    return {path.name for path in (*(kept / "files").iterdir(), *(kept / "incoming").iterdir())}


# -- who may ask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/capabilities"), ("PUT", f"/files/{NOWHERE}"), ("POST", "/jobs"), ("DELETE", "/jobs/x"), ("GET", "/x")],
)
def test_nothing_but_health_is_told_without_the_token(
    agent: Agent, method: str, path: str, header: dict[str, str]
) -> None:
    answer = httpx.request(method, f"{agent.address}/v1{path}", headers=header, trust_env=False)
    assert answer.status_code == 401
    assert answer.json()["error"] == "Unauthorized"


def test_health_needs_no_token(agent: Agent) -> None:
    assert httpx.get(f"{agent.address}/v1/health", trust_env=False).json()["status"] == "ok"


def test_an_agent_that_others_can_reach_needs_a_token() -> None:
    with pytest.raises(InvalidInput, match=r"0\.0\.0\.0.*token"):
        ServerOptions(host="0.0.0.0")
    assert ServerOptions(host="0.0.0.0", token="secret")
    assert ServerOptions(host="::1")


@pytest.mark.parametrize("content", ["", " \n", "two words", "naïve"])
def test_a_token_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInput, match="token"):
        read_token(tmp_path / "token")


def test_the_machine_says_what_it_is(agent: Agent) -> None:
    machine = from_json(Capabilities, agent.http.get("/capabilities").content)
    assert machine.limits == LIMITS
    assert "CPUExecutionProvider" in machine.providers
    assert machine.processor
    assert machine.runtime.startswith("onnxruntime ")


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_comes_back_as_it_was_sent(agent: Agent) -> None:
    content = os.urandom(300_000)
    digest = digest_of(content)
    assert agent.http.head(f"/files/{digest}").status_code == 404
    agent.put(content)
    assert agent.http.head(f"/files/{digest}").status_code == 200
    assert agent.http.get(f"/files/{digest}").content == content


def test_content_of_another_digest_is_refused_and_leaves_nothing(agent: Agent) -> None:
    before = stored(agent)
    answer = agent.http.put(f"/files/{NOWHERE}", content=b"something else")
    assert (answer.status_code, answer.json()["error"]) == (422, "BadContent")
    assert stored(agent) == before


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(agent: Agent, announced: bool) -> None:
    content = bytes(LIMITS.upload_bytes + 1)
    before = stored(agent)
    chunks = content if announced else iter([content[: 2**19], content[2**19 :]])
    answer = agent.http.put(f"/files/{digest_of(content)}", content=chunks)
    assert (answer.status_code, answer.json()["error"]) == (413, "TooLarge")
    assert stored(agent) == before


@pytest.mark.usefixtures("works_afterwards")
def test_a_body_that_was_cut_off_leaves_nothing(agent: Agent) -> None:
    before = stored(agent)
    with connection(agent) as client:
        client.sendall(head(agent, "PUT", digest_of(b"x" * 1000), 1000) + b"x" * 500)
        wait_for(lambda: len(stored(agent)) > len(before))
    wait_for(lambda: stored(agent) == before)


@pytest.mark.parametrize("name", ["..%2F..%2Fetc%2Fpasswd", "passwd", "A" * 64, "0" * 63, f"{'0' * 64}%0A"])
def test_names_are_digests_and_nothing_else(agent: Agent, name: str) -> None:
    assert agent.http.get(f"/files/{name}").status_code == 404
    assert agent.http.put(f"/files/{name}", content=b"x").status_code == 404


def test_the_file_used_longest_ago_makes_room(tmp_path: Path) -> None:
    with running_agent(tmp_path, quota_bytes=2500) as agent:
        first, second = agent.put(b"1" * 1000), agent.put(b"2" * 1000)
        agent.http.head(f"/files/{first}")
        third = agent.put(b"3" * 1000)
        assert stored(agent) == {first, third}
        assert agent.http.head(f"/files/{second}").status_code == 404


# -- clients that are slow or gone -----------------------------------------------------------------------------------


def connection(agent: Agent) -> socket.socket:
    return socket.create_connection(("127.0.0.1", agent.port), timeout=30)


def head(agent: Agent, method: str, digest: str, length: int) -> bytes:
    """The head of a request for a file."""
    lines = (f"{method} /v1/files/{digest} HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}")
    return "\r\n".join((*lines, f"Content-Length: {length}", "", "")).encode()


def end_of(client: socket.socket) -> bytes:
    """All that comes until the agent closes the connection."""
    received = b""
    try:
        while chunk := client.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass  # that is how it drops a client
    return received


@pytest.mark.parametrize("said", [b"", b"GET /v1/health HTTP/1.1\r\nHost"])
def test_a_client_that_never_asks_is_dropped(agent: Agent, said: bytes) -> None:
    with connection(agent) as client:
        client.sendall(said)
        assert end_of(client) == b""


@pytest.mark.usefixtures("works_afterwards")
def test_a_client_that_stops_in_the_middle_is_told_and_dropped(agent: Agent) -> None:
    before = stored(agent)
    with connection(agent) as client:
        client.sendall(head(agent, "PUT", digest_of(b"x" * 1000), 1000) + b"x" * 500)
        assert b"408 Request Timeout" in end_of(client).splitlines()[0]
    assert stored(agent) == before


@pytest.mark.usefixtures("works_afterwards")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_client_that_does_not_read_is_dropped(agent: Agent) -> None:
    digest, count = agent.put(bytes(LIMITS.upload_bytes)), 30
    with connection(agent) as client:
        client.sendall(head(agent, "GET", digest, 0) * count)
        wait_for(lambda: not connected(agent, client))
        assert len(end_of(client)) < count * LIMITS.upload_bytes


def connected(agent: Agent, client: socket.socket) -> bool:
    """True while the agent's end of a connection is open."""
    here, there = f":{agent.port:04X}", f":{client.getsockname()[1]:04X}"
    lines = Path(f"/proc/{agent.process.pid}/net/tcp").read_text().splitlines()[1:]
    established = [line.split() for line in lines if line.split()[3] == "01"]
    return any(fields[1].endswith(here) and fields[2].endswith(there) for fields in established)


def test_a_job_that_nobody_asks_about_ends(tmp_path: Path) -> None:
    with running_agent(tmp_path, limits=replace(LIMITS, lease_s=0.5)) as agent:
        agent.submit(run_of(agent, endless()))
        wait_for(lambda: agent.jobs == 0)
        assert "nobody asked about the job" in agent.said


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_run_gives_the_outputs(agent: Agent, tmp_path: Path) -> None:
    done = agent.finish(run_of(agent, relu()))
    (tmp_path / "outputs.npz").write_bytes(agent.http.get(f"/files/{done.outputs}").content)
    with np.load(tmp_path / "outputs.npz", allow_pickle=False) as file:
        assert file["arr_0"].tolist() == [[0, 0, 1, 2]]


@pytest.mark.usefixtures("works_afterwards")
def test_a_file_that_is_no_model_is_an_answer(agent: Agent) -> None:
    name, message = error_of(agent, run_of(agent, b"this is no model"))
    assert name == "MeasurementError"
    assert message.startswith(f"{digest_of(b'this is no model')}.onnx: can't be loaded")


@pytest.mark.parametrize("how", ["beside", "above", "absolute"])
@pytest.mark.parametrize("kind", ["run", "measure"])
def test_weights_in_other_files_are_refused(agent: Agent, how: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(np.full(4, 42, np.float32).tobytes())
    location = {"beside": "log", "above": "../../../secret.bin", "absolute": str(tmp_path / "secret.bin")}[how]
    job = run_of(agent, reaching(location))
    assert "another file" in error_of(agent, replace(job, kind=kind))[1]  # type: ignore[arg-type]


@pytest.mark.usefixtures("works_afterwards")
def test_an_endless_model_is_stopped(agent: Agent) -> None:
    name, message = error_of(agent, run_of(agent, endless(), limit_s=1.5))
    assert name == "MeasurementError"
    assert "limit of 1.5 s" in message


@pytest.mark.usefixtures("works_afterwards")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of another process")
def test_a_model_that_wants_all_memory_is_stopped(agent: Agent) -> None:
    name, message = error_of(agent, run_of(agent, huge()))
    assert name == "MeasurementError"
    assert "ShapeInferenceError" not in message, "it is not for its form that it does not run"


def test_outputs_that_are_no_arrays_are_refused(agent: Agent) -> None:
    sequence = model([helper.make_node("SequenceConstruct", ["x"], ["s"]), helper.make_node("Identity", ["s"], ["y"])])
    assert error_of(agent, run_of(agent, sequence))[0] == "MeasurementError"
    text = model([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)], output=TensorProto.STRING)
    assert "text" in error_of(agent, run_of(agent, text))[1]


@pytest.mark.usefixtures("works_afterwards")
def test_examples_of_python_objects_are_not_unpickled(agent: Agent) -> None:
    array = np.array([Trap()], dtype=object)
    job = replace(run_of(agent, relu()), examples=agent.put(examples(array)))
    name, message = error_of(agent, job)
    assert name == "MeasurementError"
    assert message.startswith("the examples can't be read: ")
    assert "allow_pickle" in message
    assert not Path(TRAPPED).exists()


TRAPPED = str(Path(tempfile.gettempdir()) / f"autocompress-test-trapped-{os.getpid()}")


class Trap:
    """Leaves a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (TRAPPED,)


@pytest.mark.usefixtures("works_afterwards")
@pytest.mark.parametrize("content", [b"", b"no archive", examples()[:100]])
def test_examples_that_are_no_arrays_are_an_answer(agent: Agent, content: bytes) -> None:
    job = replace(run_of(agent, relu()), examples=agent.put(content))
    assert "the examples can't be read" in error_of(agent, job)[1]


@pytest.mark.usefixtures("works_afterwards")
def test_a_running_job_can_be_cancelled(agent: Agent) -> None:
    name = agent.submit(run_of(agent, endless()))
    wait_for(lambda: agent.status(name).state == "running")
    assert agent.http.delete(f"/jobs/{name}").json()["answer"]["message"] == "the job was cancelled"


@pytest.mark.usefixtures("works_afterwards")
def test_a_full_queue_takes_no_more(agent: Agent) -> None:
    job = run_of(agent, endless())
    names = [agent.submit(replace(job, id=f"{number:032}")) for number in range(LIMITS.queued_jobs)]
    answer = agent.post(job)
    assert (answer.status_code, answer.json()["error"]) == (429, "Busy")
    agent.http.delete(f"/jobs/{names[0]}")
    assert agent.post(job, if_free=True).status_code == 429
    for name in reversed(names):
        agent.http.delete(f"/jobs/{name}")


@pytest.mark.usefixtures("works_afterwards")
def test_a_job_that_is_sent_twice_is_done_once(agent: Agent) -> None:
    job, before = run_of(agent, relu()), agent.said.count(": done")
    assert agent.submit(job) == agent.submit(job) == job.id
    first = agent.finish(job)
    assert agent.finish(job) == first
    assert agent.said.count(": done") - before == 1
    assert agent.post(replace(job, limit_s=7.0)).status_code == 422, "another job of that name"


@pytest.mark.usefixtures("works_afterwards")
def test_a_job_that_is_sent_again_after_it_was_cancelled_is_done_anew(agent: Agent) -> None:
    job = run_of(agent, relu())
    blocking = agent.submit(run_of(agent, endless()))
    agent.submit(job)
    agent.http.delete(f"/jobs/{job.id}")
    agent.http.delete(f"/jobs/{blocking}")
    done = agent.finish(job)
    assert done.answer is not None
    assert not done.answer.error


def test_a_job_whose_outputs_have_made_room_is_done_anew(tmp_path: Path) -> None:
    with running_agent(tmp_path, quota_bytes=3000) as agent:
        job = run_of(agent, relu())
        outputs = agent.finish(job).outputs
        agent.put(bytes(2900))
        assert agent.http.get(f"/files/{outputs}").status_code == 404
        run_of(agent, relu())  # sends its files again
        assert agent.finish(job).outputs == outputs
        assert agent.http.get(f"/files/{outputs}").status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("no JSON", 422),
        ("[]", 422),
        ('{"kind": "erase", "models": [], "examples": ""}', 422),
        (f'{{"kind": "run", "models": ["../x"], "examples": "{NOWHERE}"}}', 422),
        (f'{{"kind": "run", "models": ["{NOWHERE}"], "examples": "{NOWHERE}", "threads": 9999}}', 422),
        (f'{{"kind": "run", "models": ["{NOWHERE}"], "examples": "{NOWHERE}", "limit_s": Infinity}}', 422),
        (f'{{"kind": "run", "models": ["{NOWHERE}"], "examples": "{NOWHERE}", "batch_size": 0}}', 422),
        (f'{{"kind": "run", "models": ["{NOWHERE}"], "examples": "{NOWHERE}", "id": "../x"}}', 422),
        (f'{{"kind": "run", "models": ["{NOWHERE}"], "examples": "{NOWHERE}"}}', 404),
        (" " * 300_000, 413),
        ("[" * 200_000, 422),
    ],
)
def test_jobs_that_can_not_be_are_refused(agent: Agent, body: str, status: int) -> None:
    answer = agent.http.post("/jobs", content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.json().keys() == {"error", "message"}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_job_that_is_not_there_is_not_found(agent: Agent, method: str) -> None:
    assert agent.http.request(method, "/jobs/none").status_code == 404


# -- beginning and end -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("how", ["close", "kill"])
def test_no_process_is_left_when_the_agent_ends(how: str, tmp_path: Path) -> None:
    with running_agent(tmp_path) as agent:
        name = agent.submit(run_of(agent, endless()))
        wait_for(lambda: agent.status(name).state == "running")
        children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
        wait_for(lambda: bool(children.read_text().split()))
        child = Path("/proc") / children.read_text().split()[0]
        getattr(agent, how)()
        wait_for(lambda: not child.exists() or "Z" in (child / "stat").read_text().split())


def test_two_agents_do_not_share_a_folder(tmp_path: Path) -> None:
    with running_agent(tmp_path), pytest.raises(AssertionError, match="another agent uses it"):
        Agent(tmp_path)


def test_what_the_agent_requires_is_part_of_what_the_package_requires(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "requirements"]) == 0
    wanted = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert wanted
    assert set(wanted) < set(project["dependencies"])


def test_the_command_refuses_to_serve_others_without_a_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AUTOCOMPRESS_TOKEN", raising=False)
    assert main(["device", "serve", "--host", "0.0.0.0"]) == 2
    assert "--token-file" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["512", "0MiB", "much", "-1GiB"])
def test_a_size_that_is_none_is_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "serve", "--max-upload", size]) == 2
    assert "512MiB or 4GiB" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "list", "check", "requirements"])
def test_the_help_of_every_command_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, ["device", command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"Example: autocompress device {command}" in result.output


HEAVY = {"torch", "onnx", "optuna", "pandas", "onnxruntime", "httpx", "scipy", "sklearn"}


def test_the_agent_starts_without_torch_onnx_and_optuna() -> None:
    code = (
        "import sys; from autocompress.cli import application; import autocompress.devices.agent.server; "
        "import autocompress.devices.agent._job; "
        f"print(*sys.modules.keys() & {HEAVY!r})"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == ""
