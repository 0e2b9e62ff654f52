"""The report is one page that needs nothing else and holds everything."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from synthetic import baseline, complete, config, dropped, make_run, scored_on_device

from autocompress.cluster import Cluster
from autocompress.errors import InvalidInput
from autocompress.plan import Plan, Step
from autocompress.report import write_report
from autocompress.report.facts import RunFacts
from autocompress.report.figure import figure, finite
from autocompress.report.sections import SECTIONS
from autocompress.report.sections.headline import Headline
from autocompress.report.sections.selection import optimism
from autocompress.run_directory import RunDirectory

LOADING = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("object", "data"),
}


class Page(HTMLParser):
    """The elements of a page, its links, and its figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.figures: list[dict[str, Any]] = []
        self.sections: list[str] = []
        self._is_figure = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loads += [str(value) for name, value in attrs if (tag, name) in LOADING]
        if tag == "a":
            self.links.append(str(given["href"]))
        if tag == "section":
            self.sections.append(str(given["id"]))
        self._is_figure = given.get("type") == "application/json"

    def handle_data(self, data: str) -> None:
        if self._is_figure:
            self.figures.append(json.loads(data))
            self._is_figure = False


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run")


def test_the_page_loads_nothing_and_forbids_to(directory: RunDirectory, tmp_path: Path) -> None:
    path = write_report(directory, tmp_path / "page.html")
    assert Page(path).loads == []
    text = path.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "Plotly.react" in text
    assert "@import" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def test_every_section_is_on_the_page_in_its_order(directory: RunDirectory, tmp_path: Path) -> None:
    ordered = sorted(SECTIONS, key=lambda name: SECTIONS[name].order)
    asked_for = Page(write_report(scored_on_device(tmp_path / "scored"), tmp_path / "page.html"))
    assert asked_for.sections == ordered
    page = Page(write_report(directory, tmp_path / "page.html"))
    assert page.sections == [name for name in ordered if name != "device_scores"]


def test_the_plots_hold_all_finished_trials(directory: RunDirectory, tmp_path: Path) -> None:
    latency, size, sensitivity, progress = Page(write_report(directory, tmp_path / "page.html")).figures
    (trace,) = sensitivity["data"]
    assert trace["x"] == ["stem", "head"]
    assert trace["y"] == [0.2, 1e-5]
    others, front, original = latency["data"]
    assert others["x"] == [0.6]
    assert front["x"] == [1.0, 0.5, 0.4, 0.3]
    assert front["y"] == pytest.approx([97.0, 96.8, 95.5, 94.8])
    assert original["x"] == [1.0]
    assert front["error_x"]["array"] == pytest.approx([0.02] * 4)
    assert front["error_x"]["arrayminus"] == pytest.approx([0.01] * 4)
    assert size["data"][1]["x"] == pytest.approx([1.0, 0.27, 0.3, 0.2])
    volumes = progress["data"][0]["y"]
    assert len(volumes) == 9
    assert volumes == sorted(volumes)
    assert 0 == volumes[0] < volumes[-1]


def text_of(directory: RunDirectory, section: str, path: Path) -> str:
    """The words of one section of the page."""
    html = write_report(directory, path / "page.html").read_text(encoding="utf-8")
    found = html.partition(f'<section id="{section}">')[2].partition("</section>")[0]
    return " ".join(re.sub(r"<[^>]+>", " ", found).split())


def test_predictions_are_held_against_what_came(directory: RunDirectory, tmp_path: Path) -> None:
    text = text_of(directory, "foresight", tmp_path)
    assert "latency 4 1.00 10.0% 10.0%" in text
    assert "loss of accuracy 4 1.00 0.19 points" in text


def test_time_is_counted_by_stage(directory: RunDirectory, tmp_path: Path) -> None:
    text = text_of(directory, "time_spent", tmp_path)
    assert "train 45 s" in text
    assert "looking at single changes 2 s" in text
    assert "Workers: 2, all together" in text


@pytest.mark.parametrize(
    ("executor", "cluster", "told"),
    [
        ("processes", Cluster(), "executor processes workers"),
        ("ray", Cluster("head:6379", 0.5), "executor ray, at head:6379, GPUs per trial: 0.5 workers"),
        ("ray", Cluster(None, 1, 4), "executor ray, 4 trainers per trial, GPUs per trainer: 1 workers"),
    ],
)
def test_the_configuration_says_where_trials_ran(executor: str, cluster: Cluster, told: str, tmp_path: Path) -> None:
    asked = replace(config(), executor=executor, cluster=cluster)
    assert told in text_of(make_run(tmp_path / "run", config=asked), "configuration", tmp_path)


def test_a_model_that_loses_a_point_is_within_a_point(directory: RunDirectory, tmp_path: Path) -> None:
    facts = RunFacts.read(directory, tmp_path)
    edge = [replace(point, validation={"accuracy": 0.97 - 0.01}) for point in facts.front if point.number == 3]
    assert facts.baseline is not None
    assert facts.baseline.validation["accuracy"] - edge[0].validation["accuracy"] > 0.01, "as doubles have it"
    html = Headline().html(replace(facts, front=tuple(edge)))
    assert "0.20×" in html
    assert "smallest size within 1 point of accuracy: 003" in html


