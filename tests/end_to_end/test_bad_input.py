"""What can't be used is refused in a line or two that help, and nothing that was there is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from command_line import autocompress, contents, project, trials

import autocompress as package

PARTS = """
import numpy as np
from torch import nn
import autocompress

inputs = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
targets = np.arange(32) % 4

def make(**changes):
    parts = {"model": nn.Linear(8, 4), "train": (inputs, targets), "validation": (inputs, targets)}
    return autocompress.Task(**{"name": "flat", **parts, **changes})

def broken(*_):
    raise ValueError("broken on purpose")
"""
"""A task in parts, for tasks that are wrong in one of them."""

SEARCH = ("search", "bad.py", "--hardware", "fake", "--trials", "1", "--workers", "1")
HERE = ("--executor", "inline")
"""No worker processes, which take seconds to start."""


@dataclass(frozen=True)
class Outcome:
    """What a command did in a folder.

    Args:
        code, stderr: How it ended.
        before, after: Every path in the folder, with the content of files.
    """

    code: int
    stderr: str
    before: Mapping[str, bytes]
    after: Mapping[str, bytes]


def attempt(folder: Path, files: Mapping[str, str], words: Sequence[str]) -> Outcome:
    """Run a command in a new folder with these files in it."""
    project(folder, files)
    before = contents(folder)
    done = autocompress(folder, *words)
    return Outcome(done.returncode, done.stderr, before, contents(folder))


def message(stderr: str) -> str:
    """The error, without the progress above it; it must be one or two lines."""
    _, found, rest = stderr.rpartition("error: ")
    assert found, stderr
    assert len(rest.splitlines()) <= 2, stderr
    return rest


# -- the user's task -------------------------------------------------------------------------------------------------

WRONG_TASKS = {
    "no task in the file": ("x = 3", "found 0; define `task = autocompress.Task(...)`"),
    "two tasks": ("from parts import *\na, b = make(), make()", "found 2; define `task = autocompress.Task(...)`"),
    "a function that returns something else": ("def task():\n    return 3", "task() returned int; expected a Task"),
    "a task that is a number": ("task = 3", "task is int; expected a Task or a function"),
    "a model that is no module": ("from parts import *\ntask = make(model='resnet')", "model is str; expected"),
    "a builder that gives no module": ("from parts import *\ntask = make(model=lambda: 5)", "returned int; expected"),
    "an unknown metric": ("from parts import *\ntask = make(metric='acuracy')", "did you mean 'accuracy'?"),
    "no samples": ("from parts import *\ntask = make(train=(inputs[:0], targets[:0]))", "train data: 0 samples"),
    "a generator as data": ("from parts import *\ntask = make(train=(x for x in [1]))", "generator; expected a pair"),
    "inputs and targets of different lengths": (
        "from parts import *\ntask = make(validation=(inputs, targets[:7]))",
        "inputs (32, 8) and targets (7,): expected the same number",
    ),
    "an empty loader": (
        "from parts import *\nclass Loader:\n    def __iter__(self):\n        yield from ()\n"
        "task = make(train=Loader())",
        "train data: the loader gave no batch; expected at least one",
    ),
    "scores that are NaN": (
        "from parts import *\ntask = make(metric=autocompress.Metric('gain', lambda o, t: float('nan')))",
        "the metric 'gain' on validation data is nan; expected a finite number",
    ),
    "a model with two outputs": (
        "from parts import *\nclass Two(nn.Linear):\n    def forward(self, x):\n        return x, x\n"
        "task = make(model=Two(8, 4))",
        "the model returned tuple; expected one tensor",
    ),
}
"""Task file, and what the message must hold."""


FAILING_TASKS = {
    "a task that raises on import": ("raise ValueError('broken on purpose')", "importing"),
    "a task that raises when called": ("from parts import broken\ndef task():\n    broken()", "calling task()"),
    "a task that exits": ("import sys\nsys.exit('broken on purpose')", "importing"),
    "a task with a syntax error": ("def task(: 'broken on purpose'", "importing"),
    "a model whose forward raises": (
        "from parts import *\nclass Broken(nn.Linear):\n    forward = broken\ntask = make(model=Broken(8, 4))",
        "running the model on its example inputs (float32 (1, 8))",
    ),
    "a metric that raises": (
        "from parts import *\ntask = make(metric=autocompress.Metric('gain', broken))",
        "computing the metric 'gain'",
    ),
    "a loss that raises": ("from parts import *\ntask = make(loss=broken)", "computing the loss of outputs (32, 4)"),
    "a loader that raises": (
        "from parts import *\nclass Loader:\n    def __iter__(self):\n        broken()\ntask = make(train=Loader())",
        "reading train data",
    ),
    "inputs of another shape": (
        "from parts import *\ntask = make(validation=(inputs[:, :5], targets))",
        "running the model on its example inputs (float32 (1, 5)) raised RuntimeError",
    ),
    "train data of another shape than validation data": (
        "from parts import *\ntask = make(train=(inputs[:, :5], targets))",
        "running the model on train data (32, 5) raised RuntimeError",
    ),
    "another number of inputs": (
        "from parts import *\ntask = make(validation=((inputs, inputs), targets))",
        "running the model on its example inputs (float32 (1, 8), float32 (1, 8)) raised TypeError",
    ),
    "classes that the model does not have": (
        "from parts import *\ntask = make(train=(inputs, np.arange(32)))",
        "raised IndexError: Target",
    ),
}
"""Task file, and what the message must hold."""


IN_A_WORKER = {"a task that raises when called", "a model whose forward raises", "a loss that raises"}
"""Kinds that are tried with the default executor; the way between processes is the same for all."""


# -- flags, files and folders ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A command and what its message must hold; the files are laid into the folder first."""

    words: str
    expected: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)


