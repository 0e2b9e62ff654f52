"""What is typed reaches the functions, and what they raise reaches the user in a line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic import complete, make_run, on_two_machines, scored_on_device
from typer.testing import CliRunner

from autocompress import api
from autocompress.cli import main
from autocompress.cli.application import app
from autocompress.cli.config import find_config
from autocompress.cli.progress import render, share_done, watch
from autocompress.cli.tables import fit, front_table
from autocompress.errors import InfeasiblePlan, InvalidInput, TaskFailed
from autocompress.plan import Plan
from autocompress.record import Record
from autocompress.report.table import point_columns
from autocompress.run import Run
from autocompress.snapshot import Phase, Snapshot
from autocompress.task import Task
from tests.tasks.stripes import task as stripes

COMMANDS = ("search", "check", "show", "pick", "report", "apply", "measure")


class Calls:
    """Stands in for a function of the API and keeps what it was called with."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.positional: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __call__(self, *positional: Any, **options: Any) -> Any:
        self.positional = positional
        self.options = {name: value for name, value in options.items() if name not in ("observer", "observe")}
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(make_run(tmp_path / "runs" / "digits").path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("AUTOCOMPRESS_DATA", raising=False)
    return folder


@pytest.fixture
def search(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls(run)
    monkeypatch.setattr(api, "search", calls)
    return calls


def imported_by(arguments: Sequence[str]) -> set[str]:
    code = f"""
import sys
from autocompress.cli import main
assert main({list(arguments)!r}) == 0
print("modules:", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("modules:")[2].split())


# -- light start -----------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "pandas", "optuna", "plotly", "numpy", "onnx", "onnxruntime", "autocompress.api"}
    assert not imported_by(["--help"]) & heavy


def test_show_imports_neither_pandas_nor_what_searches(run: Run) -> None:
    heavy = {"torch", "pandas", "optuna", "plotly", "onnx", "onnxruntime", "autocompress.api"}
    assert not imported_by(["show", str(run.path)]) & heavy


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"Example: autocompress {command}" in result.output


def test_the_help_of_device_profile_has_an_example_and_mistakes_point_to_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = CliRunner().invoke(app, ["device", "profile", "--help"], env={"COLUMNS": "200"})
    assert "Example: autocompress device profile --output my.yaml" in result.output
    assert main(["device", "profile"]) == 2
    assert capsys.readouterr().err.endswith("see: autocompress device profile --help\n")


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("autocompress 0.")


# -- search ----------------------------------------------------------------------------------------------------------

FLAGS = {
    "budget": (["--budget", "4h"], "4h"),
    "trials": (["--trials", "7"], 7),
    "space": (["--space", "quantization"], "quantization"),
    "hardware": (["--hardware", "x86_avx2", "--hardware", "my.yaml"], ("x86_avx2", "my.yaml")),
    "strategy": (["--strategy", "random"], "random"),
    "objectives": (["--objective", "accuracy", "--objective", "latency_ms"], ("accuracy", "latency_ms")),
    "constraints": (["--constraint", "latency_ms<=5", "--constraint", "a>=1%"], ("latency_ms<=5", "a>=1%")),
    "max_drop": (["--max-drop", "0"], 0.0),
    "workers": (["--workers", "1"], 1),
    "executor": (["--executor", "inline"], "inline"),
    "address": (["--address", "head:6379"], "head:6379"),
    "gpus_per_trial": (["--gpus-per-trial", "0.5"], 0.5),
    "trainers_per_trial": (["--trainers-per-trial", "3"], 3),
    "seed": (["--seed", "0"], 0),
    "score_on_device": (["--score-on-device"], True),
    "storage": (["--storage", "sqlite:///study.db"], "sqlite:///study.db"),
    "output": (["--output", "here"], Path("here")),
}
"""Option of the API to the words that set it and the value that must arrive."""

FILE = """
task: tasks/digits.py:build
budget: 5m
trials: 3
space: joint
hardware: local
strategy: nsga2
objectives: [accuracy, size_bytes]
constraints: ["latency_ms<=9"]
max_drop: 2.5
workers: 2
executor: ray
address: head:6379
gpus_per_trial: 0.25
trainers_per_trial: 2
seed: 11
score_on_device: false
"""

FROM_FILE = {
    "budget": "5m",
    "trials": 3,
    "space": "joint",
    "hardware": "local",
    "strategy": "nsga2",
    "objectives": ["accuracy", "size_bytes"],
    "constraints": ["latency_ms<=9"],
    "max_drop": 2.5,
    "workers": 2,
    "executor": "ray",
    "address": "head:6379",
    "gpus_per_trial": 0.25,
    "trainers_per_trial": 2,
    "seed": 11,
    "score_on_device": False,
}


@pytest.mark.parametrize("option", FLAGS)
def test_every_flag_reaches_the_search_and_nothing_else_does(search: Calls, option: str) -> None:
    words, value = FLAGS[option]
    assert main(["search", "task.py", *words]) == 0
    assert search.positional == ("task.py",)
    assert search.options == {option: value}


def test_what_the_file_turns_on_a_flag_turns_off(search: Calls, project: Path) -> None:
    (project / "autocompress.yaml").write_text("task: task.py\nscore_on_device: true\n")
    assert main(["search", "--no-score-on-device"]) == 0
    assert search.options == {"score_on_device": False}


def test_the_api_knows_every_option_that_a_flag_sets() -> None:
    import inspect

    assert FLAGS.keys() | {"task", "observer"} == inspect.signature(api.search).parameters.keys()


def test_every_key_of_the_file_reaches_the_search(search: Calls, project: Path) -> None:
    (project / "autocompress.yaml").write_text(FILE)
    assert main(["search"]) == 0
    assert search.positional == (str(project / "tasks" / "digits.py:build"),)
    assert search.options == FROM_FILE


@pytest.mark.parametrize("option", FLAGS)
def test_a_flag_beats_the_file(search: Calls, project: Path, option: str) -> None:
    (project / "autocompress.yaml").write_text(FILE)
    words, value = FLAGS[option]
    assert main(["search", *words]) == 0
    assert search.options == FROM_FILE | {option: value}


def test_pyproject_is_found_upwards_and_its_task_is_relative_to_it(
    search: Calls, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "pyproject.toml").write_text('[tool.autocompress]\ntask = "task.py"\nseed = 3\n')
    below = project / "src" / "deep"
    below.mkdir(parents=True)
    (below / "pyproject.toml").write_text('[project]\nname = "another"\n')
    monkeypatch.chdir(below)
    assert main(["search"]) == 0
    assert search.positional == (str(project / "task.py"),)
    assert search.options == {"seed": 3}


def test_the_data_folder_reaches_the_task_by_the_environment(search: Calls, project: Path) -> None:
    (project / "wave").mkdir()
    (project / "autocompress.yaml").write_text("task: task.py\ndata: wave\n")
    assert main(["search"]) == 0
    assert os.environ["AUTOCOMPRESS_DATA"] == str(project / "wave")
    (project / "other").mkdir()
    assert main(["search", "--data", "other"]) == 0
    assert os.environ["AUTOCOMPRESS_DATA"] == str(project / "other")


def test_the_end_of_a_search_shows_the_front_and_what_to_do_next(
    search: Calls, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "task.py"]) == 0
    out = capsys.readouterr().out
    assert all(point.name in out for point in run.points)
    assert f"autocompress pick {run.path}" in out
    assert f"{run.path}/report.html" in out


def test_the_end_of_a_search_points_to_the_fastest_model_that_loses_little(
    search: Calls, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the 97 % of the baseline model 1 has kept 96.8; models 2 and 3 are faster and have lost more than a point."""
    assert main(["search", "task.py"]) == 0
    out = capsys.readouterr().out
    (words,) = (line for line in out.splitlines() if line.startswith("choose: "))
    assert "--where 'accuracy>=baseline-1%' --best latency_ms --output model.onnx" in words
    chosen = run.pick("accuracy>=baseline-1%", "latency_ms")
    assert f"({chosen.name}: accuracy 96.80 %, test accuracy 96.60 %, × latency 0.50, " in out


@pytest.fixture
def end_on_two_machines(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[Run, str]]:
    """What `search` prints at its end, in a wide window, of a run on two machines with a constraint."""

    def end(constraint: str) -> tuple[Run, str]:
        run = Run(on_two_machines(project / "run", constraints=(constraint,)).path)
        monkeypatch.setattr(api, "search", Calls(run))
        monkeypatch.setenv("COLUMNS", "200")
        assert main(["search", "task.py"]) == 0
        return run, capsys.readouterr().out

    return end


def test_the_end_of_a_search_on_several_machines_points_to_the_fastest_on_the_whole(
    end_on_two_machines: Callable[[str], tuple[Run, str]],
) -> None:
    """Model 3 is fastest on the phone, and slower than the baseline on the server."""
    run, out = end_on_two_machines("accuracy>=90%")
    assert {"× phone", "× server", "latency phone", "latency server"} <= set(re.split("  +", out.splitlines()[1]))
    assert f"choose: autocompress pick {run.path} --best latency_ms --output model.onnx" in out
    assert "(002-width_0.5: accuracy 95.50 %, × phone 0.40, × server 0.60, × size 0.30)" in out


def test_the_end_of_a_search_on_several_machines_names_the_nearest(
    end_on_two_machines: Callable[[str], tuple[Run, str]],
) -> None:
    run, out = end_on_two_machines("latency_ms<=0.35x")
    assert "No model obeys latency_ms@phone<=0.35x, latency_ms@server<=0.35x. The nearest:" in out
    assert "latency_ms@server<=0.35x by 71.4 %" in out
    assert f"files of the nearest: {run.path / 'near_misses'}" in out


def test_resume_hands_on_what_may_change(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resume = Calls(run)
    monkeypatch.setattr(api, "resume", resume)
    words = ["--budget", "1h", "--trials", "9", "--workers", "1", "--score-on-device", "--accept-changes"]
    assert main(["search", "--resume", str(run.path), *words]) == 0
    assert resume.positional == (run.path,)
    numbers = {"budget": "1h", "trials": 9, "workers": 1}
    assert resume.options == {"task": None, **numbers, "score_on_device": True, "accept_changes": True}


@pytest.mark.parametrize("option", ["space", "hardware", "seed", "objectives", "constraints", "output", "strategy"])
def test_resume_refuses_what_can_not_change(
    run: Run, project: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, _ = FLAGS[option]
    assert main(["search", "--resume", str(run.path), *words]) == 2
    assert f"error: {words[0]} can't change on --resume" in capsys.readouterr().err


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("bugdet: 5m\n", "unknown key 'bugdet'; did you mean 'budget'?"),
        ("trials: 0\n", "trials: Input should be greater than 0 (given: 0)"),
        ("seed: one\n", "seed: Input should be a valid integer (given: 'one')"),
        ("objectives: accuracy\n", "objectives: Input should be a valid list"),
        ("- task.py\n", "Config: "),
        ("task: [\n", "not valid YAML"),
    ],
)
def test_a_mistake_in_the_file_is_named(
    search: Calls, project: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (project / "autocompress.yaml").write_text(content)
    assert main(["search"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(project / "autocompress.yaml") in error
    assert len(error.splitlines()) == 1


def test_a_mistake_in_pyproject_is_named(search: Calls, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "pyproject.toml").write_text('[tool.autocompress]\ntaks = "task.py"\n')
    assert main(["search"]) == 2
    assert "[tool.autocompress]: unknown key 'taks'; did you mean 'task'?" in capsys.readouterr().err
    (project / "pyproject.toml").write_text("[tool.autocompress\n")
    assert main(["search"]) == 2
    assert "not valid TOML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search"], "error: no task: give a file with one"),
        (["search", "task.py", "--data", "nowhere"], "error: data 'nowhere': no such folder"),
        (["search", "task.py", "--accept-changes"], "error: --accept-changes belongs to --resume"),
        (["search", "task.py", "--bugdet", "4h"], "error: No such option: --bugdet"),
        (["search", "task.py", "--trials", "0"], "error: Invalid value for '--trials'"),
        (["serch"], "error: No such command 'serch'"),
        (["show"], "error: no run: "),
        (["show", "nowhere"], "error: run nowhere: no such folder"),
        (["show", "--format", "xml"], "error: Invalid value for '--format'"),
        (["apply"], "error: Missing argument 'PLAN'"),
        (["measure", "nowhere.onnx"], "error: model nowhere.onnx: no such file"),
        (["apply", "nowhere.json", "task.py"], "error: plan nowhere.json: can't be read"),
    ],
)
def test_what_can_not_be_used_ends_with_exit_code_2_and_a_line(
    project: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert len(captured.err.splitlines()) <= 2
    assert captured.out == ""


def test_a_failure_of_the_users_code_shows_their_traceback(search: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    search.result = TaskFailed("importing task.py raised ValueError: no", "Traceback …\nValueError: no\n")
    assert main(["search", "task.py"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "Traceback …",
        "ValueError: no",
        "error: importing task.py raised ValueError: no",
    ]


def test_ctrl_c_outside_a_search_ends_with_130(search: Calls) -> None:
    search.result = KeyboardInterrupt()
    assert main(["search", "task.py"]) == 130


def test_a_bug_keeps_its_traceback(search: Calls) -> None:
    search.result = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        main(["search", "task.py"])


# -- the other commands ----------------------------------------------------------------------------------------------


def test_show_prints_the_contract_as_json(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run.path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == run.as_json()


def test_show_tells_where_the_device_scores_differently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(scored_on_device(tmp_path / "scored").path)]) == 0
    out = capsys.readouterr().out
    assert "device accuracy" in out
    assert "differs from that on the host for 1 of 2 models, most for 001-int8: -0.21 points." in out
    assert "On the device 002-width_0.5 can't be scored: no kernel for <Erf>" in out
    assert "Not scored on the device, as there was no time: 003-" in out


def test_show_prints_csv_in_full_precision(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run.path), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows] == [point.name for point in run.points]
    assert rows[1]["size_bytes"] == "108000"


def test_show_prints_markdown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run.path), "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | accuracy | test accuracy |")
    assert len(lines) == 2 + len(run.points)


