"""The run directory keeps what was written, through crashes and beside other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import (
    baseline,
    complete,
    config,
    confirmation,
    dropped,
    make_run,
    on_device,
    records,
    scored_on_device,
)

from autocompress.errors import RunDirectoryError
from autocompress.plan import Plan, Recovery
from autocompress.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run")


def damage(directory: RunDirectory, line: int) -> None:
    path = directory.path / "records.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[line] = lines[line][:40]
    path.write_bytes(b"\n".join(lines))


def test_configuration_and_records_come_back_as_they_were_written(directory: RunDirectory) -> None:
    assert directory.config == config()
    assert directory.records() == records()
    assert [c.number for c in directory.confirmations()] == [1, 2, 3, 0]


def test_a_last_line_cut_short_is_left_out_and_set_aside(directory: RunDirectory) -> None:
    path = directory.path / "records.jsonl"
    whole = path.read_bytes()
    torn = b'{"trial": {"number": 9, "pl'
    path.write_bytes(whole + torn)
    assert directory.records() == records()
    assert directory.repair() == len(torn)
    assert path.read_bytes() == whole
    assert (directory.path / "records.jsonl.torn").read_bytes() == torn + b"\n"


def test_trials_that_began_and_have_no_record_are_known_through_crashes(directory: RunDirectory) -> None:
    known = directory.records()[1].trial
    first, second, cut = (replace(known, number=number) for number in (97, 98, 99))
    for trial in (known, second, first):
        directory.note_begun(trial)
    assert directory.unfinished() == (first, second)
    directory.note_begun(cut)
    path = directory.path / "begun.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert directory.unfinished() == (first, second)
    shortened = replace(first, fidelity=0.5)
    directory.note_begun(shortened)
    assert directory.unfinished() == (shortened, second)


@pytest.mark.parametrize("cut", [1, 2, 30, 200])
def test_no_record_is_lost_or_mixed_up_wherever_a_crash_cuts_the_last_line(directory: RunDirectory, cut: int) -> None:
    path = directory.path / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    directory.repair()
    kept = len(directory.lines())
    assert kept == (len(records()) + 7 if cut == 1 else len(records()) + 6)
    directory.append(dropped(9, "failed", "after the crash"))
    assert len(directory.lines()) == kept + 1


def test_what_was_never_finished_is_deleted_once_nobody_writes_it(directory: RunDirectory) -> None:
    left, begun, whole = (directory.path / "artifacts" / name for name in (".left.onnx.x1", ".begun.onnx.x2", "a.onnx"))
    for path in (left, begun, whole):
        path.write_bytes(b"half")
    for path in (left, whole):
        os.utime(path, (0, 0))
    directory.forget_unfinished()
    assert (left.exists(), begun.exists(), whole.exists()) == (False, True, True)


def test_repairing_a_whole_journal_changes_nothing(directory: RunDirectory) -> None:
    before = (directory.path / "records.jsonl").read_bytes()
    assert directory.repair() == 0
    assert (directory.path / "records.jsonl").read_bytes() == before


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(directory: RunDirectory) -> None:
    damage(directory, 2)
    with pytest.raises(RunDirectoryError, match="line 3 is damaged"):
        directory.records()


def test_a_trial_that_was_written_twice_counts_once(directory: RunDirectory) -> None:
    directory.append(complete(1, Plan(), 0.5, 2.0, 2.0))
    assert directory.records() == records()


def test_a_damaged_configuration_is_an_error_that_names_the_file(directory: RunDirectory) -> None:
    (directory.path / "run.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"run\.json: damaged"):
        _ = directory.config


def test_create_refuses_a_file_a_search_and_a_folder_with_anything_in_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="is a file"):
        RunDirectory.create(tmp_path / "file")
    with pytest.raises(RunDirectoryError, match="is not empty"):
        RunDirectory.create(tmp_path)
    make_run(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="holds a search already"):
        RunDirectory.create(tmp_path / "run")
    assert (tmp_path / "file").exists()
    assert RunDirectory.open(tmp_path / "run").records() == records()


def test_create_says_where_it_may_not_write() -> None:
    with pytest.raises(RunDirectoryError, match="can't be written"):
        RunDirectory.create(Path("/proc/nowhere/run"))


def test_open_refuses_what_is_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no such folder"):
        RunDirectory.open(tmp_path / "missing")
    with pytest.raises(RunDirectoryError, match=r"no run\.json"):
        RunDirectory.open(tmp_path)


def test_a_second_process_is_refused_and_told_who_holds_the_directory(directory: RunDirectory) -> None:
    code = f"""
