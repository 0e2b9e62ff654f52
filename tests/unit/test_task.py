"""Tasks: one metric for every model, and clear words for everything that may be wrong with one."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.data import Array
from autocompress.errors import AutocompressError, InvalidInput, TaskFailed, UnknownName
from autocompress.space import Int
from autocompress.student import Student
from autocompress.task import Metric, Task, load_task
from autocompress.user_code import user_code

INPUTS = np.linspace(-1, 1, 40, dtype=np.float32).reshape(20, 2)
TARGETS = (INPUTS.sum(axis=1) > 0).astype(np.int64)

TASK_FILE = """
import numpy as np
import torch
from autocompress.task import Task

DATA = (np.zeros((4, 2), np.float32), np.zeros(4, np.int64))

def make():
    return Task(name="made", model=torch.nn.Linear(2, 2), train=DATA, validation=DATA)

def wrong():
    return "no task"

def broken():
    raise KeyError("weights")

number = 3
"""


@pytest.fixture(autouse=True)
def forgotten_modules() -> Iterator[None]:
    """Task files imported by a test are forgotten, and the path is as it was."""
    path, known = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if name.startswith(("autocompress_task_", "importable_task")):
            del sys.modules[name]


def a_task(**changes: Any) -> Task:
    """A small valid task, with some of its fields changed."""
    fields: dict[str, Any] = {
        "name": "signs",
        "model": nn.Linear(2, 2),
        "train": (INPUTS, TARGETS),
        "validation": (INPUTS[:7], TARGETS[:7]),
    }
    return Task(**(fields | changes))


def oracle(inputs: tuple[Array, ...]) -> Array:
    """A model that is always right."""
    positive = inputs[0].sum(axis=1)
    return np.stack((-positive, positive), axis=1)


def write(tmp_path: Path, code: str = TASK_FILE, name: str = "task.py") -> Path:
    """A task file."""
    path = tmp_path / name
    path.write_text(code)
    return path


def test_the_score_is_the_same_in_batches_of_any_size() -> None:
    task = a_task(validation=(INPUTS, TARGETS))
    assert [task.score(oracle, batch_size=size) for size in (1, 3, 20, 100)] == [1.0] * 4
    assert task.score(oracle) == 1.0
    assert task.score(lambda inputs: -oracle(inputs), "train") == 0.0


def test_a_metric_of_the_user_sees_all_samples_at_once() -> None:
    metric = Metric("count", lambda outputs, targets: float(len(outputs)), "minimize")
    assert a_task(metric=metric).score(oracle, "train", batch_size=3) == 20.0


def test_regression_is_scored_by_its_squared_error() -> None:
    targets = INPUTS[:, :1]
    task = a_task(model=nn.Linear(2, 1), train=(INPUTS, targets), validation=(INPUTS, targets[:, 0]), metric="mse")
    assert task.the_metric.direction == "minimize"
    assert task.score(lambda inputs: inputs[0][:, :1] + 2) == pytest.approx(4.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(value: float) -> None:
    task = a_task(metric=Metric("odd", lambda outputs, targets: value))
    with pytest.raises(InvalidInput, match=r"metric 'odd' on validation data is .*; expected a finite number"):
        task.score(oracle)


def test_a_metric_that_raises_is_the_users_failure_with_its_traceback() -> None:
    task = a_task(metric=Metric("odd", lambda outputs, targets: outputs[10**6].sum()))
    with pytest.raises(TaskFailed, match="computing the metric 'odd' raised IndexError") as caught:
        task.score(oracle)
    assert "test_task.py" in caught.value.traceback


def test_a_built_model_is_a_copy_in_evaluation_mode() -> None:
    task = a_task(model=nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    one, other = task.build_model(), task.build_model()
    assert one is not other
    assert not one.training
    torch.nn.init.zeros_(one[0].weight)  # type: ignore[index]
    assert all(parameter.abs().sum() > 0 for parameter in other.parameters())


def test_a_model_may_be_a_function() -> None:
    assert isinstance(a_task(model=lambda: nn.Linear(2, 2)).build_model(), nn.Linear)


def test_a_function_for_the_model_is_called_once() -> None:
    calls: list[int] = []

    def model() -> nn.Module:
        calls.append(1)
        return nn.Linear(2, 2)

    task = a_task(model=model)
    one, other = task.build_model(), task.build_model()
    task.fingerprint()
    assert len(calls) == 1
    assert torch.equal(one.weight, other.weight)  # type: ignore[arg-type]


def test_a_function_that_gives_other_weights_each_time_is_refused() -> None:
    first, second = (a_task(model=lambda: nn.Linear(2, 2)) for _ in range(2))
    first.require_weights(first.weights_digest)
    with pytest.raises(InvalidInput, match=r"has other weights each time.*; load them from a file"):
        second.require_weights(first.weights_digest)


def test_a_model_function_that_raises_or_returns_something_else_is_explained() -> None:
    with pytest.raises(TaskFailed, match="building the model of task 'signs' raised ZeroDivisionError"):
        a_task(model=lambda: 1 / 0).build_model()
    with pytest.raises(InvalidInput, match=r"the function for the model returned dict; expected an nn\.Module"):
        a_task(model=dict).build_model()


def test_students_are_built_by_name() -> None:
    task = a_task(students={"tiny": lambda: nn.Linear(2, 2, bias=False), "odd": dict})
    assert task.build_student("tiny").state_dict().keys() == {"weight"}
    with pytest.raises(UnknownName, match=r"unknown architecture 'tini'; did you mean 'tiny'\?"):
        task.build_student("tini")
    with pytest.raises(InvalidInput, match="the function for the student 'odd' returned dict"):
        task.build_student("odd")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"metric": "acuracy"}, UnknownName, r"unknown metric 'acuracy'; did you mean 'accuracy'\?"),
        ({"model": "model.pt"}, InvalidInput, r"model is str; expected an nn\.Module or a function"),
        ({"batch_size": 0}, InvalidInput, "batch_size 0; expected at least 1"),
        ({"students": {"original": nn.Identity}}, InvalidInput, "a student can't be called 'original'"),
    ],
)
def test_a_task_that_cannot_work_is_refused_at_once(changes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        a_task(**changes)


def test_data_that_is_missing_or_malformed_is_named_when_it_is_needed() -> None:
    with pytest.raises(InvalidInput, match=r"task 'signs' has no test data; give Task\(\.\.\., test=\.\.\.\)"):
        a_task().split("test")
    with pytest.raises(InvalidInput, match="validation data: 0 samples"):
        a_task(validation=(INPUTS[:0], TARGETS[:0])).split("validation")


def test_calibration_data_is_drawn_from_the_training_data_by_default() -> None:
    rows = {tuple(row) for row in INPUTS.tolist()}
    drawn = [tuple(row) for batch in a_task().split("calibration").batches(50) for row in batch.inputs[0].tolist()]
    assert set(drawn) <= rows
    assert len(drawn) == len(INPUTS)


def test_the_example_is_the_first_validation_sample_unless_given() -> None:
    np.testing.assert_array_equal(a_task().examples[0], INPUTS[:1])
    np.testing.assert_array_equal(a_task(example_inputs=(INPUTS[:3],)).examples[0], INPUTS[:3])


def test_the_fingerprint_tells_what_changed() -> None:
    model = nn.Linear(2, 2)
    before = a_task(model=model, test=(INPUTS, TARGETS)).fingerprint()
    assert before == a_task(model=model, test=(INPUTS, TARGETS)).fingerprint()
    other_data = a_task(model=model, test=(INPUTS + 1, TARGETS)).fingerprint()
    other_model = a_task(model=nn.Linear(2, 2), test=(INPUTS, TARGETS)).fingerprint()
    assert {key for key in before if before[key] != other_data[key]} == {"test data"}
    assert {key for key in before if before[key] != other_model[key]} == {"model"}


def test_our_own_errors_pass_through_user_code_and_others_are_wrapped() -> None:
    def ours() -> None:
        raise InvalidInput("no data folder")

    with pytest.raises(InvalidInput, match="no data folder"):
        user_code(ours, "importing task.py")
    with pytest.raises(TaskFailed, match=r"importing task\.py raised SystemExit: 3"):
        user_code(lambda: sys.exit(3), "importing task.py")


def test_a_task_is_loaded_by_file_with_and_without_a_name(tmp_path: Path) -> None:
    path = write(tmp_path, TASK_FILE + "\ntask = make()\nother = make\n")
    assert load_task(str(path)).name == "made"
    assert load_task(f"{path}:task") is load_task(str(path))
    assert load_task(f"{path}:other").name == "made"


def test_the_only_task_of_a_file_needs_no_name(tmp_path: Path) -> None:
    assert load_task(str(write(tmp_path, TASK_FILE + "\nmine = make()\n"))).name == "made"


def test_a_task_file_imports_what_lies_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "NAME = 'from a neighbor'\n", "importable_task_neighbor.py")
    code = "from importable_task_neighbor import NAME\n" + TASK_FILE + "\ntask = make()\n"
    assert load_task(str(write(tmp_path, code))).name == "made"


def test_a_task_is_loaded_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, TASK_FILE, "importable_task.py")
    monkeypatch.chdir(tmp_path)
    assert load_task("importable_task:make").name == "made"


WRONG_REFERENCES = {
    "nowhere.py": (InvalidInput, "no such file"),
    "{folder}/task.py": (InvalidInput, "expected a name `task` or exactly one Task in it, found 0"),
    "{folder}/task.py:mak": (InvalidInput, r"no name 'mak' in it; did you mean 'make'\?"),
    "{folder}/task.py:number": (InvalidInput, "number is int; expected a Task or a function"),
    "{folder}/task.py:wrong": (InvalidInput, r"wrong\(\) returned str; expected a Task"),
    "{folder}/task.py:broken": (TaskFailed, r"calling broken\(\) of .* raised KeyError: 'weights'"),
    "no_such_module": (InvalidInput, "no module 'no_such_module' can be imported"),
    "no_such_package.module:task": (InvalidInput, "no module 'no_such_package.module' can be imported"),
    "model.onnx": (InvalidInput, r"expected a Python file \(task\.py or task\.py:name\)"),
    "some/folder": (InvalidInput, "expected a Python file"),
}


@pytest.mark.parametrize("reference", WRONG_REFERENCES)
def test_a_reference_to_no_task_is_explained(tmp_path: Path, reference: str) -> None:
    write(tmp_path)
    error, message = WRONG_REFERENCES[reference]
    with pytest.raises(error, match=message):
        load_task(reference.format(folder=tmp_path))


@pytest.mark.parametrize("code", ["import no_such_package", "def (", "raise SystemExit(1)"])
def test_a_file_that_fails_is_the_users_failure_and_is_read_anew_next_time(tmp_path: Path, code: str) -> None:
    path = write(tmp_path, code)
    with pytest.raises(TaskFailed, match=r"importing .*task\.py raised") as caught:
        load_task(str(path))
    assert "task.py" in caught.value.traceback or code.startswith("def")
    path.write_text(TASK_FILE + "\ntask = make()  # mended\n")
    assert load_task(str(path)).name == "made"


@pytest.mark.parametrize(
    ("code", "error"), [("1 / 0", "ZeroDivisionError"), ("import no_such_package", "ModuleNotFoundError")]
)
def test_a_package_that_fails_above_the_module_is_the_users_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, error: str
) -> None:
    package = tmp_path / f"importable_task_{error}"
    package.mkdir()
    write(package, code, "__init__.py")
    write(package, TASK_FILE, "inner.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskFailed, match=f"raised {error}"):
        load_task(f"{package.name}.inner:make")


def test_every_failure_to_load_is_one_of_ours() -> None:
    for reference in ("", ":", "no_task_here", "a.b.c:d", "x.py:", "task.keras"):
        with pytest.raises(AutocompressError):
            load_task(reference)


def test_the_fingerprint_sees_students_with_their_ranges_features_loss_and_shapes() -> None:
    def changed(**fields: Any) -> set[str]:
        before, now = a_task(model=model).fingerprint(), a_task(model=model, **fields).fingerprint()
        return {key for key in before if before[key] != now[key]}

    model = nn.Linear(2, 2)
    assert changed(students={"tiny": nn.Identity}) == {"students"}
    assert changed(features=("0",)) == {"features"}
    assert changed(loss=nn.functional.cross_entropy) == {"loss"}
    assert changed(example_inputs=(INPUTS[:3],)) == {"example inputs"}
    narrow, wide = (a_task(students={"tiny": Student(nn.Identity, width=Int(1, top))}) for top in (2, 3))
    assert narrow.fingerprint()["students"] != wide.fingerprint()["students"]


def test_features_may_be_names_that_both_share_or_pairs() -> None:
    assert a_task(features=("a", "b")).feature_pairs == {"a": "a", "b": "b"}
    assert a_task(features={"a": "b"}).feature_pairs == {"a": "b"}
