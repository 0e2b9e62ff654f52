from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from autocompress.artifact import Artifact
from autocompress.duration import parse_duration
from autocompress.errors import DeviceUnavailable, InfeasiblePlan, MeasurementError, SearchFailed
from autocompress.interrupts import Interrupts
from autocompress.loop import Calls, Clock, SearchLoop, TrialTimes
from autocompress.loop.confirming import MOST_CPU_S
from autocompress.loop.times import LEAST_EPOCHS
from autocompress.measurement import Measurement
from autocompress.objective import make_objectives
from autocompress.plan import Plan, Recovery, Step
from autocompress.probe import Probe, Sensitivity
from autocompress.profile import HardwareProfile
from autocompress.record import DeviceScore, Proposal, Record, Remeasured, SplitScore, TooSlow, Trial
from autocompress.run_directory import PHASES, RunConfig, RunDirectory, RunStatus
from autocompress.screen import Screen
from autocompress.snapshot import Snapshot
from autocompress.space import SearchSpace
from autocompress.strategies import Fits, SearchStrategy, always

METRIC = {"accuracy": 0.9, "latency_ms": 1.0, "latency_ratio": 1.0, "size_bytes": 1000.0, "peak_memory_bytes": 1.0}
MEASURED = Measurement(1.0, 1.0, (0.99, 1.01), 1.0, 1.1, 1.0, 1, 0, 1, "test")


class Killed(BaseException):
    """What nothing in the search handles."""


class Listed(SearchStrategy):
    """Proposes what it is given, in order, as long as the next ends in time, and keeps what it is told."""

    name = "listed"

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = list(plans)
        self.told: list[Record] = []
        self.number = 0

    def ask(self, fits: Fits = always) -> Trial | None:
        if self.number == len(self.plans):
            return None
        trial = Trial(self.number + 1, self.plans[self.number], proposal=Proposal("listed"))
        if not fits(trial):
            return None
        self.number += 1
        return trial

    def tell(self, record: Record) -> None:
        self.told.append(record)


def plans(count: int, *, epochs: int = 0) -> list[Plan]:
    recovery = Recovery(epochs=epochs)
    return [
        Plan(steps=(Step("quantization", {f"layer{i}": {"precision": "int8"}}),), recovery=recovery)
        for i in range(count)
    ]


class Bench:
    """A search without models: a run directory, made-up calls, and what they were asked."""

    def __init__(self, path: Path, **config: object) -> None:
        self.directory = RunDirectory.create(path)
        given = RunConfig(
            task="test",
            task_reference="",
            metric="accuracy",
            is_percentage=True,
            direction="maximize",
            fingerprints={},
            space=SearchSpace("test"),
            profiles=(HardwareProfile("test"),),
            objectives=make_objectives((), "accuracy", "maximize"),
            constraints=(),
            strategy="listed",
            budget_s=None,
            trials=None,
            workers=1,
            seed=0,
        )
        self.directory.write_config(replace(given, **config))  # type: ignore[arg-type]
        self.directory.append(self.complete(Trial(0, Plan()), METRIC))
        self.ran: list[Trial] = []
        self.screens: list[Screen] = []
        self.scored_on_device: list[int] = []
        self.killed = 0
        self.snapshots: list[Snapshot] = []
        self.interrupts = Interrupts()
        self.outcome: Callable[[Trial], Record] = self.improving

    def complete(self, trial: Trial, values: dict[str, float]) -> Record:
        path = self.directory.path / "artifacts" / f"{trial.plan.digest}.onnx"
        path.write_bytes(trial.plan.digest.encode())
        artifact = replace(Artifact.of(path), path=f"artifacts/{path.name}")
        return Record(trial, "complete", values=values, artifact=artifact, measurements={"test": MEASURED})

    def improving(self, trial: Trial) -> Record:
        """Each trial faster and less accurate than the one before."""
        share = 0.9**trial.number
        values = {**METRIC, "accuracy": 0.9 * share, "latency_ms": share, "latency_ratio": share}
        return self.complete(trial, values)

    def run(
        self,
        strategy: SearchStrategy,
        begun: Mapping[Future[Record], Trial] = {},
        unfinished: Sequence[Trial] = (),
        **times: float,
    ) -> RunStatus:
        clock = Clock(times.get("spent_s", 0.0), time.monotonic())
        loop = SearchLoop(
            directory=self.directory,
            strategy=strategy,
            calls=Calls(self._run, self._look, self._test_score, self._device_score, self._remeasure, self._kill),
            clock=clock,
            times=TrialTimes(times.get("epoch_s", 0.001)),
            interrupts=self.interrupts,
            observer=self.snapshots.append,
            begun=begun,
            unfinished=unfinished,
        )
        return loop.run()

    def _run(self, trial: Trial, screen: Screen) -> Future[Record]:
        self.ran.append(trial)
        self.screens.append(screen)
        future: Future[Record] = Future()
        try:
            future.set_result(self.outcome(trial))
        except Exception as error:
            future.set_exception(error)
        return future

    def _look(self, probe: Probe) -> Future[Sensitivity]:
        return done(Sensitivity(probe, divergence=0.1, values={"latency_ratio": 0.9, "size_bytes": 900.0}))  # type: ignore[no-any-return]

    def _test_score(self, record: Record) -> Future[SplitScore]:
        return done(SplitScore({"accuracy": record.values["accuracy"] - 0.01}))  # type: ignore[no-any-return]

    def _device_score(self, record: Record, limit_s: float) -> Future[DeviceScore | TooSlow]:
        self.scored_on_device.append(record.number)
        return done(DeviceScore(record.number, record.values["accuracy"], seconds=0.1))  # type: ignore[no-any-return]

    def _remeasure(
        self, records: tuple[Record, ...], baseline: Mapping[str, float], each_s: float
    ) -> Future[tuple[Remeasured, ...]]:
        return done(
            tuple(
                Remeasured(
                    r.number, {"test": MEASURED}, {name: r.values[name] for name in ("latency_ms", "latency_ratio")}
                )
                for r in records
            )
        )

    def _kill(self) -> None:
        self.killed += 1


