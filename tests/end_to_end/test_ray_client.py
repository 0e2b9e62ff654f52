"""A search from outside of a Ray cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import environment, project, show

from autocompress.executors._ray.folders import OF_NODE, OF_SHELF

pytest.importorskip("ray")
pytest.importorskip("grpc", reason="Ray's client is not installed")

APART = """
import sys
from autocompress.cli import main
from autocompress.executors.ray import RayExecutor

began = RayExecutor.begin

def begin_apart(executor, run):
    began(executor, run)
    executor.site.marker.unlink()  # so that the nodes, on the same machine, do not see the folder

RayExecutor.begin = begin_apart
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def head() -> Iterator[tuple[str, Path]]:
    """The address of a head's client server, and the folder for temporary files there, whose path has to be short."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    port, client_port = free_port(), free_port()
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    command += [
        f"--port={port}",
        f"--ray-client-server-port={client_port}",
        "--num-cpus=2",
        "--include-dashboard=false",
    ]
    own = {"TMPDIR": str(folder), "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled"}
    with (
        (folder / "log.txt").open("w") as log,
        subprocess.Popen(
            command, cwd=folder, env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            until = time.monotonic() + 60
            while not answers(client_port):
                is_starting = process.poll() is None and time.monotonic() < until
                assert is_starting, (folder / "log.txt").read_text()
                time.sleep(0.2)
            yield f"ray://127.0.0.1:{client_port}", folder
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_search_from_outside_has_its_files_and_leaves_none_in_the_cluster(
    head: tuple[str, Path], tmp_path: Path
) -> None:
    address, temporary = head
    folder = project(tmp_path / "project")
    words = ["search", "task.py", "--executor", "ray", "--address", address, "--trials", "3", "--workers", "2"]
    words += ["--hardware", "fake", "--strategy", "random", "--output", "run"]
    for _ in range(3):  # Ray starts a server for each client, and gives up after 30 s on a machine that is too busy
        done = subprocess.run(
            [sys.executable, "-c", APART, *words],
            cwd=folder,
            env=environment(folder) | {"RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if "can't be reached" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    shown = show(folder / "run")
    assert shown["trials"]["complete"] >= 1
    for point in (shown["baseline"], *shown["front"]):
        assert Path(point["file"]).stat().st_size == point["size_bytes"]
    listed = json.loads((folder / "run" / "front" / "front.json").read_text())["front"]
    assert {point["file"] for point in listed} <= {path.name for path in (folder / "run" / "front").iterdir()}
    assert not [*temporary.glob(f"{OF_NODE}*"), *temporary.glob(f"{OF_SHELF}*")]
