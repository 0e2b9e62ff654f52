"""Searches that measure on several machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread, current_thread
from typing import Any

import pytest

import autocompress
from autocompress.artifact import Artifact
from autocompress.devices import Device, resolve_profile
from autocompress.devices.fake import FakeDevice
from autocompress.devices.remote import RemoteDevice
from autocompress.errors import InvalidInput, UnknownName
from autocompress.front import told_apart
from autocompress.measurement import Measurement
from autocompress.objective import Constraint, is_measured, make_objectives, measured_objectives, parse_constraints
from autocompress.pipeline import Workbench, measuring
from autocompress.plan import Plan
from autocompress.profile import HardwareProfile, made_for
from autocompress.record import Record, Trial
from autocompress.run import Run
from autocompress.run_directory import RunDirectory
from autocompress.space import MethodSpace, RecoverySpace, SearchSpace
from tests.tasks.stripes import task

BOTH = ("phone", "server")
PHONE = replace(resolve_profile("fake"), name="phone")
SERVER = replace(PHONE, name="server", kernels={})
"""Two machines: integers are fast on one alone."""

QUIET = Measurement(1.0, 1.0, (0.9, 1.1), 1.0, 1.0, 1.0, 1, 0, 1, "test")

SPACE = SearchSpace(
    "quick",
    methods={
        "channel_pruning": MethodSpace({"pruning_ratio": (0, 0.25, 0.5)}),
        "quantization": MethodSpace({"precision": ("fp32", "int8")}),
    },
    recovery=RecoverySpace(epochs=1, student_epochs=1),
    policies=({"quantization/precision": "int8"}, {"channel_pruning/pruning_ratio": 0.5}),
)


def search(output: Path, *, trials: int = 6, **options: object) -> Run:
    given = {"hardware": (PHONE, SERVER), "space": SPACE, "executor": "inline", **options}
    return autocompress.search(task, output=output, trials=trials, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return search(tmp_path_factory.mktemp("machines") / "run")


# -- names -----------------------------------------------------------------------------------------------------------


def test_the_latency_on_each_machine_is_an_objective_by_default() -> None:
    names = [one.name for one in make_objectives((), "accuracy", "maximize", BOTH)]
    assert names == ["accuracy", "latency_ms@phone", "latency_ms@server", "size_bytes"]
    assert [one.name for one in make_objectives((), "accuracy", "maximize", ("phone",))] == [
        "accuracy",
        "latency_ms",
        "size_bytes",
    ]


def test_values_of_machines_keep_what_they_are() -> None:
    found = {one.name: one for one in measured_objectives(BOTH)}
    assert found["latency_ms@server"].tolerance == found["latency_ms"].tolerance
    assert found["peak_memory_bytes@phone"].unit == "bytes"
    assert "size_bytes@phone" not in found
    assert is_measured("latency_ms@server")
    assert not is_measured("accuracy")


def test_a_machine_that_is_not_measured_on_is_refused_by_name() -> None:
    with pytest.raises(UnknownName, match="latency_ms@phone"):
        make_objectives(("accuracy", "latency_ms@tablet"), "accuracy", "maximize", BOTH)
    known = tuple(one.name for one in measured_objectives(BOTH))
    assert parse_constraints(("latency_ms@phone<=5", "peak_memory_bytes@server<=3MiB"), known) == (
        Constraint("latency_ms@phone", "<=", 0.0, 5.0),
        Constraint("peak_memory_bytes@server", "<=", 0.0, 3.0 * 2**20),
    )
    with pytest.raises(UnknownName):
        parse_constraints(("latency_ms@tablet<=5",), known)
    with pytest.raises(InvalidInput, match="a percentage is for metrics"):
        Constraint.parse("latency_ms@phone<=50%")


def test_a_latency_without_a_machine_is_that_on_each() -> None:
    weighted = make_objectives(("accuracy:10", "latency_ms:1"), "accuracy", "maximize", BOTH)
    assert {one.name: one.weight for one in weighted} == {
        "accuracy": 10.0,
        "latency_ms@phone": 0.5,
        "latency_ms@server": 0.5,
    }
    with pytest.raises(InvalidInput, match="'latency_ms@phone' is given 2 times"):
        make_objectives(("accuracy", "latency_ms", "latency_ms@phone"), "accuracy", "maximize", BOTH)
    known = tuple(one.name for one in measured_objectives(BOTH))
    assert [str(one) for one in parse_constraints(("latency_ms<=0.5x", "size_bytes<=5"), known)] == [
        "latency_ms@phone<=0.5x",
        "latency_ms@server<=0.5x",
        "size_bytes<=5",
    ]


def test_intervals_of_a_latency_are_those_of_its_machine() -> None:
    objectives = make_objectives((), "accuracy", "maximize", BOTH)
    sharp = Measurement(1.0, 1.0, (0.999, 1.001), 1.0, 1.0, 1.0, 1, 0, 1, "test")
    vague = replace(sharp, latency_ratio_interval=(0.9, 1.1))

    def record(number: int, phone: float, server: float) -> Record:
        values = {"accuracy": 0.9, "latency_ms@phone": phone, "latency_ms@server": server, "size_bytes": 100.0}
        return Record(
            Trial(number, Plan()),
            "complete",
            values=values,
            measurements={"phone": sharp, "server": vague},
        )

    on_phone = (record(1, 1.0, 1.0), record(2, 1.05, 0.9))
    assert len(told_apart(on_phone, objectives)) == 1  # 10 % on the server may be noise, 5 % on the phone is not
    assert len(told_apart((record(1, 1.0, 1.0), record(2, 1.05, 0.8)), objectives)) == 2


# -- what models are made for ----------------------------------------------------------------------------------------


def test_models_are_made_for_what_is_fast_on_any_machine_and_fits_all() -> None:
    first = HardwareProfile("a", channel_multiple=8, kernels={"conv": ("int8",), "depthwise": ()}, threads=2)
    second = HardwareProfile("b", channel_multiple=12, kernels={"linear": ("nbits",)}, reduce_range=True)
    both = made_for((first, second))
    assert (both.fast("conv"), both.fast("depthwise"), both.fast("linear")) == (("int8",), (), ("nbits",))
    assert (both.channel_multiple, both.reduce_range, both.threads) == (24, True, 2)
    assert both.name == "a, b"
    assert made_for((first,)) is first


# -- searches --------------------------------------------------------------------------------------------------------


def test_every_model_is_measured_on_every_machine(run: Run) -> None:
    assert run.config.profiles == (PHONE, SERVER)
    complete = [record for record in RunDirectory(run.path).records() if record.status == "complete"]
    assert len(complete) > 2
    for record in complete:
        values = record.values
        assert tuple(record.measurements) == BOTH
        assert record.measurement == record.measurements["phone"]
        assert values["latency_ms"] == values["latency_ms@phone"]
        assert values["latency_ratio@phone"] == record.measurements["phone"].latency_ratio
        assert values["latency_ratio@server"] == record.measurements["server"].latency_ratio


def test_what_is_fast_on_one_machine_alone_is_told_apart(run: Run) -> None:
    integers = next(record for record in RunDirectory(run.path).records() if "int8" in str(record.plan.steps))
    assert integers.values["latency_ratio@phone"] < 0.7
    assert integers.values["latency_ratio@server"] == pytest.approx(1.0, abs=0.01)


def test_a_search_says_what_is_not_tried_since_it_is_slow(run: Run, tmp_path: Path) -> None:
    assert "not tried" not in (run.path / "log.txt").read_text(encoding="utf-8")  # fast on one machine is enough
    alone = search(tmp_path / "run", trials=1, hardware=SERVER).path / "log.txt"
    log = alone.read_text(encoding="utf-8")
    assert "not tried: quantization int8 for 3 layers (conv): no faster than fp32 by the profile 'server'" in log
    assert "not tried: quantization int8 for 1 layer (linear): no faster" in log
    assert "dynamic_int8 for" not in log, "the space does not name it"


def test_precisions_that_a_kind_of_layer_never_has_are_told_where_the_space_names_them(tmp_path: Path) -> None:
    named = MethodSpace({"precision": ("fp32", "int8", "dynamic_int8", "nbits")})
    space = replace(SPACE, methods={"quantization": named}, policies=())
    run = search(tmp_path / "run", trials=1, hardware=PHONE, space=space)
    log = (run.path / "log.txt").read_text(encoding="utf-8")
    assert "not tried: quantization dynamic_int8 for 3 layers (conv): slower than fp32 on every machine" in log
    assert "not tried: quantization nbits for 3 layers (conv): there is no such kernel" in log


def test_the_front_is_one_of_both_latencies(run: Run) -> None:
    for point in run.points:
        if point.number:
            assert set(point.machines) == set(BOTH)
            values = point.values()
            assert values["latency_ms@server"] == point.machines["server"].latency_ms
            assert values["latency_ms@phone"] == point.latency_ms
    fastest = run.pick("latency_ratio@server<=1", best="latency_ms@server")
    assert fastest.machines["server"].latency_ms == min(point.machines["server"].latency_ms for point in run.points)
    titles = [column.title for column in run.columns()]
    assert [title for title in titles if "phone" in title] == ["latency phone", "× phone", "95 % phone"]
    assert [title for title in titles if "server" in title] == ["latency server", "× server", "95 % server"]
    header = (run.path / "front" / "front.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "latency_ratio_low@server,latency_ratio_high@server" in header


def test_all_machines_are_shown(run: Run) -> None:
    page = run.report().read_text(encoding="utf-8")
    assert "accuracy against latency on phone" in page
    assert "accuracy against latency on server" in page
    assert "lowest latency on server" in page
    assert "phone (fake), server (fake) · " in page
    integers = next(record for record in RunDirectory(run.path).records() if "int8" in str(record.plan.steps))
    told = ", ".join(f"{integers.values[f'latency_ratio@{name}']:.2f}x" for name in BOTH)
    assert f"latency {told}, size" in (run.path / "log.txt").read_text(encoding="utf-8")


def test_a_constraint_on_one_machine_holds_there(tmp_path: Path) -> None:
    run = search(tmp_path / "run", trials=4, constraints=("latency_ms@server<=0.9x",))
    assert run.points
    assert all(point.machines["server"].latency_ratio <= 0.9 for point in run.points if point.number)


def test_weights_and_constraints_without_a_machine_are_those_of_all(tmp_path: Path) -> None:
    asked = {"objectives": ("accuracy:10", "latency_ms:1"), "constraints": ("latency_ms<=0.9x",)}
    run = search(tmp_path / "run", trials=4, **asked)
    assert [one.name for one in run.config.objectives] == ["accuracy", "latency_ms@phone", "latency_ms@server"]
    assert run.points
    assert all(one.latency_ratio <= 0.9 for point in run.points for one in point.machines.values())
    assert run.pick() in run.points


def test_a_search_may_have_three_machines(tmp_path: Path) -> None:
    run = search(tmp_path / "run", hardware=(PHONE, SERVER, replace(SERVER, name="tablet")), trials=5)
    assert run.status == "complete"
    assert all(set(point.machines) == {*BOTH, "tablet"} for point in run.points)


def test_a_model_for_several_machines_is_made_again_for_all_of_them(tmp_path: Path) -> None:
    narrow = replace(SERVER, reduce_range=True)
    run = search(tmp_path / "run", trials=2, hardware=(PHONE, narrow))
    point = next(point for point in run.points if "int8" in point.name)
    seed = next(one.trial.seed for one in RunDirectory(run.path).records() if one.number == point.number)
    made = tmp_path / "again.onnx"
    record = autocompress.apply(point.plan, task, output=made, hardware=(PHONE, narrow), seed=seed)
    assert made.read_bytes() == Path(point.file).read_bytes()
    assert record.values["latency_ratio@server"] == pytest.approx(point.machines["server"].latency_ratio)


def test_check_tries_every_machine(tmp_path: Path) -> None:
    report = autocompress.check(task, space=SPACE, hardware=(PHONE, SERVER))
    assert report.ok
    assert any("ms on phone" in item.detail and "ms on server" in item.detail for item in report.items)


def test_a_search_on_several_machines_can_be_resumed(tmp_path: Path) -> None:
    path = search(tmp_path / "run", trials=2).path
    run = autocompress.resume(path, task=task, trials=4, executor="inline")
    assert len(RunDirectory(run.path).records()) == 5
    assert all("latency_ms@server" in record.values for record in RunDirectory(run.path).records())


def test_a_search_on_one_machine_names_none(tmp_path: Path) -> None:
    run = search(tmp_path / "run", trials=1, hardware=[PHONE])
    assert not any("@" in name for record in RunDirectory(run.path).records() for name in record.values)
    assert run.baseline is not None
    assert run.baseline.as_json()["machines"] == {}


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ((), "no machine is given"),
        ((PHONE, PHONE), "2 profiles are called 'phone'"),
        ((PHONE, replace(SERVER, name="a b")), "called 'a b'; expected letters"),
    ],
)
def test_machines_that_can_not_be_told_apart_are_refused(
    tmp_path: Path, profiles: tuple[HardwareProfile, ...], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        search(tmp_path / "run", hardware=profiles)
    assert not (tmp_path / "run").exists()


def test_one_machine_is_measured_in_the_thread_that_ctrl_c_reaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, threads = Workbench(task, (PHONE,), tmp_path), list[Thread]()

    def measure(*_: object, **__: object) -> tuple[()]:
        threads.append(current_thread())
        return ()

    monkeypatch.setattr(FakeDevice, "measure", measure)
    monkeypatch.setattr(Workbench, "reference", None)
    assert measuring.measure(bench, []) == ()
    assert threads == [current_thread()]


def test_profiles_that_have_a_board_in_common_are_one_place(tmp_path: Path) -> None:
    pools = {"one": ("http://a:1", "http://b:1"), "two": ("http://c:1",), "three": ("http://b:1",), "four": ()}
    profiles = tuple(
        HardwareProfile(name, device="remote" if addresses else "local", addresses=addresses)
        for name, addresses in pools.items()
    )
    places = Workbench(task, profiles, tmp_path).places
    assert {tuple(one.profile.name for one in place) for place in places} == {("one", "three"), ("two",), ("four",)}


@pytest.mark.parametrize(
    ("disturbances", "kept", "asked"), [((0.1, 0.0), 1, 2), ((0.1, 0.2), 0, 2), ((0.2, 0.1), 1, 2), ((0.0,), 0, 1)]
)
def test_a_model_is_measured_once_more_where_the_machine_was_disturbed(
    disturbances: Sequence[float], kept: int, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [replace(QUIET, disturbance=one, latency_ms=float(number)) for number, one in enumerate(disturbances)]
    given = iter(found)
    monkeypatch.setattr(FakeDevice, "measure", lambda *_, **__: (next(given),))
    monkeypatch.setattr(Workbench, "reference", None)
    (measured,) = measuring.measure(Workbench(task, (PHONE,), tmp_path), [Artifact("a", "0" * 64, 1)])
    assert measured == {"phone": found[kept]}
    assert len(found) - len(list(given)) == asked


@pytest.mark.parametrize(
    ("trials_ms", "now_ms", "machine", "kept"),
    [
        ((0.5, 0.5), 0.51, "test", (False, False)),  # nothing disturbs it
        ((0.5, 0.5), 0.57, "test", (True, True)),
        ((0.5, 0.6), 0.57, "test", (True, False)),  # the second was measured beside even more
        ((0.56, 0.561), 0.562, "test", (False, False)),  # all alike
        ((0.6, 0.6), 0.5, "test", (False, False)),
        ((0.5, 0.5), 0.57, "a slower one", (False, False)),
    ],
)
def test_what_a_trial_measured_in_a_quieter_moment_stays(
    trials_ms: Sequence[float],
    now_ms: float,
    *,
    machine: str,
    kept: Sequence[bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def beside(reference_ms: float, ratio: float) -> Measurement:
        return replace(QUIET, latency_ms=reference_ms * ratio, latency_ratio=ratio)

    before = [beside(reference_ms, 0.5) for reference_ms in trials_ms]
    now = [replace(beside(now_ms, 0.6), machine=machine) for _ in trials_ms]
    records = [Record(Trial(number, Plan()), "complete", measurements={"phone": m}) for number, m in enumerate(before)]
    monkeypatch.setattr(FakeDevice, "measure", lambda *_, **__: tuple(now))
    monkeypatch.setattr(Workbench, "reference", None)
    monkeypatch.setattr(Workbench, "artifact", lambda *_: Artifact("a", "0" * 64, 1))
    found = measuring.remeasure(records, Workbench(task, (PHONE,), tmp_path), {"latency_ms": 2.0}, 1.0)
    assert [one.kept == ("phone",) for one in found] == list(kept)
    assert [one.measurements["phone"] for one in found] == [
        old if stays else new for old, new, stays in zip(before, now, kept, strict=True)
    ]
    assert [one.values["latency_ms"] for one in found] == [1.0 if stays else 1.2 for stays in kept]


def test_machines_elsewhere_measure_at_the_same_time_and_profiles_of_one_place_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [HardwareProfile(name, device="fake") for name in ("one", "two")]
    there = HardwareProfile("there", device="remote", addresses=("http://board:1",))
    bench = Workbench(task, (*here, there), tmp_path)
    together, order = Barrier(2), list[str]()

    def measure(device: Device, artifacts: Sequence[Artifact], *_: object, **__: object) -> Any:
        order.append(device.profile.name)
        if device.profile.name != "two":
            together.wait(timeout=60)
        return tuple(replace(QUIET, machine=f"{device.profile.name}{index}") for index, _ in enumerate(artifacts))

    for kind in (FakeDevice, RemoteDevice):
        monkeypatch.setattr(kind, "measure", measure)
    monkeypatch.setattr(Workbench, "reference", None)
    found = measuring.measure(bench, [Artifact("a", "0" * 64, 1), Artifact("b", "1" * 64, 1)])
    assert [[(name, measured.machine) for name, measured in one.items()] for one in found] == [
        [(name, f"{name}{index}") for name in ("one", "two", "there")] for index in range(2)
    ]
    assert order.index("two") > order.index("one")