def front_of(bench: Bench) -> list[dict[str, Any]]:
    """What `front.json` says of the models."""
    found: list[dict[str, Any]] = json.loads((bench.directory.path / "front" / "front.json").read_text())["front"]
    return found


def log_of(bench: Bench) -> str:
    return (bench.directory.path / "log.txt").read_text()


def done(value):  # type: ignore[no-untyped-def]
    future = Future()  # type: ignore[var-annotated]
    future.set_result(value)
    return future


class Looking(Listed):
    """Looks at some changes before it proposes what it is given."""

    name = "looking"

    def __init__(self, plans: Sequence[Plan], changes: Sequence[Plan]) -> None:
        super().__init__(plans)
        self.changes = list(changes)
        self.noted: list[Sensitivity] = []

    def ask(self, fits: Fits = always) -> Trial | Probe | None:  # type: ignore[override]
        return Probe(self.changes.pop(0)) if self.changes else super().ask(fits)

    def note(self, entry: Sensitivity) -> None:
        self.noted.append(entry)

    def parents(self) -> frozenset[str]:
        return frozenset(record.plan.digest for record in self.told[-1:])


def test_changes_are_looked_at_noted_and_kept(tmp_path: Path) -> None:
    bench, changes = Bench(tmp_path / "run", workers=2), plans(3)
    strategy = Looking(plans(2, epochs=1), changes)
    bench.run(strategy)
    assert {entry.plan.digest for entry in strategy.noted} == {change.digest for change in changes}
    assert bench.directory.sensitivities() == tuple(strategy.noted)
    assert [record.number for record in bench.directory.records()] == [0, 1, 2]
    assert bench.snapshots[-1].looked == 3


def raising(error: Exception) -> Callable[[Probe], Future[Sensitivity]]:
    """A look that ends in an error."""

    def look(probe: Probe) -> Future[Sensitivity]:
        future: Future[Sensitivity] = Future()
        future.set_exception(error)
        return future

    return look


