"""A whole search as a user runs it, and its models where they will run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import autocompress, project, search, show, trials

BOARD = """
import sys
import numpy as np
import onnxruntime

data, *models = sys.argv[1:]
saved = np.load(data)
for model in models:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outputs = np.concatenate([session.run(None, {name: image[None]})[0] for image in saved["images"]])
    print(np.mean(outputs.argmax(1) == saved["classes"]))
assert not {"torch", "autocompress", "onnx"} & set(sys.modules), "a board has none of these"
"""
"""What runs a model on a board: ONNX Runtime, numpy and nothing else."""

NUMBER = (int, float)
POINT = {
    "name": str,
    "file": str,
    "plan": str,
    "validation": dict,
    "test": dict,
    "latency_ms": NUMBER,
    "latency_ratio": NUMBER,
    "size_bytes": int,
    "size_ratio": NUMBER,
    "peak_memory_bytes": int,
    "confidence": (*NUMBER, type(None)),
    "machines": dict,
    "device_score": (*NUMBER, type(None)),
    "device_reason": str,
}
RUN = {
    "task": str,
    "status": str,
    "budget_s": NUMBER,
    "elapsed_s": NUMBER,
    "trials": dict,
    "baseline": dict,
    "front": list,
    "near_misses": list,
}
"""The contract of `autocompress show RUN --format json`: key to type."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a search that measured this machine, and what `show` says of it."""
    folder = project(tmp_path_factory.mktemp("measured") / "project")
    words = ("--hardware", "local", "--budget", "1m", "--trials", "3", "--workers", "2", "--output", "run")
    return folder, search(folder, "task.py", *words)


def has_shape(found: Mapping[str, Any], contract: Mapping[str, Any]) -> bool:
    """True if a JSON object has these keys, in this order, and values of these types."""
    return list(found) == list(contract) and all(isinstance(found[key], kind) for key, kind in contract.items())


def test_show_follows_the_contract(searched: tuple[Path, dict[str, Any]]) -> None:
    _, shown = searched
    assert has_shape(shown, RUN)
    assert shown["trials"].keys() == {"complete", "screened", "failed"}
    assert shown["front"]
    for point in (shown["baseline"], *shown["front"]):
        assert has_shape(point, POINT)
        assert point["validation"].keys() == point["test"].keys() == {"accuracy"}
        assert all(0 <= part["accuracy"] <= 1 for part in (point["validation"], point["test"]))


