"""A search whose study is in PostgreSQL while optuna-dashboard shows it: killed, resumed, cut off from the server.

python experiments/storage/run.py [--trials 24]    # writes record.json
python experiments/storage/run.py --show           # the tables of the README
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import optuna

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.devices.detection import detect_profile
from autocompress.run_directory import RunDirectory
from autocompress.serialization import dumps, write_atomically
from experiments.provenance import commit, machine, versions
from experiments.storage.postgres import Server, server

ROOT, HERE = Path(__file__).resolve().parents[2], Path(__file__).parent

AWAY_TRIALS = 2
"""Trials that end without the server."""

TROUBLE = re.compile(r"\b(dead)?lock(ed)?\b|Traceback|ERROR|FATAL|PANIC")
"""What no log may hold."""


class Watcher:
    """Asks a dashboard every second for all studies and for the trials of each, and keeps what it answers by phase."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.phase = "search"
        self.answers: dict[str, Counter[str]] = {}
        self.slowest_s: dict[str, float] = {}
        self.trials: dict[str, int] = {}

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._address, timeout=30) as client:
            while not self._is_over.wait(1.0):
                phase, began = self.phase, time.monotonic()
                said = self._ask(client, phase)
                self.answers.setdefault(phase, Counter())[said] += 1
                self.slowest_s[phase] = max(self.slowest_s.get(phase, 0.0), time.monotonic() - began)

    def _ask(self, client: httpx.Client, phase: str) -> str:
        try:
            listed = client.get("/api/studies")
            if listed.status_code != 200:
                return f"{listed.status_code} for the studies"
            for study in listed.json()["study_summaries"]:
                found = client.get(f"/api/studies/{study['study_id']}")
                if found.status_code != 200:
                    return f"{found.status_code} for a study"
                self.trials[phase] = len(found.json()["trials"])
        except httpx.HTTPError as error:
            return type(error).__name__
        return "200"


@contextmanager
def dashboard(database: Server, log: Path) -> Iterator[str]:
    """The address of an optuna-dashboard that shows a database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), database.url, "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=with_password(database))
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(address))
        yield address
    finally:
        process.terminate()
        process.wait()


def answers(address: str) -> bool:
    try:
        return httpx.get(address, follow_redirects=True).is_success
    except httpx.HTTPError:
        return False


def until(is_so: Callable[[], bool], *, seconds: float = 900) -> None:
    """Wait for something.

    Raises:
        SystemExit: If it does not come.
    """
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise SystemExit("waited in vain")
        time.sleep(0.2)


def with_password(database: Server) -> Mapping[str, str]:
    return {**os.environ, "PGPASSWORD": database.password}


def autocompress(words: list[str], output: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "autocompress", "search", *words]
    with output.open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=environment)


def count(run: Path) -> int:
    """Trials that have ended, beside the baseline."""
    path = run / "records.jsonl"
    return len(RunDirectory(run).records()) - 1 if path.is_file() else -1


def measured(trials: int, folder: Path) -> dict[str, Any]:
    """Search, kill, resume, cut off, and compare what is left."""
    run, output = folder / "digits", folder / "terminal.txt"
    task, checked = ["experiments/digits/task.py", "--trials", str(trials), "--output", str(run)], trials // 3
    with server() as database:
        process = autocompress([*task, "--storage", database.url_with_password], output, dict(os.environ))
        until(lambda: "the study is" in (run / "log.txt").read_text() if (run / "log.txt").exists() else False)
        with dashboard(database, folder / "dashboard.txt") as address, Watcher(address) as watcher:
            until(lambda: count(run) >= checked)
            watcher.phase = "killed"
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed_at = count(run)
            until(lambda: watcher.answers.get("killed", Counter()).total() >= 5)
            refused = autocompress(["--resume", str(run)], folder / "refused.txt", dict(os.environ)).wait()
            watcher.phase = "resumed"
            process = autocompress(["--resume", str(run)], output, with_password(database))
            until(lambda: count(run) >= 2 * checked)
            watcher.phase = "server away"
            database.stop()
            until(lambda: count(run) >= 2 * checked + AWAY_TRIALS)
            database.start()
            until(lambda: "holds the whole study again" in (run / "log.txt").read_text())
            watcher.phase = "server back"
            code = process.wait()
            until(lambda: watcher.trials.get("server back", 0) >= trials + 1, seconds=30)
        trials_shown = load(database, run).trials
        postgres = database.log.read_text()
        secret = database.password
    records = {record.number: record.status for record in RunDirectory(run).records()}
    shown = {trial.user_attrs["trial"]: trial.state.name for trial in trials_shown if "trial" in trial.user_attrs}
    files = [path for path in (*run.rglob("*"), *folder.glob("*.txt")) if path.is_file()]
    logs = {"log.txt": run / "log.txt", "terminal": output}
    return {
        "trials": trials,
        "killed_at": killed_at,
        "refused_without_password": {"code": refused, "said": (folder / "refused.txt").read_text().strip()},
        "ended_without_server": AWAY_TRIALS,
        "code": code,
        "records": dict(Counter(records.values())),
        "study": dict(Counter(trial.state.name for trial in trials_shown)),
        "same_numbers": sorted(records) == sorted(shown),
        "trouble": {
            name: [line for line in path.read_text().splitlines() if TROUBLE.search(line)]
            for name, path in logs.items()
        },
        "trouble_in_postgres": [line for line in postgres.splitlines() if TROUBLE.search(line)],
        "told": [line for line in (run / "log.txt").read_text().splitlines() if " storage " in line or "study" in line],
        "files_with_the_password": [path.name for path in files if secret.encode() in path.read_bytes()],
        "answers": {phase: dict(counts) for phase, counts in watcher.answers.items()},
        "slowest_s": {phase: round(seconds, 2) for phase, seconds in watcher.slowest_s.items()},
    }


def load(database: Server, run: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name = RunDirectory(run).config.study
    return optuna.load_study(study_name=name, storage=database.url_with_password)


def show(record: Mapping[str, Any]) -> None:
    print("| while | the dashboard answered | slowest |\n|---|---|--:|")
    for phase, counts in record["answers"].items():
        said = ", ".join(f"{what}: {number} times" for what, number in counts.items())
        print(f"| {phase} | {said} | {record['slowest_s'][phase]} s |")
    for key in ("killed_at", "ended_without_server", "records", "study", "same_numbers", "trouble"):
        print(f"{key}: {record[key]}")
    for key in ("trouble_in_postgres", "told"):
        print(f"{key}:", *record[key], sep="\n  ")
    print(f"files with the password: {record['files_with_the_password']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--show", action="store_true")
    chosen = parser.parse_args()
    path = HERE / "record.json"
    if not chosen.show:
        made_by = commit()
        with tempfile.TemporaryDirectory(prefix="autocompress-storage-") as folder:
            found = measured(chosen.trials, Path(folder))
        about = {"commit": made_by, "machine": machine(detect_profile()), "versions": versions()}
        write_atomically(path, dumps({**about, **found}, indent=1) + "\n")
    show(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