def test_show_without_a_run_takes_the_newest(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(run.path.parent / "newest")
    os.utime(run.path / "run.json", (1, 1))
    (run.path.parent / "no-run").mkdir()
    monkeypatch.chdir(run.path.parent.parent)
    assert main(["show", "--format", "json"]) == 0
    assert "runs/newest/front" in json.loads(capsys.readouterr().out)["front"][0]["file"]


def test_pick_copies_the_model(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model.onnx"
    words = ["--where", "latency_ratio<=0.5", "--where", "size_ratio<=0.28", "--best", "accuracy"]
    assert main(["pick", str(run.path), *words, "--output", str(output)]) == 0
    assert output.read_bytes() == b"model 1"
    assert f"model: {output}" in capsys.readouterr().out


def test_report_prints_where_the_page_is(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.path)]) == 0
    assert Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_check_prints_every_item_and_ends_as_it_went(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ok: bool, code: int
) -> None:
    item = api.CheckItem("data", ok, "1000 samples", 0.5)

    def check(task: str, **options: Any) -> api.CheckReport:
        assert (task, options["hardware"]) == ("task.py", ("local",))
        options["observe"](item)
        return api.CheckReport((item,))

    monkeypatch.setattr(api, "check", check)
    assert main(["check", "task.py", "--hardware", "local"]) == code
    assert "data: 1000 samples (0.5 s)" in capsys.readouterr().out


