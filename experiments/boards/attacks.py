"""What an agent does with models and clients that mean no good.

python experiments/boards/attacks.py [--python BOARD/bin/python] [--mutations 1000]   # Linux; ten minutes
python experiments/boards/attacks.py --show                                           # tables of the records
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from onnx import ModelProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.devices import resolve_profile
from autocompress.devices.agent.messages import Job, JobStatus
from autocompress.profile import Protocol
from autocompress.serialization import from_json, to_json, write_atomically
from experiments.boards.board import PORT, ROOT, TOKEN, Board, wait_for
from experiments.boards.mutations import MUTATIONS, SHAPE, network
from experiments.provenance import commit, machine, versions
from tests.agents import digest_of, endless, examples, huge, model, reaching, relu

RECORDS = Path(__file__).parent / "attacks.json"
QUICK = Protocol(warmup_runs=1, block_ms=1.0, min_cpu_s=0.02, max_cpu_s=0.05, interval=0.5)
OPTIONS = ("--max-upload", "8MiB", "--max-memory", "4GiB", "--max-seconds", "60", "--quota", "64MiB")
LARGEST_BYTES = 8 * 2**20
JOB_LIMIT_S = 10.0
"""Of a mutation, or of a model that does not end by itself."""

LOOK_EVERY = 25
"""Mutations between two looks at the agent's memory."""

_OUTCOMES = {
    "can't be loaded": "can't be loaded",
    "can't be run": "can't be run",
    "not done within the limit": "stopped at the limit of time",
    "ended with": "its process died",
    "takes .* inputs": "takes other inputs",
    "is .*; the example given is": "takes other inputs",
    "the runtime crashed on it": "its process died",
    "expected arrays of numbers": "gives no arrays",
}
"""Words of an error to the outcome that they stand for."""


@dataclass(frozen=True)
class Attack:
    """One attack, and how the agent was afterwards.

    Args:
        name: What was tried.
        outcome: Status code and error, or how the job ended.
        is_healthy: True if the agent answered and measured a good model afterwards.
    """

    name: str
    outcome: str
    is_healthy: bool


@dataclass(frozen=True)
class Study:
    """All attacks on one agent.

    Args:
        attacks: One by one; while they ran, the system calls on files of the agent and its jobs were written down.
        mutations: Kind of mutation to outcome to count.
        healthy: Times that the agent was asked for its health between mutations, and that it answered.
        seconds: What the mutations took.
        memory_bytes: Of the agent's process at the beginning, at most, and at the end.
        opened: How many different files were opened by the agent and its jobs.
        written: Files outside the agent's folder that were opened for writing, created, renamed or removed.
        read: Files outside the agent's folder, the interpreter, the libraries and the system's own that were opened.
        appeared: Files that appeared in or vanished from home and temporary folder, over all attacks.
    """

    commit: str
    machine: str
    versions: Mapping[str, str]
    attacks: tuple[Attack, ...]
    mutations: Mapping[str, Mapping[str, int]]
    healthy: tuple[int, int]
    seconds: float
    memory_bytes: tuple[int, int, int]
    opened: int
    written: tuple[str, ...]
    read: tuple[str, ...]
    appeared: tuple[str, ...]