@pytest.mark.parametrize("error", [MeasurementError("not measured within the limit"), ZeroDivisionError("a bug")])
def test_a_look_that_failed_by_no_fault_of_the_change_leaves_no_entry(error: Exception, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")

    bench._look = raising(error)  # type: ignore[method-assign]
    strategy = Looking(plans(1), plans(2))
    bench.run(strategy)
    assert bench.directory.sensitivities() == ()
    assert strategy.noted == []
    assert len(strategy.told) == 1, "the search goes on"
    assert "a change was not looked at: " in log_of(bench)
    assert str(error) in log_of(bench)


def test_a_look_that_killed_its_worker_took_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")

    def look(probe: Probe) -> Future[Sensitivity]:
        future: Future[Sensitivity] = Future()
        Timer(0.2, lambda: future.set_exception(BrokenExecutor("killed"))).start()
        return future

    bench._look = look  # type: ignore[method-assign]
    bench.run(Looking(plans(1), plans(1)))
    (entry,) = bench.directory.sensitivities()
    assert "the worker process died" in entry.reason
    assert entry.seconds >= 0.15


class Following(Listed):
    """Proposes each plan only after it was told of the one before."""

    name = "following"

    def ask(self, fits: Fits = always) -> Trial | None:
        return super().ask(fits) if len(self.told) == self.number else None


def test_a_strategy_may_have_nothing_to_propose_until_what_is_at_work_has_ended(tmp_path: Path) -> None:
    bench, strategy = Bench(tmp_path / "run", workers=3), Following(plans(4))

    def later(trial: Trial, screen: Screen) -> Future[Record]:
        future: Future[Record] = Future()
        Timer(0.05, lambda: future.set_result(bench.improving(trial))).start()
        return future

    bench._run = later  # type: ignore[method-assign]
    assert bench.run(strategy) == "complete"
    assert [record.number for record in strategy.told] == [1, 2, 3, 4]


def test_what_an_earlier_process_began_lands_before_anything_is_proposed(tmp_path: Path) -> None:
    bench, asked = Bench(tmp_path / "run", trials=4), list[int]()

    class Counting(Listed):
        def ask(self, fits: Fits = always) -> Trial | None:
            asked.append(len(self.told))
            self.number = max(record.number for record in self.told)
            return Trial(self.number + 1, self.plans[self.number], proposal=Proposal("listed"))

    listed = plans(4)
    begun: dict[Future[Record], Trial] = {Future(): Trial(number, listed[number - 1]) for number in (1, 2, 3)}
    for delay, (future, trial) in zip((0.2, 0.1), list(begun.items())[:2], strict=True):
        Timer(delay, future.set_result, (bench.improving(trial),)).start()
    list(begun)[2].cancel()
    list(begun)[2].set_running_or_notify_cancel()
    bench.run(Counting(listed), begun=begun)
    assert sorted(record.number for record in bench.directory.records()) == [0, 1, 2, 3, 4]
    assert asked == [2, 3], "a trial that was cancelled has no record, and its number is free"


def test_a_trial_that_is_cancelled_comes_to_nothing(tmp_path: Path) -> None:
    bench, dropped = Bench(tmp_path / "run"), list[int]()

    class Dropping(Listed):
        def drop(self, number: int) -> None:
            dropped.append(number)

    at_once = bench._run

    def run(trial: Trial, screen: Screen) -> Future[Record]:
        future: Future[Record] = Future()
        if trial.number != 2:
            return at_once(trial, screen)
        future.cancel()
        future.set_running_or_notify_cancel()
        return future

    bench._run = run  # type: ignore[method-assign]
    assert bench.run(Dropping(plans(3))) == "complete"
    assert [record.number for record in bench.directory.records()] == [0, 1, 3]
    assert dropped == [2]


def test_no_look_is_begun_that_cannot_end_in_the_budget(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", budget_s=60.0)
    bench.run(Looking(plans(1), plans(2)), spent_s=53.0)
    assert bench.directory.sensitivities() == ()


def test_weights_that_nobody_starts_from_are_deleted(tmp_path: Path) -> None:
    bench, listed = Bench(tmp_path / "run"), plans(3, epochs=2)

    def outcome(trial: Trial) -> Record:
        for phase in PHASES:
            (bench.directory.path / "artifacts" / f"{trial.plan.digest}-{phase}-0-x.safetensors").touch()
        return bench.improving(trial)

    bench.outcome = outcome
    bench.run(Looking(listed, []))
    left = {path.name.partition("-")[0] for path in (bench.directory.path / "artifacts").glob("*.safetensors")}
    assert left == {listed[-1].digest}


def test_every_trial_is_run_told_and_recorded_once(tmp_path: Path) -> None:
    bench, strategy = Bench(tmp_path / "run"), Listed(plans(4))
    assert bench.run(strategy) == "complete"
    assert [record.number for record in strategy.told] == [1, 2, 3, 4]
    assert [line.number for line in bench.directory.lines() if isinstance(line, Record)] == [0, 1, 2, 3, 4]


def test_trials_that_had_not_ended_come_first_in_the_next_process(tmp_path: Path) -> None:
    bench, listed = Bench(tmp_path / "run", trials=4), plans(4)

    def outcome(trial: Trial) -> Record:
        if trial.number == 2:
            raise Killed
        return bench.improving(trial)

    bench.outcome = outcome
    with pytest.raises(Killed):
        bench.run(Listed(listed))
    unfinished = bench.directory.unfinished()
    assert [trial.number for trial in unfinished] == [2]

    bench.outcome, strategy = bench.improving, Listed(listed)
    strategy.number = 2
    assert bench.run(strategy, unfinished=unfinished) == "complete"
    assert [record.trial for record in strategy.told[:1]] == list(unfinished)
    assert [line.number for line in bench.directory.lines() if isinstance(line, Record)] == [0, 1, 2, 3, 4]
    assert bench.directory.unfinished() == ()


def test_no_more_is_begun_again_than_trials_are_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", trials=1)
    unfinished = [Trial(number, plan) for number, plan in enumerate(plans(3), 1)]
    bench.run(Listed([]), unfinished=unfinished)
    assert [trial.number for trial in bench.ran] == [1]


def test_the_front_is_confirmed_on_test_data_with_its_baseline(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.run(Listed(plans(3)))
    assert sorted(confirmation.number for confirmation in bench.directory.confirmations()) == [0, 1, 2, 3]
    baseline, front = bench.directory.points()
    assert baseline is not None
    assert all(point.test["accuracy"] < point.validation["accuracy"] for point in (baseline, *front))
    assert all(Path(point.file).is_file() and Path(point.plan).is_file() for point in front)


def test_a_front_that_is_confirmed_on_a_disturbed_machine_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    measure = bench._remeasure

    def beside_others(*given: Any) -> Future[tuple[Remeasured, ...]]:
        return done(tuple(replace(one, kept=("test",) * (one.number > 1)) for one in measure(*given).result()))  # type: ignore[no-any-return]

    bench._remeasure = beside_others  # type: ignore[method-assign]
    bench.run(Listed(plans(3)))
    assert "disturbed while the front was measured: test; what the trials measured there stays (models: 2)" in log_of(
        bench
    )


@pytest.mark.parametrize("error", [MeasurementError("it hangs"), RuntimeError("can't allocate memory")])
def test_a_model_that_cannot_be_scored_at_the_end_takes_no_other_along(error: Exception, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    score = bench._test_score

    def one_fails(record: Record) -> Future[SplitScore]:
        if record.number != 2:
            return score(record)
        future: Future[SplitScore] = Future()
        future.set_exception(error)
        return future

    bench._test_score = one_fails  # type: ignore[method-assign]
    assert bench.run(Listed(plans(3))) == "complete"
    assert {one.number for one in bench.directory.confirmations()} == {0, 1, 3}
    assert f"model 2 is not scored on test data: {'Measure' if 'hangs' in str(error) else 'a bug'}" in log_of(bench)
    tests = {point["name"]: point["test"]["accuracy"] for point in front_of(bench)}
    assert [name for name, accuracy in tests.items() if accuracy is None] == [name for name in tests if "002" in name]


class Believing(Listed):
    """Believes what it is given of finished trials."""

    name = "believing"

    def __init__(self, plans: Sequence[Plan], beliefs: Mapping[int, float]) -> None:
        super().__init__(plans)
        self.beliefs = beliefs

    def believed(self) -> Mapping[int, float]:
        return self.beliefs


def test_the_front_on_disk_goes_by_what_is_believed_at_last(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.run(Believing(plans(2), {1: 0.80, 2: 0.75}))
    assert {point["name"][:3] for point in front_of(bench)} == {"000", "001", "002"}
    bench.run(Believing((), {1: 0.70, 2: 0.75}))
    assert [one.believed for one in bench.directory.confirmations() if one.number == 1] == [0.80, 0.70]
    found = {point.name: point.confidence for point in bench.directory.points()[1]}
    assert {point["name"]: point["confidence"] for point in front_of(bench)} == found


def test_the_limit_on_trials_is_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", trials=2, workers=3)
    bench.run(Listed(plans(5)))
    assert len(bench.ran) == 2


def test_nothing_is_started_that_cannot_end_in_the_budget(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", budget_s=60.0)
    bench.run(Listed(plans(5)), spent_s=57.0)
    assert bench.ran == []
    assert bench.directory.heartbeat is not None
    assert bench.directory.heartbeat.status == "complete"


class Choosing(Listed):
    """Proposes the first of what is left that ends in time, if there is such."""

    name = "choosing"

    def ask(self, fits: Fits = always) -> Trial | None:
        trials = (Trial(self.number + 1, plan, proposal=Proposal("choosing")) for plan in self.plans)
        trial = next(filter(fits, trials), None)
        if trial is not None:
            self.plans.remove(trial.plan)
            self.number += 1
        return trial


def test_the_end_of_a_budget_goes_to_what_still_ends_in_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", budget_s=60.0)
    long, short = plans(2, epochs=9), [replace(plan, recovery=Recovery()) for plan in plans(6)[2:]]
    bench.run(Choosing([*long, *short]), epoch_s=30.0)
    assert [trial.plan for trial in bench.ran] == short
    assert [trial.number for trial in bench.ran] == [1, 2, 3, 4], "no number is lost to what does not fit"


class Heedless(Listed):
    """Proposes what it is given, whether it ends in time or not."""

    name = "heedless"

    def __init__(self, plans: Sequence[Plan]) -> None:
        super().__init__(plans)
        self.dropped: list[int] = []

    def ask(self, fits: Fits = always) -> Trial | None:
        return super().ask()

    def drop(self, number: int) -> None:
        self.dropped.append(number)


def test_what_does_not_end_in_time_is_not_begun_whatever_a_strategy_says(tmp_path: Path) -> None:
    bench, strategy = Bench(tmp_path / "run", budget_s=60.0), Heedless([*plans(1), *plans(3, epochs=9)[1:]])
    bench.run(strategy, epoch_s=30.0)
    assert [trial.number for trial in bench.ran] == [1]
    assert strategy.dropped[0] == 2


def test_a_budget_that_the_baseline_took_is_told_with_one_that_would_do(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", budget_s=60.0)
    bench.run(Listed(plans(5, epochs=4)), spent_s=200.0, epoch_s=10.0)
    reason = bench.directory.heartbeat.reason  # type: ignore[union-attr]
    told = re.fullmatch(
        r"the budget of 1m leaves no time for a trial: the baseline took 0s, all before the first trial 3m 20s, and a "
        r"trial with the final measurements takes (\d+)s; give it (.*) or more",
        reason,
    )
    assert told is not None, reason
    assert int(told[1]) > 2 * 10, "two epochs at least"
    enough = Bench(tmp_path / "enough", budget_s=parse_duration(told[2]), trials=1)
    enough.run(Listed(plans(5, epochs=4)), spent_s=200.0, epoch_s=10.0)
    assert enough.ran


def test_time_that_confirming_did_not_take_belongs_to_the_search(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", budget_s=9.0)
    bench.run(Listed(plans(40)))  # time for confirming is kept for each model, and nothing here takes any
    assert len(bench.ran) > 15, "at once there is time for ten"
    chosen = Bench(tmp_path / "chosen", budget_s=9.0)
    chosen.run(Choosing([*plans(1, epochs=99), *plans(40)]), epoch_s=10.0)
    assert len(chosen.ran) > 15, "what never fits stands in nobody's way"
    confirmed = [one.number for one in bench.directory.confirmations()]
    assert sorted(confirmed) == list(range(len(bench.ran) + 1)), "each once, the baseline among them"


def test_one_slow_trial_does_not_keep_others_from_the_time_that_confirming_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", budget_s=20.0)
    bench.outcome = lambda trial: replace(bench.improving(trial), seconds={"build": 16.0 if trial.number == 3 else 0.1})
    bench.run(Listed(plans(6)))
    assert [trial.number for trial in bench.ran] == [1, 2, 3, 4, 5, 6]
    confirmed = [one.number for one in bench.directory.confirmations()]
    assert confirmed[:4] == [0, 1, 2, 3], "with as long a trial the next would not have ended before the front's"


def test_a_long_trial_is_shortened_to_fit_and_its_plan_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", budget_s=100.0)
    bench.run(Listed(plans(1, epochs=50)), epoch_s=10.0)
    (trial,) = bench.ran
    assert LEAST_EPOCHS <= trial.plan.recovery.epochs < 50
    assert trial.fidelity == pytest.approx(trial.plan.recovery.epochs / 50)


def test_the_screen_holds_the_front_of_the_moment(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.run(Listed(plans(3)))
    assert [len(screen.front) for screen in bench.screens] == [1, 2, 3]


def test_an_error_becomes_a_record_and_the_search_goes_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    errors = {1: BrokenExecutor("killed"), 2: InfeasiblePlan("layer x"), 3: ZeroDivisionError("a bug")}

    def outcome(trial: Trial) -> Record:
        if trial.number in errors:
            raise errors[trial.number]
        return bench.improving(trial)

    bench.outcome = outcome
    bench.run(Listed(plans(4)))
    reasons = {record.number: record.reason for record in bench.directory.records()}
    assert "out of memory" in reasons[1]
    assert reasons[2] == "InfeasiblePlan: layer x"
    assert "see log.txt: ZeroDivisionError" in reasons[3]
    assert "ZeroDivisionError: a bug" in (bench.directory.path / "log.txt").read_text()
    assert reasons[4] == ""


def test_the_same_error_five_times_from_the_start_stops_the_search(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.outcome = lambda trial: Record(trial, "failed", f"ConversionError: operator {trial.number}")
    with pytest.raises(SearchFailed, match=r"first 5 trials all failed.*operator 5"):
        bench.run(Listed(plans(9)))
    assert bench.directory.heartbeat is not None
    assert bench.directory.heartbeat.status == "failed"


def test_different_errors_do_not_stop_the_search(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.outcome = lambda trial: Record(trial, "failed", f"Error{trial.number % 2}: x")
    assert bench.run(Listed(plans(9))) == "complete"


def test_one_request_to_stop_drains_and_confirms(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")

    def outcome(trial: Trial) -> Record:
        bench.interrupts.count = 1
        return bench.improving(trial)

    bench.outcome = outcome
    assert bench.run(Listed(plans(5))) == "stopped"
    assert len(bench.ran) == 1
    assert {confirmation.number for confirmation in bench.directory.confirmations()} == {0, 1}


def test_two_requests_drop_what_runs_and_leave_a_front(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", workers=2)
    pending: Future[Record] = Future()

    def run(trial: Trial, screen: Screen) -> Future[Record]:
        if trial.number == 1:
            return done(bench.improving(trial))  # type: ignore[no-any-return]
        bench.interrupts.count = 2
        return pending

    bench._run = run  # type: ignore[method-assign]
    assert bench.run(Listed(plans(5))) == "stopped"
    assert bench.killed == 1
    assert [record.number for record in bench.directory.records()] == [0, 1]
    assert bench.directory.confirmations() == ()
    assert bench.directory.points()[1]


def test_watchers_see_phases_counts_and_a_growing_front(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", trials=3)
    bench.run(Listed(plans(5)))
    phases = [snapshot.phase for snapshot in bench.snapshots]
    assert phases[0] == "searching"
    assert "confirming" in phases
    assert phases[-1] == "complete"
    assert bench.snapshots[-1].complete == 3
    assert len(bench.snapshots[-1].front) == 4


def test_time_before_a_resume_counts(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", trials=1)
    bench.run(Listed(plans(1)), spent_s=1000.0)
    assert bench.directory.heartbeat is not None
    assert bench.directory.heartbeat.elapsed_s >= 1000


def test_trial_times_learn_from_what_trials_took() -> None:
    times = TrialTimes(epoch_s=1.0)
    plan = plans(1, epochs=10)[0]
    record = Record(Trial(1, plan), "complete", seconds={"build": 1.0, "train": 40.0})
    times.learn(record)
    shortened = times.shortened(Trial(2, plan), 25.0)
    assert shortened is not None
    assert shortened.plan.recovery.epochs == 5, "4 seconds an epoch and 1.1 fixed"
    assert times.shortened(Trial(2, plan), 4.0) is None
    assert times.shortened(Trial(2, plan), 100.0) == Trial(2, plan)


def test_a_trial_may_be_started_that_ends_if_it_is_as_quick_as_the_quickest() -> None:
    times, plan = TrialTimes(epoch_s=1.0), plans(1, epochs=10)[0]
    for number, (fixed_s, recover_s) in enumerate(((1.0, 10.0), (1.0, 20.0), (4.0, 60.0))):
        seconds = {"build": fixed_s, "train": recover_s}
        times.learn(Record(Trial(number, plan), "complete", seconds=seconds))
    assert times.shortened(Trial(4, plan), 9.0) is None, "6 seconds an epoch and 4.4 fixed"
    shortened = times.shortened(Trial(4, plan), 9.0, hopefully=True)
    assert shortened is not None
    assert shortened.plan.recovery.epochs == 8, "1 second an epoch and 1 fixed"


def test_trial_times_believe_what_the_strategy_expects_of_an_epoch() -> None:
    times, plan = TrialTimes(epoch_s=1.0), plans(1, epochs=10)[0]
    slow = Trial(1, plan, proposal=Proposal("guided", attributes={"expected_epoch_s": 4.0}))
    times.learn(Record(slow, "complete", seconds={"build": 1.0, "train": 50.0}))
    quick = Trial(2, plan, proposal=Proposal("guided", attributes={"expected_epoch_s": 0.4}))
    shortened = times.shortened(quick, 4.0)
    assert shortened is not None
    assert shortened.plan.recovery.epochs == 5, "a quarter more than expected, and 1.1 fixed"


def test_a_trial_that_takes_too_long_does_not_take_the_time_of_the_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", budget_s=100.0)
    bench._run = lambda trial, screen: Future()  # type: ignore[method-assign]
    started = time.monotonic()
    assert bench.run(Listed(plans(1)), spent_s=88.0) == "complete"
    assert time.monotonic() - started < 10
    assert bench.killed == 1
    assert [confirmation.number for confirmation in bench.directory.confirmations()] == [0]


def test_a_lost_device_ends_the_search_and_no_trial_is_blamed(tmp_path: Path) -> None:
    bench, lost = Bench(tmp_path / "run"), [True]

    def outcome(trial: Trial) -> Record:
        if trial.number == 3 and lost:
            raise DeviceUnavailable("no machine at http://board:8765")
        return bench.improving(trial)

    bench.outcome = outcome
    with pytest.raises(DeviceUnavailable, match=rf"no machine at http://board:8765.*--resume {bench.directory.path}"):
        bench.run(Listed(plans(5)))
    assert [record.number for record in bench.directory.records()] == [0, 1, 2]
    assert bench.directory.heartbeat is not None
    assert bench.directory.heartbeat.status == "failed"
    lost.clear()
    again = Listed(plans(5))
    again.number = 2
    assert bench.run(again) == "complete"
    assert [record.number for record in bench.directory.records()] == [0, 1, 2, 3, 4, 5]


# -- scoring on the device -------------------------------------------------------------------------------------------


def failing(bench: Bench, error: Exception, number: int) -> None:
    """Have the score of one model on the device end in an error."""
    score = bench._device_score

    def one_fails(record: Record, limit_s: float) -> Future[DeviceScore | TooSlow]:
        future = score(record, limit_s)
        if record.number != number:
            return future
        failed: Future[DeviceScore | TooSlow] = Future()
        failed.set_exception(error)
        return failed

    bench._device_score = one_fails  # type: ignore[method-assign]


def test_no_model_is_scored_on_the_device_unless_it_is_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.run(Listed(plans(3)))
    assert bench.scored_on_device == []
    assert all(point["device_score"] is None for point in front_of(bench))


def test_the_baseline_is_scored_on_the_device_before_and_the_front_after_the_search(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", score_on_device=True)
    bench.run(Listed(plans(3)))
    assert bench.scored_on_device == [
        0,
        *(int(point["name"][:3]) for point in front_of(bench) if point["name"][2] > "0"),
    ]
    assert sorted(bench.scored_on_device) == [0, 1, 2, 3]
    assert all(point["device_score"] == point["validation"]["accuracy"] for point in front_of(bench))
    assert "device_accuracy" in (bench.directory.path / "front" / "front.csv").read_text()


def test_a_score_on_the_device_that_is_recorded_is_not_computed_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", score_on_device=True)
    bench.run(Listed(plans(2)))
    bench.run(Listed([]))
    assert sorted(bench.scored_on_device) == [0, 1, 2]


def test_a_model_that_the_device_can_not_run_is_told_and_not_tried_again(tmp_path: Path) -> None:
    bench, score = Bench(tmp_path / "run", score_on_device=True), Bench._device_score
    bench._device_score = lambda record, limit_s: (  # type: ignore[method-assign]
        score(bench, record, limit_s) if record.number != 2 else done(DeviceScore(2, None, "no kernel for Erf"))
    )
    assert bench.run(Listed(plans(3))) == "complete"
    assert "model 2 can't be scored on the device: no kernel for Erf" in log_of(bench)
    why = {int(point["name"][:3]): (point["device_score"] is None, point["device_reason"]) for point in front_of(bench)}
    assert why == {0: (False, ""), 1: (False, ""), 2: (True, "no kernel for Erf"), 3: (False, "")}
    assert "no kernel for Erf" in (bench.directory.path / "front" / "front.csv").read_text()


@pytest.mark.parametrize("error", [DeviceUnavailable("the board is off"), ZeroDivisionError("a bug")])
def test_a_device_that_is_lost_ends_the_scoring_but_not_the_search_and_is_tried_again(
    error: Exception, tmp_path: Path
) -> None:
    bench = Bench(tmp_path / "run", score_on_device=True)
    failing(bench, error, 2)
    assert bench.run(Listed(plans(3))) == "complete"
    assert "scoring on the device ended" in log_of(bench)
    assert {one.number for one in bench.directory.device_scores()} == {0, 1}
    del bench._device_score  # it is there again
    bench.run(Listed([]))
    assert {one.number for one in bench.directory.device_scores()} == {0, 1, 2, 3}


def test_a_pool_scores_as_many_models_at_one_time_as_it_has_machines(tmp_path: Path) -> None:
    pool = HardwareProfile("pool", device="remote", addresses=("http://a:1", "http://b:1", "http://c:1"))
    bench = Bench(tmp_path / "run", score_on_device=True, profiles=(pool,), workers=2)
    failing(bench, DeviceUnavailable("the board is off"), 1)
    bench.run(Listed(plans(3)))
    assert bench.scored_on_device == [0, 1, 2], "two workers"
    assert {one.number for one in bench.directory.device_scores()} == {0, 2}, "what the other machine found is kept"


def test_the_budget_keeps_time_for_scoring_on_the_device_but_a_share_of_it_at_most(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", budget_s=100.0, score_on_device=True)
    bench.directory.append(DeviceScore(0, 0.9, seconds=8.0))
    bench.run(Listed(plans(1)), spent_s=88.0)
    assert bench.ran == [], "there would be time without it"
    slow = Bench(tmp_path / "slow", budget_s=100.0, score_on_device=True)
    slow.directory.append(DeviceScore(0, 0.9, seconds=90.0))
    slow.run(Listed(plans(1)), spent_s=50.0)
    assert len(slow.ran) == 1
    assert slow.scored_on_device == []
    assert "scoring on the device ended: no time is left (models without a score: 1)" in log_of(slow)


def test_nothing_of_the_budget_is_kept_for_a_device_that_is_too_slow(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", budget_s=100.0, score_on_device=True)
    bench._device_score = lambda record, limit_s: done(TooSlow(record.number, 200.0))  # type: ignore[method-assign]
    bench.run(Listed(plans(1)), spent_s=88.0)
    assert len(bench.ran) == 1
    assert "model 0 is not scored on the device: that would take about 3m 20s" in log_of(bench)
    assert bench.directory.device_scores() == (), "a larger budget may try again"


def test_what_an_earlier_process_had_no_time_for_is_scored_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.run(Listed(plans(2)))
    asked = replace(bench.directory.config, score_on_device=True)
    bench.directory.write_config(asked)
    resumed, order = Listed(plans(3)), list[list[int]]()
    resumed.number = 2

    def outcome(trial: Trial) -> Record:
        order.append(sorted(bench.scored_on_device))
        return bench.improving(trial)

    bench.outcome = outcome
    bench.run(resumed)
    assert order == [[0, 1, 2]]


def test_models_that_are_quick_enough_are_scored_though_the_baseline_is_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", budget_s=100.0, score_on_device=True)
    score = bench._device_score
    bench._device_score = lambda record, limit_s: (  # type: ignore[method-assign]
        score(record, limit_s) if record.values["latency_ms"] < 0.3 else done(TooSlow(record.number, 30.0))
    )
    for number, plan in enumerate(plans(20), 1):
        bench.directory.append(bench.improving(Trial(number, plan)))
    bench.run(Listed([]), spent_s=70.0)
    assert {one.number for one in bench.directory.device_scores()} == set(range(12, 21)), "0.9 to the 12th is 0.28"


def test_what_one_machine_scored_is_kept_where_another_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.loop.waiting.GRACE_S", -45.0)
    monkeypatch.setattr("autocompress.loop.waiting.GRACE_SHARE", -1.0)
    pool = HardwareProfile("pool", device="remote", addresses=("http://a:1", "http://b:1"))
    bench = Bench(tmp_path / "run", score_on_device=True, profiles=(pool,), workers=2, budget_s=60.0)
    score = bench._device_score
    bench._device_score = lambda record, limit_s: (  # type: ignore[method-assign]
        Future() if record.number == 1 else score(record, limit_s)
    )
    assert bench.run(Listed(plans(2)), spent_s=12.0) == "complete"
    assert {one.number for one in bench.directory.device_scores()} == {0, 2}
    assert "scoring on the device ended: MeasurementError: its time is spent" in log_of(bench)


def test_what_has_ended_is_kept_however_late_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the executor `inline`, whose calls have ended before they are waited for."""
    monkeypatch.setattr("autocompress.loop.waiting.GRACE_S", -1000.0)
    monkeypatch.setattr("autocompress.loop.waiting.GRACE_SHARE", -1000.0)
    bench = Bench(tmp_path / "run", score_on_device=True, budget_s=60.0)
    assert bench.run(Listed(plans(1))) == "complete"
    assert {one.number for one in bench.directory.confirmations()} == {0, 1}
    assert {one.number for one in bench.directory.device_scores()} == {0, 1}
    assert bench.killed == 0


def test_a_score_on_the_device_that_took_no_time_by_a_coarse_clock_is_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", score_on_device=True, budget_s=60.0)
    bench._device_score = lambda record, limit_s: done(DeviceScore(record.number, 0.9))  # type: ignore[method-assign]
    assert bench.run(Listed(plans(1))) == "complete"
    assert {one.number for one in bench.directory.device_scores()} == {0, 1}


def test_measuring_the_front_leaves_scoring_on_the_device_its_time(tmp_path: Path) -> None:
    each: dict[bool, float] = {}
    for asked in (False, True):
        bench = Bench(tmp_path / f"{asked}", budget_s=60.0, score_on_device=asked)
        remeasure = bench._remeasure

        def noted(records, latency_ms, each_s, asked=asked, remeasure=remeasure):  # type: ignore[no-untyped-def]
            each[asked] = each_s
            return remeasure(records, latency_ms, each_s)

        bench._remeasure = noted  # type: ignore[method-assign]
        bench.directory.append(DeviceScore(0, 0.9, seconds=1.0))
        for number, plan in enumerate(plans(3), 1):
            bench.directory.append(bench.improving(Trial(number, plan)))
        bench.run(Listed([]), spent_s=48.0)
        assert sorted(bench.scored_on_device) == ([1, 2, 3] if asked else [])
    assert each[True] == pytest.approx(each[False] - 4 / 5, abs=0.1), "four seconds of ten, of four models and one more"


@pytest.mark.parametrize(("trial_s", "expected"), [(1.0, MOST_CPU_S), (40.0, 36 / 10)])
def test_time_in_which_no_trial_ends_goes_to_measuring_the_front(
    tmp_path: Path, trial_s: float, expected: float
) -> None:
    bench, given = Bench(tmp_path / "run", budget_s=120.0), list[float]()
    remeasure = bench._remeasure

    def noted(records: tuple[Record, ...], baseline: Mapping[str, float], each_s: float) -> Any:
        given.append(each_s)
        return remeasure(records, baseline, each_s)

    bench._remeasure = noted  # type: ignore[method-assign]
    for number, plan in enumerate(plans(8), 1):
        bench.directory.append(replace(bench.improving(Trial(number, plan)), seconds={"build": trial_s}))
    bench.run(Listed(plans(1, epochs=9)), spent_s=80.0, epoch_s=30.0)
    assert given == [pytest.approx(expected, abs=0.1)], "36 s are left for nine models and a start"


def test_a_device_that_takes_too_long_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.loop.device_scoring.SHARE", 0.01)
    monkeypatch.setattr("autocompress.loop.device_scoring.SCORE_S", 0.1)
    bench = Bench(tmp_path / "run", budget_s=60.0, score_on_device=True)
    bench._device_score = lambda record, limit_s: Future()  # type: ignore[method-assign]
    assert bench.run(Listed(plans(1)), spent_s=40.0) == "complete"
    assert bench.killed >= 1
    assert len(bench.ran) == 1
    assert "scoring on the device ended: MeasurementError: its time is spent" in log_of(bench)


def test_two_requests_to_stop_while_the_front_is_confirmed_keep_it_from_being_scored_on_the_device(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path / "run", score_on_device=True)
    bench._test_score = lambda record: Future()  # type: ignore[method-assign]
    Timer(0.3, setattr, (bench.interrupts, "count", 2)).start()
    assert bench.run(Listed(plans(1))) == "stopped"
    assert bench.scored_on_device == [0], "the baseline, before the search"


def test_two_requests_to_stop_end_the_scoring_on_the_device(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", score_on_device=True)
    bench._device_score = lambda record, limit_s: Future()  # type: ignore[method-assign]
    Timer(0.3, setattr, (bench.interrupts, "count", 2)).start()
    assert bench.run(Listed(plans(1))) == "stopped"
    assert bench.directory.device_scores() == ()