def test_apply_hands_on_its_arguments_and_prints_the_record(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apply = Calls(complete(0, Plan(), 0.97, 0.5, 0.25))
    monkeypatch.setattr(api, "apply", apply)
    assert main(["apply", "plan.json", "task.py", "--output", "a.onnx", "--seed", "4", "--hardware", "local"]) == 0
    assert apply.positional == (Path("plan.json"), "task.py")
    assert apply.options == {"output": Path("a.onnx"), "seed": 4, "hardware": ("local",)}
    assert "accuracy on validation data: 0.97" in capsys.readouterr().out


def test_apply_prints_a_share_as_the_tables_do(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def apply(plan: Path, task: str, *, observe: Callable[[Task], None], **options: Any) -> Record:
        observe(stripes)
        return complete(0, Plan(), 0.97, 0.5, 0.25)

    monkeypatch.setattr(api, "apply", apply)
    assert main(["apply", "plan.json", "task.py"]) == 0
    assert "accuracy on validation data: 97.00 %\n" in capsys.readouterr().out


def test_apply_says_why_a_plan_does_not_fit(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(api, "apply", Calls(InfeasiblePlan("no layer 'stem'")))
    assert main(["apply", "plan.json", "task.py"]) == 2
    assert capsys.readouterr().err == "error: no layer 'stem'\n"


def test_measure_hands_on_its_arguments_and_prints_the_latency(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = Calls(complete(0, Plan(), 0.97, 0.5, 0.25).measurement)
    monkeypatch.setattr(api, "measure", measure)
    Path("a.onnx").write_bytes(b"x" * 2048)
    given = ["--reference", "b.onnx", "--hardware", "local", "--batch-size", "8"]
    assert main(["measure", "a.onnx", *given]) == 0
    assert measure.positional == (Path("a.onnx"),)
    assert measure.options == {"reference": Path("b.onnx"), "hardware": "local", "batch_size": 8}
    out = capsys.readouterr().out
    assert "latency: 0.400 ms" in out
    assert "ratio to the reference: 0.500 (0.49–0.52)" in out
    assert "size: 2 KiB" in out
    assert "energy" not in out


def test_measure_tells_of_energy_where_the_machine_does(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = complete(0, Plan(), 0.97, 0.5, 0.25).measurement
    assert measured is not None
    monkeypatch.setattr(api, "measure", Calls(replace(measured, energy_mj=1.234)))
    Path("a.onnx").write_bytes(b"x")
    assert main(["measure", "a.onnx"]) == 0
    assert "energy of an inference: 1.23 mJ, of the whole processor with its idle power" in capsys.readouterr().out


def test_measure_tells_that_it_was_disturbed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = complete(0, Plan(), 0.97, 0.5, 0.25).measurement
    assert measured is not None
    Path("a.onnx").write_bytes(b"x")
    for disturbance, is_told in ((0.0, False), (0.123, True)):
        monkeypatch.setattr(api, "measure", Calls(replace(measured, disturbance=disturbance)))
        assert main(["measure", "a.onnx"]) == 0
        said = "disturbed: the reference took 12 % longer than when nothing disturbs it"
        assert (said in capsys.readouterr().out) == is_told


# -- configuration, tables and the live view -------------------------------------------------------------------------


def test_yaml_stands_above_pyproject_in_one_folder(project: Path) -> None:
    (project / "pyproject.toml").write_text("[tool.autocompress]\nseed = 1\n")
    (project / "autocompress.yaml").write_text("seed: 2\n")
    assert find_config(project).seed == 2


def test_paths_of_the_file_are_relative_to_its_folder_and_names_stay(project: Path) -> None:
    (project / "autocompress.yaml").write_text(
        "space: my/space.yaml\nhardware: local\noutput: out\ntask: package.task\n"
    )
    config = find_config(project / "below")
    assert config.space == str(project / "my" / "space.yaml")
    assert config.output == str(project / "out")
    assert (config.hardware, config.task) == ("local", "package.task")


def test_a_file_may_name_several_machines_and_other_commands_take_the_first(project: Path) -> None:
    (project / "autocompress.yaml").write_text("hardware: [boards/phone.yaml, local]\n")
    config = find_config(project)
    assert config.hardware == [str(project / "boards" / "phone.yaml"), "local"]
    assert config.machine == str(project / "boards" / "phone.yaml")
    assert config.machines == (config.machine, "local")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("sqlite:///study.db", "sqlite:///{}/study.db"),
        ("sqlite:////srv/study.db", "sqlite:////srv/study.db"),
        ("postgresql://me@host/studies", "postgresql://me@host/studies"),
        ("journal", "journal"),
    ],
)
def test_a_database_in_a_file_is_beside_the_configuration(project: Path, given: str, found: str) -> None:
    (project / "autocompress.yaml").write_text(f"storage: {given}\n")
    assert find_config(project / "below").storage == found.format(project)


def test_a_project_without_configuration_has_an_empty_one(project: Path) -> None:
    assert find_config(project).values() == {}


def test_a_key_of_another_type_is_refused(project: Path) -> None:
    (project / "autocompress.yaml").write_text("space: 15\n")
    with pytest.raises(InvalidInput, match="space: Input should be a valid string"):
        find_config(project)


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_a_table_fits_its_width_and_keeps_what_matters_most(run: Run, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(front_table(run.baseline, run.points, run.columns(), width=width))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].split()[:2] == ["model", "accuracy"]
    assert "97.00 %" in lines[1]
    assert "× latency" in lines[0]


def test_names_are_whole_where_leaving_details_out_makes_room(run: Run) -> None:
    longest = max(len(point.name) for point in run.points)
    console = Console(width=longest + 40, file=io.StringIO(), record=True)
    console.print(front_table(run.baseline, run.points, run.columns(), width=console.width))
    shown = console.export_text()
    assert all(point.name in shown for point in run.points)
    assert "memory" not in shown


def test_wider_tables_have_no_fewer_columns(run: Run) -> None:
    counts = [len(fit(run.columns(), run.points, width)) for width in range(20, 200)]
    assert counts == sorted(counts)
    assert counts[-1] == len(run.columns())


def test_without_test_scores_there_is_no_column_for_them(run: Run) -> None:
    assert "test" not in {column.key for column in point_columns((), "accuracy", True)}
    assert "test" in {column.key for column in run.columns()}


def snapshot(run: Run, *, event: str = "", phase: Phase = "searching", budget_s: float | None = 180.0) -> Snapshot:
    return Snapshot(
        phase, event, 60.0, budget_s, 20, 5, 1, 4, 2, run.baseline, run.points, "accuracy", True, "maximize"
    )


@pytest.mark.parametrize("width", [60, 140])
def test_the_live_view_tells_time_trials_best_points_and_front(run: Run, width: int) -> None:
    console = Console(width=width, height=30, file=io.StringIO(), record=True)
    console.print(render(snapshot(run), "003-int8: done", width=width, height=30))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "2m left, 1m spent" in text
    assert "trials: 5 complete, 1 screened, 4 failed, 2 running; at most" in text
    assert "fastest within 1 point: 0.50× at 96.80 %" in text
    assert "003-int8: done" in text
    assert all(point.name[:10] in text for point in run.points)


@pytest.mark.parametrize("width", [80, 140])
def test_the_live_view_tells_the_fastest_on_each_machine(tmp_path: Path, width: int) -> None:
    run = Run(on_two_machines(tmp_path / "run").path)
    console = Console(width=width, height=30, file=io.StringIO(), record=True)
    console.print(render(snapshot(run), "003-int8: done", width=width, height=30))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "fastest within 1 point on phone: 0.50× at 96.80 % (001-int8)" in text
    assert "fastest within 1 point on server: 0.90× at 96.80 % (001-int8)" in text
    assert "× phone" in text
    assert "× server" in text


def test_the_live_view_is_no_taller_than_the_terminal(run: Run) -> None:
    console = Console(width=80, height=12, file=io.StringIO(), record=True)
    console.print(render(snapshot(run), "an event", width=80, height=12))
    text = console.export_text()
    assert len(text.splitlines()) <= 12
    assert "… 2 more" in text


def test_progress_is_that_of_the_limit_that_ends_the_search_first(run: Run) -> None:
    assert share_done(snapshot(run)) == pytest.approx(10 / 20)
    assert share_done(snapshot(run, budget_s=70.0)) == pytest.approx(60 / 70)
    assert share_done(snapshot(run, budget_s=1.0)) == 1.0


def test_outside_a_terminal_an_event_is_a_line_and_a_tick_is_nothing(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with watch() as observer:
        observer(snapshot(run))
        observer(snapshot(run, event="004-int8: [complete]"))
        observer(snapshot(run))
    assert capsys.readouterr().err == "      1m  004-int8: [complete]\n"