CASES = {
    "a missing task": Case("search missing.py", ("missing.py", "no such file")),
    "a folder as task": Case("search tasks.py", ("is a folder", "give a Python file"), {"tasks.py/a.txt": ""}),
    "a folder of another name as task": Case("search tasks", ("expected a Python file",), {"tasks/a.txt": ""}),
    "a model file as task": Case("search model.onnx", ("expected a Python file",), {"model.onnx": ""}),
    "a missing module as task": Case("search nowhere:task", ("no module 'nowhere'",)),
    "no task at all": Case("search", ("no task: give a file with one",)),
    "an unknown method in a space": Case(
        "search task.py --space s.yaml --hardware fake --executor inline",
        ("unknown compression method 'chanel_pruning'; did you mean 'channel_pruning'?",),
        {"s.yaml": "methods: {chanel_pruning: {}}"},
    ),
    "an unknown parameter in a space": Case(
        "search task.py --space s.yaml --hardware fake --executor inline",
        ("'precison'; did you mean 'precision'?",),
        {"s.yaml": "methods: {quantization: {parameters: {precison: [int8]}}}"},
    ),
    "a space with nothing in it": Case(
        "search task.py --space s.yaml --hardware fake --executor inline",
        ("nothing to search",),
        {"s.yaml": "students: false"},
    ),
    "a misspelled key in a space": Case(
        "search task.py --space s.yaml",
        ("s.yaml: unknown key 'methds'; did you mean 'methods'?",),
        {"s.yaml": "methds: {}"},
    ),
    "a misspelled key deep in a space": Case(
        "search task.py --space s.yaml",
        ("unknown key 'methods.quantization.paramters'; did you mean 'parameters'?",),
        {"s.yaml": "methods: {quantization: {paramters: {}}}"},
    ),
    "a space that is a list": Case("search task.py --space s.yaml", ("expected a mapping",), {"s.yaml": "[1]"}),
    "a misspelled key in autocompress.yaml": Case(
        "search",
        ("autocompress.yaml: unknown key 'bugdet'; did you mean 'budget'?",),
        {"autocompress.yaml": "bugdet: 5m"},
    ),
    "a wrong value in autocompress.yaml": Case(
        "search", ("autocompress.yaml: seed: ", "given: 'one'"), {"autocompress.yaml": "seed: one"}
    ),
    "a misspelled key in pyproject": Case(
        "search", ("unknown key 'taks'; did you mean 'task'?",), {"pyproject.toml": "[tool.autocompress]\ntaks = 'a'"}
    ),
    "malformed YAML": Case("search", ("autocompress.yaml: not valid YAML", "line"), {"autocompress.yaml": "task: ["}),
    "malformed TOML": Case("search", ("pyproject.toml: not valid TOML",), {"pyproject.toml": "[tool.autocompress"}),
    "an unknown space": Case("search task.py --space jont", ("search space 'jont'; did you mean 'joint'?",)),
    "a missing space file": Case("search task.py --space s.yaml", ("'s.yaml': no such file",)),
    "unknown hardware": Case("search task.py --hardware fak", ("hardware profile 'fak'; did you mean 'fake'?",)),
    "an unknown strategy": Case("search task.py --strategy tp", ("search strategy 'tp'; did you mean 'tpe'?",)),
    "an unknown executor": Case("search task.py --executor proceses", ("did you mean 'processes'?",)),
    "an unknown objective": Case(
        "search task.py --objective latency --hardware fake --executor inline",
        ("objective 'latency'; did you mean 'latency_ms'?",),
    ),
    "a malformed constraint": Case(
        "search task.py --constraint latency_ms<5", ("'latency_ms<5'", "expected NAME<=VALUE")
    ),
    "an unknown value in a constraint": Case(
        "search task.py --constraint latency<=5 --hardware fake --executor inline",
        ("'latency'; did you mean 'latency_ms'?",),
    ),
    "constraints that contradict": Case(
        "search task.py --constraint latency_ms<=5 --constraint latency_ms>=6 --hardware fake --executor inline",
        ("'latency_ms>=6' and 'latency_ms<=5' contradict each other",),
    ),
    "a budget without a unit": Case("search task.py --budget 5", ("duration '5'", "like 90s, 15m")),
    "a budget of nothing": Case("search task.py --budget 0s", ("duration '0s'", "more than 0")),
    "no trials": Case("search task.py --trials 0", ("'--trials'",)),
    "no workers": Case("search task.py --workers 0", ("'--workers'",)),
    "an output that is a file": Case("search task.py --output run", ("output run: is a file",), {"run": "mine"}),
    "an output that holds something": Case("search task.py --output run", ("is not empty",), {"run/mine.txt": "mine"}),
    "an output below a file": Case(
        "search task.py --output run/a", ("output run/a: can't be written",), {"run": "mine"}
    ),
    "an output where nothing can be": Case("search task.py --output /proc/nope/run", ("can't be written",)),
    "a storage that is no URL": Case(
        "search task.py --storage study.db", ("storage 'study.db': expected a URL such as sqlite:///study.db",)
    ),
    "a storage in no folder": Case("search task.py --storage sqlite:///no/study.db", ("no is missing or can't",)),
    "a storage that is not there": Case(
        "search task.py --storage postgresql+psycopg2://me:word@127.0.0.1:1/studies",
        ("storage postgresql+psycopg2://me@127.0.0.1:1/studies: can't be used: ", "start the database"),
    ),
    "no data folder": Case("search task.py --data nowhere", ("data 'nowhere': no such folder",)),
    "a resume of nothing": Case("search --resume run", ("run run: no such folder",)),
    "a resume of another folder": Case("search --resume run", ("no run.json in it",), {"run/mine.txt": "mine"}),
    "a show of nothing": Case("show", ("no run: ", "give the folder")),
    "a show of another folder": Case("show run", ("no run.json in it",), {"run/mine.txt": "mine"}),
    "a corrupt ONNX file": Case("measure m.onnx", ("m.onnx", "expected a valid ONNX file"), {"m.onnx": "mine"}),
    "a missing ONNX file": Case("measure m.onnx", ("m.onnx: no such file",)),
    "a corrupt plan": Case("apply p.json task.py", ("plan p.json: not valid JSON",), {"p.json": "{mine"}),
    "an unknown key in a plan": Case(
        "apply p.json task.py", ("unknown key 'stepz'; did you mean 'steps'?",), {"p.json": '{"stepz": []}'}
    ),
    "an unknown layer in a plan": Case(
        "apply p.json task.py --hardware fake",
        ("no layer 'stm'; did you mean 'stem'?",),
        {"p.json": '{"steps": [{"method": "quantization", "settings": {"stm": {"precision": "int8"}}}]}'},
    ),
    "an output of apply that exists": Case(
        "apply p.json task.py --output m.onnx", ("output m.onnx: exists already",), {"p.json": "{}", "m.onnx": "mine"}
    ),
    "an unknown command": Case("serch task.py", ("'serch'", "Did you mean 'search'?")),
    "an unknown flag": Case("search task.py --bugdet 5m", ("--bugdet", "--budget")),
}