def main() -> None:
    """Attack and record, or show what is recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the board's environment")
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--show", action="store_true", help="attack nothing")
    options = parser.parse_args()
    if not options.show:
        with tempfile.TemporaryDirectory() as folder:
            study = attack_all(options.python, options.mutations, Path(folder))
        write_atomically(options.records, to_json(study, indent=1) + "\n")
    show(from_json(Study, options.records.read_text()))


def attack_all(python: str, count: int, folder: Path) -> Study:
    """All attacks on one agent, whose home and temporary folder are its own."""
    state = commit()
    with Board(folder / "board", python=python, options=OPTIONS) as board:
        baits = {"secret.bin": board.folder / "home", "beside.bin": board.folder}
        for name, place in baits.items():
            (place / name).write_bytes(np.full(4, 42, np.float32).tobytes())
        good(board)
        files, first = _files(board), board.memory_bytes
        with _traced(board, folder / "trace") as trace:
            attacks = tuple(one_by_one(board))
        opened, written, read = _touched(trace.read_text(errors="replace"), board, python)
        started = time.monotonic()
        outcomes, healthy, most = mutate(board, count)
        seconds = time.monotonic() - started
        good(board)
        return Study(
            commit=state,
            machine=machine(resolve_profile("local")),
            versions=versions(),
            attacks=attacks,
            mutations=outcomes,
            healthy=healthy,
            seconds=round(seconds, 1),
            memory_bytes=(first, most, board.memory_bytes),
            opened=opened,
            written=tuple(sorted(written)),
            read=tuple(sorted(read)),
            appeared=tuple(sorted(_files(board) ^ files)),
        )


# -- asking ----------------------------------------------------------------------------------------------------------


def put(board: Board, content: bytes) -> str:
    """Send a file; its digest."""
    digest = digest_of(content)
    board.http.put(f"/files/{digest}", content=content).raise_for_status()
    return digest


def post(board: Board, job: Job) -> httpx.Response:
    """Ask for a job."""
    return board.http.post("/jobs", content=to_json(job), headers={"Content-Type": "application/json"})


def outcome_of(board: Board, content: bytes, given: bytes | None = None, limit_s: float = JOB_LIMIT_S) -> str:
    """How running a model ends."""
    job = Job("run", (put(board, content),), put(board, examples() if given is None else given), limit_s=limit_s)
    answer = post(board, job)
    if not answer.is_success:
        return _refusal(answer)
    return _ending(board, job)


def _ending(board: Board, job: Job) -> str:
    while True:
        status = from_json(JobStatus, board.http.get(f"/jobs/{job.id}", params={"wait_s": "20"}).content)
        if status.answer is not None:
            break
    message = re.sub(r"[0-9a-f]{64}", "MODEL", status.answer.message)
    return f"{status.answer.error}: {message}" if status.answer.error else "runs"


def _refusal(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.json()['error']}"


def good(board: Board) -> None:
    """Measure a good model, which must succeed."""
    digest = put(board, relu())
    job = Job("measure", (digest,), put(board, examples()), weighed=(digest,), protocol=QUICK)
    post(board, job).raise_for_status()
    if (ending := _ending(board, job)) != "runs":
        raise RuntimeError(f"a good model is no longer measured: {ending}")


# -- one by one ------------------------------------------------------------------------------------------------------


def one_by_one(board: Board) -> Iterator[Attack]:
    """Every attack of the list, and after each a look at the agent."""
    for name, attack in ATTACKS.items():
        outcome = attack(board)
        board.health()
        good(board)
        print(f"{name}: {outcome}", file=sys.stderr)
        yield Attack(name, outcome, True)


def _without(headers: Mapping[str, str]) -> Callable[[Board], str]:
    def ask(board: Board) -> str:
        asked = [("GET", "/capabilities"), ("PUT", f"/files/{'0' * 64}"), ("POST", "/jobs"), ("GET", "/jobs/x")]
        answers = [
            httpx.request(method, f"{board.address}/v1{path}", headers=headers, trust_env=False)
            for method, path in asked
        ]
        return ", ".join(dict.fromkeys(map(_refusal, answers)))

    return ask


def _oversize(board: Board) -> str:
    content = bytes(LARGEST_BYTES + 1)
    return _refusal(board.http.put(f"/files/{digest_of(content)}", content=content))


def _oversize_in_chunks(board: Board) -> str:
    content = bytes(LARGEST_BYTES + 1)
    chunks = (content[at : at + 2**20] for at in range(0, len(content), 2**20))
    return _refusal(board.http.put(f"/files/{digest_of(content)}", content=chunks))


def _other_content(board: Board) -> str:
    return _refusal(board.http.put(f"/files/{'0' * 64}", content=b"other"))


def _cut_off(board: Board) -> str:
    before = _kept(board)
    with _connection() as client:
        client.sendall(_head(digest_of(b"x" * 1000), 1000) + b"x" * 500)
        wait_for(lambda: len(_kept(board)) > len(before), limit_s=5)
    is_gone = wait_for(lambda: _kept(board) == before, limit_s=30)
    return "nothing is left" if is_gone else "half a file is left"


def _slow(board: Board) -> str:
    """A client that sends a byte a second, one that never ends its head, and one that says nothing."""
    started = time.monotonic()
    with _connection() as slow, _connection() as headless, _connection() as silent:
        slow.sendall(_head(digest_of(b"x" * 1000), 1000))
        headless.sendall(b"GET /v1/health HTTP/1.1\r\nHost")
        said = b""
        while not said and time.monotonic() - started < 60:
            slow.settimeout(1)
            try:
                slow.sendall(b"x")
                said = slow.recv(4096)
            except TimeoutError:
                continue
        ends = [_end(client) for client in (headless, silent)]
    line = said.split(b"\r\n")[0].decode()
    dropped = sum(end == b"" for end in ends)
    return f"{line}; {dropped} of 2 silent ones dropped; after {time.monotonic() - started:.0f} s"


def _many_connections(board: Board) -> str:
    clients = [socket.create_connection(("127.0.0.1", PORT), timeout=30) for _ in range(200)]
    answers = Counter(_status(client) for client in clients)
    for client in clients:
        client.close()
    wait_for(lambda: board.http.get("/health").is_success, limit_s=30)
    return ", ".join(f"{count} x {status}" for status, count in sorted(answers.items()))


def _status(client: socket.socket) -> str:
    client.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
    return client.recv(4096).split(b" ")[1].decode()


def _paths(board: Board) -> str:
    names = ("..%2F..%2Fhome%2Fsecret.bin", "%2Fetc%2Fpasswd", "..", "A" * 64)
    answers = [board.http.request(method, f"/files/{name}") for name in names for method in ("GET", "PUT")]
    return ", ".join(f"{count} x {status}" for status, count in Counter(one.status_code for one in answers).items())


def _nested(board: Board) -> str:
    return _refusal(board.http.post("/jobs", content=b"[" * 200_000, headers={"Content-Type": "application/json"}))


def _bomb(board: Board) -> str:
    """Examples of 16 GiB as their header says, in an archive of a megabyte that unpacks to 1 GiB."""
    content = io.BytesIO()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1, 2**32)})
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("arr_0.npy", "w") as file:
        file.write(header.getvalue())
        for _ in range(1024):
            file.write(bytes(2**20))
    return outcome_of(board, relu(), content.getvalue())


class _Trap:
    """Leaves a folder where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


