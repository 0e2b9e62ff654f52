"""Real agents for tests, each in a process and a folder of its own."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

import autocompress
from autocompress.artifact import Artifact
from autocompress.devices.agent.bodies import Patience
from autocompress.devices.agent.messages import Health, Job, JobStatus, Limits
from autocompress.devices.agent.server import ServerOptions
from autocompress.serialization import from_json, to_json

LIMITS = Limits(upload_bytes=2**20, memory_bytes=4 * 2**30, job_s=60.0, queued_jobs=4)
ROOT = Path(autocompress.__file__).parents[1]

_SCRIPT = """
import logging, sys
from autocompress.devices.agent.server import ServerOptions, serve
from autocompress.serialization import from_json
logging.basicConfig(level=logging.INFO)
serve(from_json(ServerOptions, sys.argv[1]), lambda address: print(address, flush=True))
"""


def wait_for(condition: Callable[[], bool]) -> None:
    """Look every 20 ms until a condition holds; pytest's own time limit ends it otherwise."""
    while not condition():
        time.sleep(0.02)


class Agent:
    """An agent that runs.

    Args:
        folder: Files, temporary ones too, so that no lease is shared with other tests.
        port: 0 for any.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        token: str = "",
        limits: Limits = LIMITS,
        quota_bytes: int = 2**24,
        patience: Patience | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        certificate, key = tls or (None, None)
        self.folder, self._log = folder, folder / "log"
        options = ServerOptions(
            port=port,
            token=token,
            limits=limits,
            folder=folder / "agent",
            quota_bytes=quota_bytes,
            patience=patience or Patience(),
            certificate=certificate,
            key=key,
        )
        environment = {key: value for key, value in os.environ.items() if key != "AUTOCOMPRESS_TOKEN"}
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SCRIPT, json.dumps(asdict(options), default=str)],
                env=environment | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            self.process.wait()
            self.process.stdout.close()
            raise AssertionError(self.said)
        self.port = int(self.address.rpartition(":")[2])
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(
            base_url=f"{self.address}/v1", headers=headers, timeout=60.0, trust_env=False, verify=False
        )

    @property
    def said(self) -> str:
        """Its log."""
        return self._log.read_text()

    @property
    def jobs(self) -> int:
        """Unfinished ones."""
        return from_json(Health, self.http.get("/health").content).jobs

    def put(self, content: bytes) -> str:
        """Send a file, which must be taken; its digest."""
        digest = digest_of(content)
        answer = self.http.put(f"/files/{digest}", content=content)
        assert answer.status_code == 201, answer.text
        return digest

    def post(self, job: Job, *, if_free: bool = False) -> httpx.Response:
        """Ask for a job."""
        return self.http.post(
            f"/jobs?if_free={if_free:d}", content=to_json(job), headers={"Content-Type": "application/json"}
        )

    def submit(self, job: Job) -> str:
        """Ask for a job, which must be taken; its name."""
        answer = self.post(job)
        assert answer.status_code == 202, answer.text
        return from_json(JobStatus, answer.content).id

    def status(self, name: str, wait_s: float = 0) -> JobStatus:
        """How far a job is."""
        return from_json(JobStatus, self.http.get(f"/jobs/{name}", params={"wait_s": wait_s}).content)

    def finish(self, job: Job) -> JobStatus:
        """Ask for a job and wait for its end."""
        name = self.submit(job)
        while (status := self.status(name, 20)).state != "done":
            pass
        return status

    def kill(self) -> None:
        """As when the power fails."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it as Ctrl-C does."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def running_agent(folder: Path, **options: object) -> Iterator[Agent]:
    """An agent that ends with the block."""
    agent = Agent(folder, **options)  # type: ignore[arg-type]
    try:
        yield agent
    finally:
        agent.close()


@contextmanager
def between(agent: Agent, change: Callable[[str, str, bytes], bytes | None]) -> Iterator[str]:
    """The address of a server that passes all on to an agent, and its answers back as they are changed.

    Args:
        change: Method, path and body of an answer to the body that is passed on, or None to close the connection.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            if self.headers.get("transfer-encoding"):
                body = b"".join(self.chunks())
            else:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
            kind = {"Content-Type": self.headers.get("content-type", "")}
            answer = agent.http.request(
                self.command, f"{agent.address}{self.path}", content=body, headers=kind if body else {}
            )
            changed = change(self.command, self.path, answer.content)
            if changed is None:
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(changed)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else changed)

        def chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def digest_of(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def model(
    nodes: list[NodeProto], initializers: list[TensorProto] | None = None, output: int = TensorProto.FLOAT
) -> bytes:
    """An ONNX file from `x`, float (1, 4), to `y`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", output, None)],
        initializers or [],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = made.SerializeToString()
    return content


def relu() -> bytes:
    """A model that ends at once."""
    return model([helper.make_node("Relu", ["x"], ["y"])])


def endless() -> bytes:
    """A model that never ends: a Loop without a last iteration."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 4]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 4]),
        ],
    )
    always = helper.make_tensor("always", TensorProto.BOOL, [], [True])
    return model([helper.make_node("Loop", ["", "always", "x"], ["y"], body=body)], [always])


def huge() -> bytes:
    """A model of a few bytes whose only tensor takes 400 GB."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [100_000_000_000, 1])
    return model(
        [helper.make_node("ConstantOfShape", ["shape"], ["z"]), helper.make_node("Add", ["x", "z"], ["y"])], [shape]
    )


def reaching(location: str, *, in_constant: bool = False) -> bytes:
    """A model whose weights are said to lie in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    add = helper.make_node("Add", ["x", "w"], ["y"])
    return (
        model([helper.make_node("Constant", [], ["w"], value=weight), add]) if in_constant else model([add], [weight])
    )


def examples(*arrays: np.ndarray) -> bytes:
    """Arrays as an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, *(arrays or (np.array([[-1, 0, 1, 2]], np.float32),)))
    return buffer.getvalue()


def artifact(path: Path, content: bytes) -> Artifact:
    """A model as a file."""
    path.write_bytes(content)
    onnx.load(path, load_external_data=False)
    return Artifact.of(path)