# -- all of these, two at a time -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[Outcome]]]:
    """What becomes of every kind that a selected test wants, two at a time, since each starts an interpreter."""
    attempts = {kind: (case.files, case.words.split()) for kind, case in CASES.items()}
    for kind, (source, _) in {**WRONG_TASKS, **FAILING_TASKS}.items():
        attempts[kind] = ({"bad.py": source, "parts.py": PARTS}, [*SEARCH, *(() if kind in IN_A_WORKER else HERE)])
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    wanted = [call.params["kind"] for call in calls if call is not None and call.params.get("kind") in attempts]
    folder = tmp_path_factory.mktemp("bad")
    pool = ThreadPoolExecutor(2)
    yield {kind: pool.submit(attempt, folder / str(n), *attempts[kind]) for n, kind in enumerate(wanted)}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("kind", WRONG_TASKS)
def test_a_wrong_task_is_refused(outcomes: Mapping[str, Future[Outcome]], kind: str) -> None:
    outcome = outcomes[kind].result()
    assert outcome.code == 2, outcome.stderr
    assert WRONG_TASKS[kind][1] in message(outcome.stderr)
    assert "Traceback" not in outcome.stderr
    assert outcome.after == outcome.before


@pytest.mark.parametrize("kind", FAILING_TASKS)
def test_what_the_users_own_code_raises_is_shown_with_their_traceback(
    outcomes: Mapping[str, Future[Outcome]], kind: str
) -> None:
    outcome = outcomes[kind].result()
    assert outcome.code == 1, outcome.stderr
    assert FAILING_TASKS[kind][1] in message(outcome.stderr)
    assert "broken on purpose" in outcome.stderr or "Error: " in outcome.stderr
    assert str(Path(package.__file__).parent) not in outcome.stderr, "a frame of ours"
    assert outcome.after == outcome.before