def _pickled(board: Board) -> str:
    return outcome_of(board, relu(), examples(np.array([_Trap()], dtype=object)))


def _runs(content: Callable[[], bytes]) -> Callable[[Board], str]:
    return lambda board: outcome_of(board, content())


def _operator(operator: str, domain: str, **attributes: str) -> Callable[[Board], str]:
    made = ModelProto.FromString(model([helper.make_node(operator, ["x"], ["y"], domain=domain, **attributes)]))
    made.opset_import.add(domain=domain, version=1)
    return lambda board: outcome_of(board, made.SerializeToString())


ATTACKS: Mapping[str, Callable[[Board], str]] = {
    "no token": _without({}),
    "wrong token": _without({"Authorization": "Bearer wrong"}),
    "oversize, announced": _oversize,
    "oversize, in chunks": _oversize_in_chunks,
    "content of another digest": _other_content,
    "upload cut off": _cut_off,
    "slow and silent clients": _slow,
    "200 connections at one time": _many_connections,
    "names of files that are paths": _paths,
    "a job of 200,000 brackets": _nested,
    "an empty model": _runs(lambda: b""),
    "text as model": _runs(lambda: b"this is no model"),
    "an archive as model": _runs(examples),
    "a truncated model": _runs(lambda: network()[:700]),
    "ONNX Runtime's own format": _runs(lambda: b"\x20\0\0\0ORTM" + bytes(100)),
    "external data in ../": _runs(lambda: reaching("../../../home/secret.bin")),
    "external data in an absolute path": _runs(lambda: reaching("/etc/passwd")),
    "external data beside the model": _runs(lambda: reaching("log")),
    "external data in a constant": _runs(lambda: reaching("../../../home/secret.bin", in_constant=True)),
    "an operator of a library": _operator("Evil", "evil.so"),
    "a compiled context in a file": _operator(
        "EPContext", "com.microsoft", ep_cache_context="../../../home/secret.bin", source="x"
    ),
    "an operator of Python": _operator("PyOp", "pyopmulti_1", module="os", class_name="system"),
    "a tensor of 400 GB": _runs(huge),
    "an endless loop": lambda board: outcome_of(board, endless(), limit_s=3.0),
    "examples that unpack to more than memory": _bomb,
    "pickled examples": _pickled,
}


def _connection() -> socket.socket:
    return socket.create_connection(("127.0.0.1", PORT), timeout=60)


def _head(digest: str, length: int) -> bytes:
    lines = (f"PUT /v1/files/{digest} HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}")
    return "\r\n".join((*lines, f"Content-Length: {length}", "", "")).encode()


def _end(client: socket.socket) -> bytes:
    """What comes until the agent closes the connection."""
    try:
        return client.recv(4096)
    except ConnectionResetError:
        return b""


# -- mutations -------------------------------------------------------------------------------------------------------


def mutate(board: Board, count: int) -> tuple[dict[str, dict[str, int]], tuple[int, int], int]:
    """Run mutations of a good model; outcomes by kind, looks at the agent's health and successes, most memory."""
    random, kinds = np.random.default_rng(0), list(MUTATIONS.items())
    given = examples(np.ones(SHAPE, np.float32))
    found: dict[str, Counter[str]] = {kind: Counter() for kind in MUTATIONS}
    looks, most = [], 0
    if (ending := outcome_of(board, network(), given)) != "runs":
        raise RuntimeError(f"the model does not run as it is: {ending}")
    for number in range(count):
        kind, mutation = kinds[number % len(kinds)]
        found[kind][_short(outcome_of(board, mutation(random), given))] += 1
        if number % LOOK_EVERY == 0:
            looks.append(board.health()["status"] == "ok")
            most = max(most, board.memory_bytes)
            print(f"{number} mutations", file=sys.stderr)
    return {kind: dict(counts) for kind, counts in found.items()}, (len(looks), sum(looks)), most