def test_the_luck_of_the_choice_is_told(directory: RunDirectory, tmp_path: Path) -> None:
    text = text_of(directory, "selection", tmp_path)
    assert "On test data the 3 models lose 0.20 points less" in text
    assert "interval" not in text, "nothing is known of parts of the data"


@pytest.mark.parametrize(("of_baseline", "of_models"), [(0.0, 0.0), (0.02, 0.02), (0.02, 0.0), (0.0, 0.02)])
def test_the_luck_of_the_choice_is_as_sure_as_samples_allow(
    of_baseline: float, of_models: float, directory: RunDirectory, tmp_path: Path
) -> None:
    def folds(number: int, score: float) -> tuple[float, ...]:
        swing = of_models if number else of_baseline
        return tuple(score + swing * (-1.0) ** k for k in range(16))

    facts = RunFacts.read(directory, tmp_path)
    assert facts.baseline is not None
    seen = [replace(r, fold_scores=folds(r.number, r.values.get("accuracy", 0.0))) for r in facts.records]
    both = (facts.baseline, *facts.front)
    unseen = {point.number: folds(point.number, point.test["accuracy"]) for point in both}
    known = replace(facts, records=tuple(seen), test_fold_scores=unseen)
    tested = [point for point in facts.front if point.number]
    excess, interval = optimism(known, facts.baseline, tested)
    assert excess == pytest.approx(-0.2)
    assert interval is not None
    low, high = interval
    error = 100 * 2**0.5 * abs(of_baseline - of_models) / 15**0.5  # what is lucky for all of them counts for nothing
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15, abs=1e-9)
    assert low - 1e-9 <= excess <= high + 1e-9


def test_scores_on_the_device_stand_beside_those_on_the_host(tmp_path: Path) -> None:
    text = text_of(scored_on_device(tmp_path / "run"), "device_scores", tmp_path)
    assert "differs from that on the host for 1 of 2 models, most for 001-int8: -0.21 points." in text
    assert "On the device 002-width_0.5 can&#x27;t be scored: no kernel for &lt;Erf&gt;" in text
    assert "Not scored on the device, as there was no time: 003-" in text
    assert "000-baseline 97.00 % 97.00 % +0.00 points 001-int8 96.80 % 96.59 % -0.21 points" in text
    assert "002-width_0.5 95.50 % no score" in text


def test_the_table_links_to_the_files_from_where_the_page_lies(directory: RunDirectory, tmp_path: Path) -> None:
    for output in (directory.path / "report.html", tmp_path / "elsewhere" / "page.html"):
        links = Page(write_report(directory, output)).links
        assert len(links) == 8
        assert all((output.parent / unquote(link)).is_file() for link in links)


def test_reasons_that_differ_in_numbers_alone_are_one_line(directory: RunDirectory, tmp_path: Path) -> None:
    text = write_report(directory, tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("keeps 0 of") == 2
    assert "6, 7" in text


def test_every_text_of_the_run_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    made = replace(config(task=evil), machine=evil, versions={evil: evil}, task_reference=evil)
    directory = make_run(tmp_path / "run", config=made)
    plan = Plan(steps=(Step(evil, {evil: {evil: 0.5}}), Step("quantization", {evil: {"precision": "int8"}})))
    shown = replace(complete(9, plan, 0.99, 0.2, 0.1), notes=(evil,))
    for record in (shown, dropped(10, "failed", evil)):
        directory.append(record)
    text = write_report(directory, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "alert(1)" in text
    assert evil not in text


def test_text_in_a_figure_can_not_end_its_script() -> None:
    html = figure([{"text": ["</script>"]}], {}, label="a <label>")
    assert html.count("</script>") == 1
    assert "&lt;label&gt;" in html


def test_numbers_that_json_does_not_know_become_null() -> None:
    assert finite({"y": [1.0, float("nan"), (float("inf"), "text")]}) == {"y": [1.0, None, [None, "text"]]}


def test_a_run_without_a_baseline_has_a_page_too(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_config(config())
    page = Page(write_report(directory, tmp_path / "page.html"))
    assert page.figures == []
    assert page.sections == ["headline", "configuration"]


def test_a_run_with_the_baseline_alone_has_a_page_too(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_config(config())
    directory.append(baseline())
    assert Page(write_report(directory, tmp_path / "page.html")).sections[0] == "headline"


def test_layers_stand_in_the_order_of_the_model(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    text = write_report(directory, tmp_path / "page.html").read_text(encoding="utf-8")
    layers = re.findall(r'<th class="layer">([\w.]+)</th>', text)
    assert layers[-5:] == ["stem", "block1.conv1", "block1.conv2", "block2.conv1", "head"]


def test_a_place_that_can_not_be_written_is_named(directory: RunDirectory) -> None:
    with pytest.raises(InvalidInput, match="can't be written"):
        write_report(directory, Path("/proc/page.html"))


def test_the_report_reads_a_run_without_torch_and_pandas(directory: RunDirectory) -> None:
    code = f"""
import sys
from pathlib import Path
from autocompress.report import write_report
from autocompress.run_directory import RunDirectory
write_report(RunDirectory(Path({str(directory.path)!r})), Path({str(directory.path / "r.html")!r}))
print(sorted({{"torch", "pandas", "optuna"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