@pytest.mark.parametrize("kind", CASES)
def test_wrong_input_is_refused_and_nothing_is_lost(outcomes: Mapping[str, Future[Outcome]], kind: str) -> None:
    outcome = outcomes[kind].result()
    assert outcome.code == 2, outcome.stderr
    assert all(part in message(outcome.stderr) for part in CASES[kind].expected), outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.after == outcome.before


# -- a run that is damaged, or does not have what is asked -----------------------------------------------------------


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A project with a finished search, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "project"))


def cut(path: Path, share: float) -> None:
    """Keep the first part of a file only."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def damage_a_line(folder: Path) -> None:
    path = folder / "run" / "records.jsonl"
    first, second, *others = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join((first, second[:100], *others)))


def change_the_data(folder: Path) -> None:
    path = folder / "task.py"
    path.write_text(path.read_text().replace("make_images(200, 1)", "make_images(150, 1)"))


def nothing(_: Path) -> None: ...


DAMAGES: dict[str, tuple[Callable[[Path], object], str, tuple[str, ...]]] = {
    "a line of the records": (
        damage_a_line,
        "search --resume run --trials 6 --executor inline",
        ("records.jsonl: line 2 is damaged",),
    ),
    "a line of the records, shown": (damage_a_line, "show run", ("records.jsonl: line 2 is damaged",)),
    "the configuration": (
        lambda folder: cut(folder / "run" / "run.json", 0.5),
        "search --resume run --trials 6 --executor inline",
        ("run.json: damaged: not valid JSON", "restore the file"),
    ),
    "the configuration, shown": (
        lambda folder: cut(folder / "run" / "run.json", 0.0),
        "show run",
        ("run.json: damaged",),
    ),
    "the task is another": (
        change_the_data,
        "search task.py --resume run --trials 6 --executor inline",
        ("not the same validation data as when the search began", "--accept-changes"),
    ),
    "the task is gone": (
        lambda folder: (folder / "task.py").unlink(),
        "search task.py --resume run --trials 6 --executor inline",
        ("task.py", "no such file"),
    ),
    "a model file": (
        lambda folder: cut(folder / "run" / "front" / "000-baseline.onnx", 0.5),
        "measure run/front/000-baseline.onnx --hardware fake",
        ("000-baseline.onnx", "expected a valid ONNX file"),
    ),
    "another seed on resume": (nothing, "search --resume run --seed 3", ("--seed can't change on --resume",)),
    "a second search there": (nothing, "search task.py --output run", ("holds a search already", "--resume run")),
    "no model that fits": (
        nothing,
        "pick run --where latency_ms<=0.0001",
        ("none of the", "has latency_ms<=0.0001; ask for less. Nearest: 0", "wanted <= 0.0001"),
    ),
    "an unknown value to be best in": (nothing, "pick run --best latency", ("did you mean 'latency_ms'?",)),
    "a file in the way of the pick": (
        nothing,
        "pick run --output task.py",
        ("expected a file name that ends in .onnx",),
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_a_run_does_not_have_is_said_and_nothing_is_lost(copied: Path, kind: str) -> None:
    damage, words, expected = DAMAGES[kind]
    damage(copied)
    before = contents(copied)
    done = autocompress(copied, *words.split())
    assert done.returncode == 2, done.stderr
    assert all(part in message(done.stderr) for part in expected), done.stderr
    assert "Traceback" not in done.stderr
    assert contents(copied) == before


def test_a_search_goes_on_after_its_last_line_and_its_journal_were_cut_short(copied: Path) -> None:
    run = copied / "run"
    whole = trials(run)
    records = run / "records.jsonl"
    torn = b'{"trial":{"number":5,"plan":{"archit'
    records.write_bytes(records.read_bytes() + torn)
    cut(run / "study.journal", 0.5)
    (run / "study.journal.lock").symlink_to(run / "study.journal")  # what a killed process leaves
    (run / "heartbeat.json").unlink()
    done = autocompress(copied, "search", "--resume", "run", "--trials", "5", *HERE)
    assert done.returncode == 0, done.stderr
    assert [trial["trial"] for trial in trials(run)[:-1]] == [trial["trial"] for trial in whole]
    assert trials(run)[-1]["trial"]["number"] == 5
    assert trials(run)[-1]["ended_s"] > whole[-1]["ended_s"]
    assert (run / "records.jsonl.torn").read_bytes() == torn + b"\n"


def test_an_empty_folder_of_the_user_is_still_there_after_a_failure(tmp_path: Path) -> None:
    folder = project(tmp_path / "project", {"bad.py": "x = 3"})
    (folder / "run").mkdir()
    assert autocompress(folder, *SEARCH, *HERE, "--output", "run").returncode == 2
    assert list((folder / "run").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 90 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=90k", "tmpfs", str(folder)]
    if (
        not hasattr(os, "geteuid")
        or os.geteuid()
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_search_with_what_it_has(folder: Path, small_disk: Path) -> None:
    run = small_disk / "run"
    words = ("--hardware", "fake", "--trials", "30", *HERE)
    done = autocompress(folder, "search", "task.py", *words, "--output", run)
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in message(done.stderr)
    assert f"--resume {run}" in message(done.stderr)
    assert "Traceback" not in done.stderr
    kept = trials(run)
    assert kept
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    done = autocompress(folder, "search", "--resume", run, "--trials", str(len(kept)), *HERE)
    assert done.returncode == 0, done.stderr
    assert trials(run)[: len(kept)] == kept
