"""How a search is set up and run, from what was asked for to the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from autocompress.duration import format_duration
from autocompress.errors import AutocompressError
from autocompress.executors import TrialExecutor
from autocompress.interrupts import Interrupts
from autocompress.landscapes import landscape
from autocompress.loop import TICK_S, Calls, Clock, SearchLoop, TrialTimes
from autocompress.machine_events import MachineEvents
from autocompress.plan import ORIGINAL, Plan
from autocompress.planner import choices_left_out, planner, policies_left_out, policy_plans, resolve_epochs
from autocompress.record import Proposal, Record, Trial
from autocompress.request import auto_epochs
from autocompress.run import Run
from autocompress.run_directory import RunConfig, RunDirectory
from autocompress.screen import Screen
from autocompress.site import HERE, Site
from autocompress.snapshot import Observer, Phase, Snapshot
from autocompress.space import SearchSpace
from autocompress.strategies import STRATEGIES, Problem
from autocompress.task_source import TaskSource

if TYPE_CHECKING:
    from autocompress.storage import Database
    from autocompress.worker import Assignment, Description, Survey

T = TypeVar("T")

MUCH = 0.5
"""Share of the budget that is told where it is spent before the first trial."""


@dataclass(frozen=True)
class Means:
    """What a search works with.

    Args:
        pool: The workers.
        source: The task.
        interrupts: Requests to stop.
        observer: Told what happens.
        database: Follows the study, if there is one.
        run: Carries out a trial; None if the workers do that, too.
    """

    pool: TrialExecutor
    source: TaskSource
    interrupts: Interrupts
    observer: Observer | None = None
    database: Database | None = None
    run: Callable[[Trial, Screen], Future[Record]] | None = None


class Session:
    """One process's share of a search: begins or goes on, then runs the loop to its end."""

    def __init__(self, directory: RunDirectory, means: Means, clock: Clock) -> None:
        self._directory = directory
        self._means = means
        self._pool = means.pool
        self._interrupts = means.interrupts
        self._observer = means.observer
        self._clock = clock
        self._database = means.database
        self._survey: Survey | None = None
        self._warm = self._is_late = False
        means.pool.tell = directory.log
        means.pool.begin(directory.path.resolve())

    def begin(self, config: RunConfig) -> None:
        """Measure the baseline and what there is to search; settle the epochs; write `run.json`."""
        from autocompress import worker

        self._directory.write_config(config)
        self._directory.beat("running", self._clock.elapsed_s)
        self._tell(config, "exporting, scoring and measuring the baseline")
        baseline = self._call(config, worker.run_baseline, Trial(0, Plan(), config.seed, 1.0, Proposal("baseline")))
        self._tell(config, "looking at layers and the time of an epoch")
        self._survey = self._call(config, worker.survey, config.space)
        space = resolve_epochs(config.space, auto_epochs(config, self._survey.epoch_s))
        planner(space, self._survey.models, config.target)  # refuses what leaves nothing to search, in time
        self._directory.write_config(replace(config, space=space, epoch_s=self._survey.epoch_s))
        self._directory.append(baseline)
        self._tell_spent(config, baseline)

    def go_on(self, config: RunConfig) -> None:
        """Take up a search; one that was cut off before its baseline begins anew."""
        from autocompress import worker

        if not any(record.number == 0 for record in self._directory.records()):
            self.begin(config)
            return
        self._directory.write_config(config)
        self._directory.beat("running", self._clock.elapsed_s)
        self._tell(config, "looking at layers and the time of an epoch")
        self._survey = self._call(config, worker.survey, config.space, config.epoch_s)
        self._directory.write_config(replace(config, epoch_s=self._survey.epoch_s))

    def finish(self, description: Description, begun: Mapping[Future[Record], Trial] = MappingProxyType({})) -> Run:
        """Run the loop and write the report.

        Args:
            description: The task.
            begun: Trials that an earlier process began and that go on elsewhere.
        """
        config = self._directory.config
        assert self._survey is not None, "begin or go_on comes first"
        self._tell(config, f"recovery trains on {self._survey.trained_on}")
        refused = self._survey.refused
        for reason in dict.fromkeys(refused.values()):
            names = ", ".join(name for name, why in refused.items() if why == reason)
            self._tell(config, f"left out: {names}: {reason}")
        plan = planner(config.space, self._survey.models, config.target)
        original = self._survey.models[ORIGINAL]
        for choice, reason in choices_left_out(config.space, original, config.target).items():
            self._tell(config, f"not tried: {choice}: {reason}")
        where = "any of the machines" if len(config.profiles) > 1 else "this machine"
        for policy, part in policies_left_out(config.space, plan, self._survey.models).items():
            self._tell(config, f"policy ({policy}) is left out: no layer takes {part} on {where}")
        problem = make_problem(config, self._survey, description, self._directory)
        strategy = STRATEGIES[config.strategy](problem)
        for record in sorted(self._directory.records(), key=lambda record: record.number):
            strategy.tell(record)
        for entry in self._directory.sensitivities():
            strategy.note(entry)
        loop = SearchLoop(
            directory=self._directory,
            strategy=strategy,
            calls=self._calls(config),
            clock=self._clock,
            times=TrialTimes(self._survey.epoch_s),
            interrupts=self._interrupts,
            observer=self._observer,
            begun=begun,
            unfinished=() if self._means.run else self._directory.unfinished(),  # whoever runs them looks after them
        )
        run = Run(self._directory.path)
        try:
            with self._study_copied(config):
                loop.run()
        except AutocompressError:
            run.report()
            raise
        run.report()
        return run

    @contextmanager
    def _study_copied(self, config: RunConfig) -> Iterator[None]:
        """Let the database, if there is one, follow the study until the end."""
        if self._database is None:
            yield
            return
        from autocompress.storage import StudyCopy

        self._tell(config, f"the study is {config.study} in {self._database}, where optuna-dashboard finds it")
        copy = StudyCopy(self._directory, self._database, config.study)
        try:
            with copy:
                yield
        finally:
            if copy.lacking:
                self._tell(config, copy.lacking, phase="complete")

    def _calls(self, config: RunConfig) -> Calls:
        from autocompress import worker

        assignment, pool = self._assignment(config), self._pool
        return Calls(
            run=self._means.run or (lambda trial, screen: pool.submit(worker.run, assignment, trial, screen)),
            look=lambda probe: pool.submit(worker.look, assignment, probe),
            test_score=lambda record: pool.submit(worker.test_score, assignment, record),
            device_score=lambda record, limit_s: pool.submit(worker.device_score, assignment, record, limit_s),
            remeasure=lambda records, baseline, each_s: pool.submit(
                worker.measure_together, assignment, records, baseline, each_s
            ),
            kill=pool.kill,
        )

    def _assignment(self, config: RunConfig) -> Assignment:
        return assignment(config, self._means.source, self._directory, self._pool.site)

    def _call(self, config: RunConfig, function: Callable[..., T], *args: object) -> T:
        """Call a worker and wait; the other workers load torch and the task meanwhile, once."""
        from autocompress import worker

        assignment = self._assignment(config)
        future = self._pool.submit(function, assignment, *args)
        for _ in range(0 if self._warm else config.workers - 1):
            self._pool.submit(worker.warm_up, assignment)
        self._warm = True
        machines, budget_s = MachineEvents(self._directory), config.budget_s or math.inf

        def beat() -> None:
            self._directory.beat("running", self._clock.elapsed_s)
            if self._clock.elapsed_s > budget_s and not self._is_late:
                self._is_late = True
                self._tell(
                    config,
                    f"the budget of {format_duration(budget_s)} is spent before the first trial; the search ends once "
                    "the baseline is measured, to be resumed with a larger one",
                )
            for event in machines.new():
                _announce(self._observer, event, self._clock.elapsed_s, config)

        return _wait_for(future, self._interrupts, beat)

    def _tell_spent(self, config: RunConfig, baseline: Record) -> None:
        """Say so where much of the budget is spent before the first trial."""
        spent_s, budget_s = self._clock.elapsed_s, config.budget_s
        if budget_s is not None and spent_s > MUCH * budget_s:
            self._tell(
                config,
                f"{format_duration(spent_s)} of the budget of {format_duration(budget_s)} are spent before the first "
                f"trial, {format_duration(baseline.elapsed_s)} of them on the baseline",
            )

    def _tell(self, config: RunConfig, event: str, *, phase: Phase = "preparing") -> None:
        self._directory.log(event)
        _announce(self._observer, event, self._clock.elapsed_s, config, phase=phase)