def _short(outcome: str) -> str:
    """The outcome that an error stands for."""
    for words, short in _OUTCOMES.items():
        if "another file" in outcome or "reaches out" in outcome:
            return "refused: reaches out of its file"
        if re.search(words, outcome):
            return short
    return outcome


# -- files -----------------------------------------------------------------------------------------------------------

_CALL = re.compile(r'(\w+)\((?:AT_FDCWD, |\d+, )?"([^"]*)"(.*)')
_WRITING = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC")
_CHANGING = frozenset(
    {
        "mkdir",
        "mkdirat",
        "unlink",
        "unlinkat",
        "rename",
        "renameat",
        "renameat2",
        "link",
        "linkat",
        "symlink",
        "symlinkat",
        "rmdir",
        "chmod",
        "fchmodat",
        "truncate",
        "creat",
    }
)
_SYSTEM = ("/lib", "/usr", "/proc", "/sys", "/dev", "/etc/ld.so", "/etc/localtime", "/etc/ssl", "/opt")


@contextmanager
def _traced(board: Board, trace: Path) -> Iterator[Path]:
    """Write down all system calls on files of the agent and of what it starts."""
    command = ["strace", "-f", "-qq", "-s", "300", "-e", "trace=%file", "-o", str(trace), "-p", str(board.pid)]
    if shutil.which("strace") is None:
        raise RuntimeError("strace is not installed; install it by: apt install strace")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracer:
        wait_for(lambda: trace.exists() and tracer.poll() is None, limit_s=10)
        time.sleep(1)
        try:
            yield trace
        finally:
            tracer.terminate()


def _touched(trace: str, board: Board, python: str) -> tuple[int, set[str], set[str]]:
    """How many files were opened, those outside that were changed, and those outside that were only opened."""
    own = (str(board.folder / "agent"), str(board.folder / "temporary"))
    environment = (str(Path(python).parents[1]), str(Path(python).resolve().parents[1]), sys.base_prefix)
    code = str(ROOT / "autocompress")
    opened, written, read = set(), set(), set()
    for line in trace.splitlines():
        if not (found := _CALL.search(line)) or " = -1 " in line:
            continue
        call, path, rest = found.groups()
        if not path.startswith("/"):  # beneath the folder of a job, unless it climbs
            path = path if ".." in path else f"{own[0]}/{path}"
        changes = call in _CHANGING or any(word in rest for word in _WRITING)
        if call.startswith("open"):
            opened.add(path)
        if changes and not path.startswith((*own, "/dev/null", "/dev/shm")):
            written.add(f"{call} {re.sub(r'/proc/(self|[0-9]+)/', '/proc/JOB/', _named(path, board))}")
        if call.startswith("open") and not changes and not path.startswith((*own, *environment, code, *_SYSTEM)):
            read.add(_named(path, board))
    return len(opened), written, read


def _named(path: str, board: Board) -> str:
    return path.replace(str(board.folder), "BOARD").replace(str(ROOT), "CHECKOUT")


def _files(board: Board) -> set[str]:
    """All files of the board outside the agent's own folder."""
    kept = (path.relative_to(board.folder) for path in board.folder.rglob("*"))
    return {str(path) for path in kept if path.parts[0] != "agent"}


def _kept(board: Board) -> set[str]:
    """Names of all files that the agent has, unfinished ones too."""
    return {path.name for name in ("files", "incoming") for path in (board.folder / "agent" / name).iterdir()}


# -- showing ---------------------------------------------------------------------------------------------------------


def show(study: Study) -> None:
    """The tables."""
    print(f"commit {study.commit}, {study.machine}\n")
    print("| attack | what the agent says | afterwards |\n| --- | --- | --- |")
    for one in study.attacks:
        print(f"| {one.name} | {one.outcome} | {'healthy, measures' if one.is_healthy else 'broken'} |")
    outcomes = sorted({outcome for counts in study.mutations.values() for outcome in counts})
    print(f"\n| mutation | {' | '.join(outcomes)} |\n| --- |{' --: |' * len(outcomes)}")
    for kind, counts in study.mutations.items():
        print(f"| {kind} | {' | '.join(str(counts.get(outcome, 0)) for outcome in outcomes)} |")
    first, most, last = (size / 2**20 for size in study.memory_bytes)
    print(f"\nmutations took {study.seconds:.0f} s; healthy {study.healthy[1]} of {study.healthy[0]} times")
    print(f"memory of the agent: {first:.1f} MiB before, {most:.1f} MiB at most, {last:.1f} MiB after")
    print(f"{study.opened} files opened; outside: changed {json.dumps(study.written)}, read {json.dumps(study.read)}")
    print(f"files that appeared or vanished in home and temporary folder: {json.dumps(study.appeared)}")


if __name__ == "__main__":
    main()