from pathlib import Path
from autocompress.run_directory import RunDirectory
with RunDirectory(Path({str(directory.path)!r})).locked():
    print("locked", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        directory.beat("running", 5.0)
        assert directory.heartbeat is not None
        assert directory.heartbeat.status == "running"
        with pytest.raises(RunDirectoryError, match=r"process \d+ on .* is searching there"), directory.locked():
            pass
        other.kill()
    assert directory.heartbeat is not None
    assert directory.heartbeat.status == "interrupted"
    with directory.locked():
        pass


def test_every_file_that_the_front_names_is_there_and_no_other(directory: RunDirectory) -> None:
    folder = directory.path / "front"
    baseline_point, front = directory.points()
    assert baseline_point is not None
    named = {Path(file).name for point in (baseline_point, *front) for file in (point.file, point.plan)}
    assert {path.name for path in folder.iterdir()} == named | {"front.json", "front.csv"}
    for point in front:
        assert Path(point.file).read_bytes() == f"model {point.number}".encode()
        assert Plan.from_json(Path(point.plan).read_text()) == directory.records()[point.number].plan


def test_a_model_that_is_beaten_leaves_the_front_and_its_artifact_stays(directory: RunDirectory) -> None:
    better = complete(9, Plan(recovery=Recovery(epochs=1)), 0.99, 0.1, 0.1)
    (directory.path / "artifacts/9.onnx").write_bytes(b"model 9")
    directory.append(better)
    directory.write_front(directory.records(), directory.confirmations(), ())
    models = {path.name for path in (directory.path / "front").glob("*.onnx")}
    assert models == {"000-baseline.onnx", "009-finetuned.onnx"}
    assert (directory.path / "artifacts/1.onnx").exists()


def test_writing_the_front_twice_changes_nothing(directory: RunDirectory) -> None:
    folder = directory.path / "front"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    directory.write_front(directory.records(), directory.confirmations(), ())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_front_on_disk_holds_the_points(directory: RunDirectory) -> None:
    stored = json.loads((directory.path / "front" / "front.json").read_text())
    _, front = directory.points()
    assert [point["name"] for point in stored["front"]] == [point.name for point in front]
    assert all((directory.path / "front" / point["file"]).is_file() for point in stored["front"])
    rows = (directory.path / "front" / "front.csv").read_text().splitlines()
    assert len(rows) == len(front) + 1
    assert {"latency_ratio_low", "latency_ratio_high", "confidence"} <= set(rows[0].split(","))


def test_without_a_baseline_there_is_no_front(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_config(config())
    assert directory.points() == (None, ())
    assert directory.write_front((), (), ()) == (None, ())


def test_a_confirmation_replaces_what_the_search_measured(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", confirm=False)
    directory.append(confirmation(1, 0.96, 0.52))
    point = next(point for point in directory.points()[1] if point.number == 1)
    assert point.latency_ratio == 0.52
    assert point.test == {"accuracy": 0.96}
    assert point.size_ratio == pytest.approx(0.27)


def test_a_constraint_keeps_models_off_the_front(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", config=config(constraints=["latency_ms<=0.45x"]))
    assert {point.number for point in directory.points()[1]} == {2, 3}


def test_a_run_of_another_release_is_refused_with_what_to_do(directory: RunDirectory) -> None:
    path = directory.path / "run.json"
    kept = json.loads(path.read_text())
    older = {**kept, "version": 1, "profile": kept["profiles"][0], "versions": {"autocompress": "0.0.9"}}
    del older["profiles"]
    path.write_text(json.dumps(older))
    with pytest.raises(
        RunDirectoryError, match=r"format 1.* reads format 2; .*\(autocompress 0\.0\.9\), or search again"
    ):
        RunDirectory.open(directory.path)
    path.write_text(json.dumps({**kept, "version": 3}))
    with pytest.raises(RunDirectoryError, match="format 3"):
        RunDirectory.open(directory.path)
    path.write_text(json.dumps({"version": 1, "versions": None}))
    with pytest.raises(RunDirectoryError, match=r"format 1.* \(autocompress unknown\)"):
        RunDirectory.open(directory.path)


def test_a_damaged_configuration_is_no_other_format(directory: RunDirectory) -> None:
    for text in ("{", "[]", "\x00"):
        (directory.path / "run.json").write_text(text)
        with pytest.raises(RunDirectoryError, match="damaged"):
            _ = RunDirectory.open(directory.path).config


def test_the_baseline_record_is_number_zero() -> None:
    assert baseline().plan.is_baseline


def test_a_run_of_before_scores_on_the_device_is_read(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    path = directory.path / "run.json"
    kept = json.loads(path.read_text())
    assert kept.pop("score_on_device") is False
    path.write_text(json.dumps(kept))
    assert directory.config == config()
    assert all(point.device_score is None and not point.device_reason for point in directory.points()[1])


def test_scores_on_the_device_survive_the_disk(tmp_path: Path) -> None:
    assert scored_on_device(tmp_path / "run").device_scores() == on_device()