def assignment(config: RunConfig, source: TaskSource, directory: RunDirectory, site: Site = HERE) -> Assignment:
    """What the workers of a search have to know of it."""
    from autocompress.worker import Assignment

    path = str(directory.path.resolve())
    return Assignment(source, config.fingerprints["model"], config.profiles, path, site)


def search_in(directory: RunDirectory, config: RunConfig, description: Description, means: Means, clock: Clock) -> Run:
    """Search from the beginning in a new run directory; it is discarded if not even the baseline can be measured."""
    with directory.locked(), directory.disk_watched():
        try:
            session = Session(directory, means, clock)
            session.begin(config)
        except BaseException:
            means.pool.kill()
            directory.discard()
            raise
        return session.finish(description)


def mend(directory: RunDirectory) -> None:
    """Make it safe to append to records that a crash cut short, and delete half files; what was set aside is logged."""
    directory.forget_unfinished()
    torn = directory.repair()
    if torn:
        directory.log(f"records.jsonl ended in a line cut short ({torn} bytes); set aside in records.jsonl.torn")


def clock_of(directory: RunDirectory, started: float) -> Clock:
    """The clock of a search that goes on.

    Args:
        directory: Of the search.
        started: `time.monotonic()` when this process began.
    """
    beat = directory.heartbeat
    ended_s = [record.ended_s for record in directory.records()]
    spent_s = max((*ended_s, *(entry.ended_s for entry in directory.sensitivities())), default=0.0)
    return Clock(max(beat.elapsed_s, spent_s) if beat else spent_s, started)