def test_a_search_ends_with_better_models_than_the_one_it_was_given(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, shown = searched
    assert (shown["task"], shown["status"], shown["budget_s"]) == ("stripes", "complete", 60.0)
    assert sum(shown["trials"].values()) == 3  # the baseline is none of them
    assert shown["trials"]["failed"] == 0
    assert min(point["size_ratio"] for point in shown["front"]) < 0.5
    assert (folder / "run" / "report.html").is_file()


def test_the_models_reach_their_accuracy_where_there_is_only_onnx_runtime(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, shown = searched
    sys.path.insert(0, str(folder))
    import task  # type: ignore[import-not-found]  # the copy of stripes.py in the folder

    sys.path.remove(str(folder))
    images, classes = task.make_images(200, 2)
    np.savez(tmp_path / "test.npz", images=images, classes=classes)
    (tmp_path / "board.py").write_text(BOARD)
    models = [folder / point["file"] for point in shown["front"]]
    done = subprocess.run(
        [sys.executable, "-P", "board.py", "test.npz", *map(str, models)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    reached = [float(line) for line in done.stdout.split()]
    assert reached == [point["test"]["accuracy"] for point in shown["front"]]


def test_the_other_commands_take_the_run(searched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, shown = searched
    done = autocompress(folder, "pick", "run", "--where", "size_ratio<=0.9", "--output", tmp_path / "model.onnx")
    assert done.returncode == 0, done.stderr
    done = autocompress(folder, "measure", tmp_path / "model.onnx", "--format", "json")
    assert json.loads(done.stdout)["latency_ms"] > 0
    plan = Path(shown["front"][0]["plan"])
    done = autocompress(folder, "apply", plan, "task.py", "--hardware", "fake", "--output", tmp_path / "again.onnx")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.onnx").stat().st_size == shown["front"][0]["size_bytes"]


SPACE = {"space.yaml": "methods: {quantization: {}, channel_pruning: {}}\nrecovery: {epochs: 1, student_epochs: 1}\n"}
"""One epoch for every model."""

YAML = """
task: task.py
space: space.yaml
trials: 3
seed: 7
hardware: fake
executor: inline
strategy: random
objectives: [accuracy, size_bytes]
constraints: ["size_bytes<=0.9x"]
max_drop: 5
output: run
"""

TOML = """
[tool.autocompress]
task = "task.py"
space = "space.yaml"
trials = 3
seed = 7
hardware = "fake"
executor = "inline"
strategy = "random"
objectives = ["accuracy", "size_bytes"]
constraints = ["size_bytes<=0.9x"]
max_drop = 5.0
output = "run"
"""

FLAGS = (
    *(
        "task.py",
        "--space",
        "space.yaml",
        "--trials",
        "3",
        "--seed",
        "7",
        "--hardware",
        "fake",
        "--executor",
        "inline",
        "--strategy",
        "random",
    ),
    *("--objective", "accuracy", "--objective", "size_bytes", "--constraint", "size_bytes<=0.9x"),
    *("--max-drop", "5", "--output", "run"),
)


def configuration(folder: Path) -> dict[str, Any]:
    """`run.json` without what says when, where and how fast."""
    config: dict[str, Any] = json.loads((folder / "run" / "run.json").read_text())
    config["task_reference"] = str(Path(config["task_reference"]).relative_to(folder))
    del config["created"], config["epoch_s"]
    return config


def test_what_a_file_sets_reaches_the_search_as_if_it_were_set_by_flags(tmp_path: Path) -> None:
    by_flags = project(tmp_path / "flags", SPACE)
    by_yaml = project(tmp_path / "yaml", SPACE | {"autocompress.yaml": YAML})
    by_toml = project(tmp_path / "toml", SPACE | {"pyproject.toml": TOML})
    shown = [search(by_flags, *FLAGS), search(by_yaml), search(by_toml)]
    first = configuration(by_flags)
    assert configuration(by_yaml) == configuration(by_toml) == first
    assert (first["seed"], first["trials"], first["strategy"]) == (7, 3, "random")
    assert [objective["name"] for objective in first["objectives"]] == ["accuracy", "size_bytes"]
    assert len(first["constraints"]) == 2
    for run in shown:
        assert sum(run["trials"].values()) == 3
        assert all(point["size_ratio"] <= 0.9 for point in run["front"])


@pytest.fixture
def one_core() -> Iterator[None]:
    """A single processor for what the test starts, so that the one worker has one thread."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_core")
def test_the_same_seed_gives_the_same_plans_in_the_same_order(tmp_path: Path) -> None:
    def plans(name: str, seed: int, executor: str = "inline") -> list[Any]:
        folder = project(tmp_path / name, SPACE)
        words = ("--hardware", "fake", "--workers", "1", "--executor", executor, "--strategy", "tpe", "--trials", "5")
        search(folder, "task.py", "--space", "space.yaml", *words, "--seed", str(seed), "--output", "run")
        return [(trial["trial"], trial["status"], trial["values"]) for trial in trials(folder / "run")]

    first = plans("first", 1)
    assert len(first) == 6
    assert plans("again", 1, "processes") == first
    assert [plan for plan, *_ in plans("other", 2)] != [plan for plan, *_ in first]


def test_an_interpreter_finds_the_command_line_too(finished: Path) -> None:
    command = [sys.executable, "-m", "autocompress", "show", str(finished / "run"), "--format", "json"]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == show(finished / "run")
    assert subprocess.run([*command[:4], "nowhere"], capture_output=True, check=False, timeout=60).returncode == 2
