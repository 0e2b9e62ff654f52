"""A run is read from its directory, and one model of it is picked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import PRUNED, complete, config, make_run, on_two_machines, scored_on_device

from autocompress.errors import InvalidInput, RunDirectoryError, UnknownName
from autocompress.plan import Plan, Recovery
from autocompress.point import ties
from autocompress.record import DeviceScore
from autocompress.run import Run
from autocompress.run_directory import RunDirectory

POINT_KEYS = {"name", "file", "plan", "validation", "test", "latency_ms", "latency_ratio"} | {
    "size_bytes",
    "size_ratio",
    "peak_memory_bytes",
    "confidence",
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(make_run(tmp_path / "run").path)


def test_the_json_is_the_contract_that_scripts_rely_on(run: Run) -> None:
    facts = run.as_json()
    assert list(facts) == ["task", "status", "budget_s", "elapsed_s", "trials", "baseline", "front", "near_misses"]
    assert facts["task"] == "digits"
    assert (facts["status"], facts["budget_s"], facts["elapsed_s"]) == ("complete", 180.0, 171.5)
    assert facts["trials"] == {"complete": 4, "screened": 1, "failed": 3}
    for point in (facts["baseline"], *facts["front"]):
        assert point.keys() >= POINT_KEYS
        assert point["validation"].keys() == point["test"].keys() == {"accuracy"}
        assert Path(point["file"]).is_file()


def test_the_tables_hold_the_front_and_every_trial(run: Run) -> None:
    assert list(run.front["name"]) == [point.name for point in run.points]
    assert run.front["size_bytes"].dtype.kind == "i"
    assert run.front.loc[run.front["name"] == "001-int8", "test_accuracy"].item() == pytest.approx(0.966)
    assert list(run.trials["number"]) == list(range(9))
    assert set(run.trials["status"]) == {"complete", "failed", "screened"}


def test_a_search_that_has_only_begun_has_no_baseline_and_an_empty_front(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_config(config())
    run = Run(directory.path)
    assert (run.baseline, run.points, run.status) == (None, (), "interrupted")
    assert run.front.empty
    assert run.trials.empty
    assert run.as_json()["baseline"] is None
    with directory.locked():
        assert run.status == "running"
    with pytest.raises(InvalidInput, match="the front is empty so far"):
        run.pick()


def test_pick_without_conditions_takes_the_best_by_the_first_objective(run: Run) -> None:
    assert run.pick().name == "000-baseline"


@pytest.mark.parametrize(
    ("where", "best", "number"),
    [
        ("latency_ratio<=0.5", None, 1),
        ("latency_ms<=0.35", "accuracy", 2),
        ("accuracy>=baseline-1%", "latency_ms", 1),
        ("accuracy>=95%", "latency_ms", 2),
        ("size_bytes<=0.28x", "accuracy", 1),
        ("size_ratio<=0.28,latency_ratio<=0.4", None, 3),
        (["size_ratio<=0.28", "latency_ratio<=0.4"], None, 3),
        (None, "size_bytes", 3),
        (None, "test_accuracy", 1),
    ],
)
def test_pick_obeys_its_conditions_and_takes_the_best_of_the_rest(
    run: Run, where: str | list[str] | None, best: str | None, number: int
) -> None:
    assert run.pick(where, best).number == number


def test_pick_names_the_nearest_models_when_none_fits(run: Run) -> None:
    with pytest.raises(
        InvalidInput, match=r"none of the 4 models .* Nearest: 003-.*latency_ratio 0\.3, wanted <= 0\.25"
    ):
        run.pick("latency_ratio<=0.25")


def test_pick_offers_the_nearest_name_for_one_that_is_unknown(run: Run) -> None:
    with pytest.raises(UnknownName, match="did you mean 'latency_ms'"):
        run.pick("latency_mss<=2")
    with pytest.raises(UnknownName, match="did you mean 'accuracy'"):
        run.pick(best="acuracy")


def test_pick_says_when_test_scores_are_not_there_yet(tmp_path: Path) -> None:
    run = Run(make_run(tmp_path / "run", confirm=False).path)
    with pytest.raises(InvalidInput, match="there are no test scores"):
        run.pick("test_accuracy>=90%")


def test_pick_knows_the_direction_of_a_share_that_was_not_searched(tmp_path: Path) -> None:
    made = config(objectives=("latency_ms", "size_bytes"))
    run = Run(make_run(tmp_path / "run", config=made).path)
    assert run.pick().number == 3
    assert run.pick(best="accuracy").number == 3


def test_pick_knows_the_direction_of_a_metric_that_was_not_searched(tmp_path: Path) -> None:
    made = replace(config(objectives=("latency_ms", "size_bytes")), is_percentage=False, direction="minimize")
    run = Run(make_run(tmp_path / "run", config=made).path)
    assert run.pick(best="accuracy").validation["accuracy"] == min(p.validation["accuracy"] for p in run.points)


def test_of_models_whose_latencies_can_not_be_told_apart_the_smallest_is_picked(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", confirm=False)
    directory.append(complete(9, replace(PRUNED, recovery=Recovery(epochs=5)), 0.947, 0.31, 0.1))
    directory.append(complete(10, replace(PRUNED, recovery=Recovery(epochs=6)), 0.946, 0.35, 0.05))
    run = Run(directory.path)
    assert {9, 10} < {point.number for point in run.points}
    assert run.pick(best="latency_ms").number == 9, "3 is faster by what may be noise, 10 is slower"
    assert run.pick(best="latency_ratio").number == 9
    assert run.pick(best="size_bytes").number == 10


def test_a_model_that_is_clearly_slower_is_never_as_fast_however_little_is_known(run: Run) -> None:
    point = replace(run.points[0], latency_ratio=0.3, latency_ratio_interval=(0.2, 0.4))
    assert ties(point, replace(point, latency_ratio=0.31), "latency_ms")
    assert not ties(point, replace(point, latency_ratio=0.32), "latency_ms")
    assert not ties(point, point, "size_bytes")


def test_pick_copies_the_model_with_its_plan(run: Run, tmp_path: Path) -> None:
    point = run.pick("latency_ratio<=0.4", output=tmp_path / "new" / "model.onnx")
    assert point.file == str(tmp_path / "new" / "model.onnx")
    assert Path(point.file).read_bytes() == b"model 2"
    assert Plan.from_json(Path(point.plan).read_text()).architecture == "width_0.5"


def test_pick_into_a_folder_keeps_the_name(run: Run, tmp_path: Path) -> None:
    point = run.pick("latency_ratio<=0.4", output=tmp_path)
    assert Path(point.file) == tmp_path / "002-width_0.5.onnx"


def test_pick_never_overwrites_another_file_and_accepts_its_own(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    run.pick("latency_ratio<=0.4", output=output)
    assert run.pick("latency_ratio<=0.4", output=output).number == 2
    with pytest.raises(InvalidInput, match="exists already with other content"):
        run.pick("latency_ratio<=0.3", output=output)
    assert output.read_bytes() == b"model 2"


def test_pick_writes_nothing_when_only_the_plan_is_in_the_way(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("mine")
    with pytest.raises(InvalidInput, match=r"model\.json: exists already"):
        run.pick("latency_ratio<=0.4", output=tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("output", ["model.pt", "model"])
def test_pick_wants_a_name_that_ends_in_onnx(run: Run, tmp_path: Path, output: str) -> None:
    with pytest.raises(InvalidInput, match=r"ends in \.onnx"):
        run.pick(output=tmp_path / output)


def test_pick_says_where_it_may_not_write_and_what_is_gone(run: Run) -> None:
    with pytest.raises(InvalidInput, match="can't be written"):
        run.pick(output="/proc/model.onnx")
    (run.path / "artifacts" / "2.onnx").unlink()
    with pytest.raises(RunDirectoryError, match="restore it, or make the model again"):
        run.pick("latency_ratio<=0.4", output=run.path / "model.onnx")


def test_a_notebook_shows_the_front_with_texts_escaped(tmp_path: Path) -> None:
    run = Run(make_run(tmp_path / "run", config=config(task="<b>digits</b>")).path)
    html = run._repr_html_()
    assert "&lt;b&gt;digits" in html
    assert all(point.name in html for point in run.points)


def test_a_folder_without_a_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no such folder"):
        Run(tmp_path / "missing")


def test_what_comes_nearest_is_named_where_nothing_obeys(tmp_path: Path) -> None:
    impossible = config(constraints=("latency_ms<=0.25x", "accuracy>=95%"))
    make_run(tmp_path / "run", config=impossible, confirm=False)
    run = Run(tmp_path / "run")
    assert run.points == ()
    assert [point.number for point in run.near_misses] == [3, 2, 1]
    assert all(Path(point.file).is_file() for point in run.near_misses)
    plans = {record.number: record.plan for record in RunDirectory.open(tmp_path / "run").records()}
    for point in run.near_misses:
        assert Plan.from_json(Path(point.plan).read_text(encoding="utf-8")) == plans[point.number]
    assert {Path(point.file).stem for point in run.near_misses} == {point.name for point in run.near_misses}
    assert [point["name"] for point in run.as_json()["near_misses"]] == [point.name for point in run.near_misses]
    title, cell = next((column.title, column.cell) for column in run.columns() if column.key == "misses")
    assert (title, cell(run.near_misses[0])) == ("misses", "latency_ms<=0.25x by 20 %, accuracy>=0.95 by 0.211 %")
    page = run.report().read_text(encoding="utf-8")
    assert "No model obeys latency_ms&lt;=0.25x, accuracy&gt;=0.95. The nearest:" in page
    assert "latency_ms&lt;=0.25x by 20 %" in page
    with pytest.raises(InvalidInput, match=r"no model has latency_ms<=0\.25x, accuracy>=0\.95; the nearest: .*\.onnx"):
        run.pick()
    make_run(tmp_path / "other", confirm=False)
    assert Run(tmp_path / "other").near_misses == ()
    assert not (tmp_path / "other" / "near_misses").exists()


def test_what_comes_nearest_on_all_machines_is_named_where_nothing_obeys(tmp_path: Path) -> None:
    run = Run(on_two_machines(tmp_path / "run", constraints=("latency_ms<=0.35x",)).path)
    assert run.points == ()
    assert [point.number for point in run.near_misses] == [2, 1, 3], "by the machine that is farthest"
    assert all(set(point.machines) == {"phone", "server"} for point in run.near_misses)
    cell = next(column.cell for column in run.columns() if column.key == "misses")
    assert [cell(point) for point in run.near_misses] == [
        "latency_ms@phone<=0.35x by 14.3 %, latency_ms@server<=0.35x by 71.4 %",
        "latency_ms@phone<=0.35x by 42.9 %, latency_ms@server<=0.35x by 157 %",
        "latency_ms@server<=0.35x by 243 %",
    ]
    with pytest.raises(InvalidInput, match=r"no model has latency_ms@phone<=0\.35x, latency_ms@server<=0\.35x"):
        run.pick()


def test_a_share_beyond_one_is_not_looked_for(run: Run) -> None:
    with pytest.raises(InvalidInput, match="did you mean accuracy>=97%"):
        run.pick("accuracy>=97")


def test_several_machines_choose_by_the_geometric_mean_and_all_obey(tmp_path: Path) -> None:
    run = Run(on_two_machines(tmp_path / "run").path)
    assert [point.number for point in run.points] == [0, 1, 2, 3]
    assert run.pick(best="latency_ms").number == 2
    assert run.pick(best="latency_ratio").number == 2
    assert run.pick(best="latency_ms@phone").number == 3
    assert run.pick("latency_ratio<=0.95", best="accuracy").number == 1
    assert run.pick("latency_ratio<=0.7", best="accuracy").number == 2
    with pytest.raises(InvalidInput, match=r"has latency_ratio@phone<=0\.4, latency_ratio@server<=0\.4; ask for less"):
        run.pick("latency_ratio<=0.4")


def test_weights_choose_one_model(tmp_path: Path) -> None:
    for weights, number in ((("accuracy:1", "latency_ms:1"), 3), (("accuracy:1000", "latency_ms:1"), 0)):
        make_run(tmp_path / weights[0], config=config(objectives=weights), confirm=False)
        assert Run(tmp_path / weights[0]).pick().number == number


def test_a_score_on_the_device_is_in_every_table_and_chooses_a_model(tmp_path: Path) -> None:
    run = Run(scored_on_device(tmp_path / "run").path)
    shown = {point["name"][:3]: (point["device_score"], point["device_reason"]) for point in run.as_json()["front"]}
    assert shown["001"] == (0.9659, "")
    assert shown["002"] == (None, "no kernel for <Erf>")
    assert shown["003"] == (None, "")
    assert run.front.set_index("name").loc["001-int8", "device_accuracy"] == 0.9659
    assert [column.title for column in run.columns()][:4] == ["model", "accuracy", "test accuracy", "device accuracy"]
    assert run.pick("device_accuracy>=90%", "latency_ms").number == 1, "those that the device can't run are left out"
    assert run.pick(best="device_accuracy").number in (0, 1)
    with pytest.raises(InvalidInput, match="no model of the front has a score on the device"):
        Run(make_run(tmp_path / "without").path).pick("device_accuracy>=90%")
    directory = RunDirectory(run.path)
    directory.append(DeviceScore(2, 0.96))
    directory.append(DeviceScore(3, 0.80))
    assert run.pick("device_accuracy>=baseline-1%", "latency_ms").number == 2
    assert run.pick(best="device_accuracy").number == 0
    with pytest.raises(InvalidInput, match="did you mean device_accuracy>=96%"):
        run.pick("device_accuracy>=96")