def make_problem(config: RunConfig, survey: Survey, description: Description, directory: RunDirectory) -> Problem:
    """What a strategy is to search.

    Args:
        config: The search as resolved.
        survey: What can be searched on the task.
        description: The task.
        directory: Where the study is written.
    """
    plan = planner(config.space, survey.models, config.target)
    return Problem(
        plan=plan,
        policies=policy_plans(config.space, plan, description.students),
        objectives=config.objectives,
        constraints=config.constraints,
        seed=config.seed,
        journal=directory.path / "study.journal",
        metric=config.the_metric,
        is_percentage=config.is_percentage,
        landscapes={name: landscape(config.space, plan, view, config.target) for name, view in survey.models.items()},
        epoch_s=survey.epoch_s,
        epoch_steps=survey.epoch_steps,
        budget_s=config.budget_s,
        trials=config.trials,
        workers=config.workers,
    )


def describe(means: Means, space: SearchSpace) -> Description:
    """What the task is; see `worker.describe` for the errors."""
    from autocompress import worker

    _announce(means.observer, "loading the task", 0.0, None)
    return _wait_for(means.pool.submit(worker.describe, means.source, space, means.pool.site), means.interrupts)


def _wait_for(future: Future[T], interrupts: Interrupts, beat: Callable[[], None] | None = None) -> T:
    """The result of a call before the search proper, with a sign of life while it lasts.

    Raises:
        KeyboardInterrupt: If somebody asks to stop; there is nothing to drain yet.
    """
    while not future.done():
        wait([future], timeout=TICK_S)
        if beat is not None:
            beat()
        if interrupts.drain:
            raise KeyboardInterrupt
    return future.result()


def _announce(
    observer: Observer | None,
    event: str,
    elapsed_s: float,
    config: RunConfig | None,
    *,
    phase: Phase = "preparing",
) -> None:
    """Tell the observer of a step before the search proper, or after it."""
    if observer is None:
        return
    observer(
        Snapshot(
            phase=phase,
            event=event,
            elapsed_s=elapsed_s,
            budget_s=config.budget_s if config else None,
            trial_limit=config.trials if config else None,
            complete=0,
            screened=0,
            failed=0,
            running=0,
            baseline=None,
            front=(),
            metric=config.metric if config else "",
            is_percentage=config.is_percentage if config else False,
            direction=config.direction if config else "maximize",
        )
    )
