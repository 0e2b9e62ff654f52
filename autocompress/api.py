"""The Python API: every command of the command line is a thin call of one function here."""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autocompress.checks import CheckItem, CheckReport, run_checks
from autocompress.cluster import ALONE, Cluster
from autocompress.devices import open_device, resolve_profile
from autocompress.devices.detection import LOCAL, detect_profile, memory_bytes
from autocompress.duration import format_duration, parse_duration
from autocompress.errors import AutocompressError, InvalidInput
from autocompress.executors import EXECUTORS, WORKER_BYTES, TrialExecutor
from autocompress.interrupts import Interrupts
from autocompress.loop import Clock
from autocompress.measurement import Measurement
from autocompress.objective import (
    MACHINE_NAME,
    Constraint,
)
from autocompress.plan import Plan
from autocompress.profile import HardwareProfile
from autocompress.record import Proposal, Record, Trial
from autocompress.request import Request, make_config, require_same
from autocompress.run import Run
from autocompress.run_directory import RunConfig, RunDirectory
from autocompress.session import Means, Session, clock_of, describe, mend, search_in
from autocompress.snapshot import Observer
from autocompress.space import SearchSpace, load_space
from autocompress.strategies import STRATEGIES
from autocompress.task import Task, load_task
from autocompress.task_source import TaskSource, sent

if TYPE_CHECKING:
    from autocompress.profiling.writing import ProfiledDevice
    from autocompress.storage import Database

T = TypeVar("T")

DEFAULT_BUDGET = "15m"
JOURNAL = "journal"
"""Where the study is without a database: in `study.journal`."""

Hardware = str | HardwareProfile
"""A machine: "local", the name of a shipped profile, the path of a YAML file, or a profile."""


def search(
    task: Task | str,
    *,
    budget: str | float | None = None,
    trials: int | None = None,
    space: str | SearchSpace = "joint",
    hardware: Hardware | Sequence[Hardware] = "local",
    strategy: str = "guided",
    objectives: Sequence[str] = (),
    constraints: Sequence[str] = (),
    max_drop: float | None = None,
    workers: int | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    executor: str = "processes",
    address: str | None = None,
    gpus_per_trial: float = 0.0,
    trainers_per_trial: int = 1,
    score_on_device: bool = False,
    storage: str | None = None,
    observer: Observer | None = None,
) -> Run:
    """Search for the best compressed versions of a model and leave them in a run directory.

    Args:
        task: A task, or where it is: `file.py`, `file.py:name`, `package.module:name`.
        budget: Wall time for everything, in seconds or as "90s", "15m", "4h", "2d"; 15 minutes if neither a budget
            nor a number of trials is given.
        trials: Largest number of trials beside the baseline.
        space: A shipped search space by name, a path to a YAML file, or a `SearchSpace`.
        hardware: "local", a shipped profile by name, a path to a YAML file, or a `HardwareProfile`. With several every
            model is measured on each of them, and the front is one of the latencies on all.
        strategy: "guided" (sensitivities, models and a solver), or one of Optuna's samplers over all knobs: "tpe",
            "nsga2" or "random". These try the uniform policies of the space first; "guided" begins with two
            that need no training, and lets the others compete.
        objectives: Names of the metric, `latency_ms`, `size_bytes`, `peak_memory_bytes`; by default the first three.
            With several machines `latency_ms` is that on each of them, an objective a machine, and `latency_ms@NAME`
            that on one. For one model instead of a front, names with weights, such as "accuracy:10" and "latency_ms:1"
            (machines share it in equal parts); a weight is that of a percent of a cost or a point of a metric that is a
            share.
        constraints: Such as "latency_ms<=5" (on each machine), "size_bytes<=0.3x", "accuracy>=baseline-1%".
        max_drop: Largest loss of the metric against the baseline that a model of the front may have: in points
            (hundredths) for metrics that are shares, in percent of the baseline's value for others.
        workers: Trials at the same time; by default one for each core, as far as memory allows.
        seed: For everything random.
        output: Run directory; by default `runs/TASK-TIME`.
        executor: "processes", "inline" (one trial after the other in this process), or "ray" (tasks of a Ray cluster).
        address: Of the Ray cluster: `host:port` of its head or `ray://host:10001`; by default the one that the
            environment names or that runs on this machine, or else a new one of this machine alone.
        gpus_per_trial: GPUs of Ray that training a trial takes, such as 0.25; 0 trains on processors. With several
            trainers each takes as many.
        trainers_per_trial: Processes of Ray that train one trial together, each on its part of every batch, for models
            that take too long alone.
        score_on_device: True to score the models of the front at the end also by the outputs that the device computes
            for the validation data, and the baseline before the search begins. The budget holds that time, too.
        storage: URL of a database that the study is written to as well, so that optuna-dashboard shows it from
            elsewhere: `sqlite:///study.db`, `postgresql://user@host/database`, or another that SQLAlchemy takes.
            `run.json` keeps it without its password.
        observer: Called with a `Snapshot` on every change.

    Returns:
        The finished or stopped run.

    Raises:
        InvalidInput: If anything given can't be used; nothing is left behind then.
        TaskFailed: If the user's own code raises.
        SearchFailed: If every trial fails in the same way.
        DeviceUnavailable: If the device is missing or busy for longer than the profile waits; `resume` goes on.
    """
    started = time.monotonic()
    cluster = Cluster(address, gpus_per_trial, trainers_per_trial)
    request = make_request(
        budget=_budget_s(budget, trials),
        trials=trials,
        space=space,
        hardware=hardware,
        strategy=strategy,
        objectives=objectives,
        constraints=constraints,
        max_drop=max_drop,
        seed=seed,
        score_on_device=score_on_device,
    )
    EXECUTORS[executor]
    _positive("workers", workers)
    if output is not None:
        RunDirectory.require_free(Path(output))
    database = _database(storage)
    if database is not None:
        database.require_usable()
    with (
        sent(task) as source,
        Interrupts() as interrupts,
        _pool(executor, workers, request.profiles, cluster, source) as pool,
    ):
        request = replace(request, workers=pool.workers, executor=executor, cluster=cluster)
        means = Means(pool, source, interrupts, observer, database)
        description = describe(means, request.space)
        config = make_config(request, description, source)
        path = Path(output) if output is not None else _default_output(description.task)
        directory = RunDirectory.create(path)
        config = _with_study(config, directory, database)
        return search_in(directory, config, description, means, Clock(0.0, started))


def resume(
    path: str | Path,
    *,
    task: Task | str | None = None,
    budget: str | float | None = None,
    trials: int | None = None,
    workers: int | None = None,
    executor: str | None = None,
    address: str | None = None,
    gpus_per_trial: float | None = None,
    trainers_per_trial: int | None = None,
    score_on_device: bool | None = None,
    storage: str | None = None,
    accept_changes: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Go on with a search that was stopped, killed, or has a larger budget now; one that is complete stays as it is.

    Args:
        path: Its run directory.
        task: The task; by default from where the search took it.
        budget, trials, workers: New limits; by default those of the search. Time counts over all resumes.
        executor, address, gpus_per_trial, trainers_per_trial: As in `search`; by default as the search was.
        score_on_device: As in `search`; None for as the search was. A search that is complete needs a larger budget to
            score its front, if it had one.
        storage: As in `search`; None for that of the search, whose password was not kept. "journal" goes on without a
            database. The study is written anew, of a search that is complete, too.
        accept_changes: Go on although model, data or metric are not those of the search.
        observer: As in `search`.

    Raises:
        RunDirectoryError: If there is no such run, it is in use or damaged, or the task has changed.
        InvalidInput: If the database can't be used.
    """
    started = time.monotonic()
    directory = RunDirectory.open(Path(path))
    config = directory.config
    if task is None and not config.task_reference:
        raise InvalidInput(f"run {path}: its task was given as an object; give resume(..., task=...) the same again")
    asked = {"address": address, "gpus_per_trial": gpus_per_trial, "trainers_per_trial": trainers_per_trial}
    cluster = _resumed_cluster(config, executor, asked)
    _positive("workers", workers)
    if workers is None and executor in (None, config.executor):
        workers = config.workers
    executor = executor or config.executor
    EXECUTORS[executor]
    config = replace(
        config,
        executor=executor,
        cluster=cluster,
        budget_s=_budget_s(budget, trials) if budget is not None else config.budget_s,
        trials=_positive("trials", trials) or config.trials,
        score_on_device=config.score_on_device if score_on_device is None else score_on_device,
    )
    database = _database(config.storage if storage is None else storage)
    with directory.locked():
        if database is not None:
            database.require_usable(resumed=True)
        config = _with_study(config, directory, database)
        mend(directory)
        beat, clock = directory.heartbeat, clock_of(directory, started)
        _require_time(budget, config.budget_s, clock.elapsed_s)
        task = config.task_reference if task is None else task
        with (
            sent(task) as source,
            Interrupts() as interrupts,
            _pool(executor, workers, config.profiles, cluster, source) as pool,
        ):
            config = replace(config, workers=pool.workers)
            means = Means(pool, source, interrupts, observer, database)
            description = describe(means, config.space)
            require_same(config, description, path, accept_changes=accept_changes)
            as_it_was = (budget, trials, score_on_device) == (None, None, None)
            if as_it_was and beat is not None and beat.status == "complete":
                _write_study(config, directory, database)
                return Run(directory.path)
            session = Session(directory, means, clock)
            with directory.disk_watched():
                session.go_on(replace(config, fingerprints=description.fingerprints))
                return session.finish(description)


def check(
    task: Task | str,
    *,
    space: str | SearchSpace = "joint",
    hardware: Hardware | Sequence[Hardware] = "local",
    observe: Callable[[CheckItem], None] | None = None,
) -> CheckReport:
    """Try everything that a search needs, in under a minute for small models.

    Args:
        task: As in `search`.
        space: As in `search`.
        hardware: As in `search`.
        observe: Called with every item as soon as it is known.

    Returns:
        One item for each thing; it ends at the first that is not ok.

    Raises:
        TaskFailed: If the user's own code raises.
    """
    items = []
    found = load_space(space) if isinstance(space, str) else space
    profiles = _profiles(hardware)
    with tempfile.TemporaryDirectory(prefix="autocompress-check-") as folder:
        for item in run_checks(task, found, profiles, Path(folder)):
            items.append(item)
            if observe is not None:
                observe(item)
    return CheckReport(tuple(items))


def apply(
    plan: Plan | str | Path,
    task: Task | str,
    *,
    output: str | Path,
    hardware: Hardware | Sequence[Hardware] = "local",
    seed: int = 0,
    observe: Callable[[Task], None] | None = None,
) -> Record:
    """Carry out one plan and write its ONNX file.

    Training takes as many threads as in a search with the default number of workers, since sums in another order end in
    other weights: the file of such a search is made again bit for bit, on the same machine with the same seed.

    Args:
        plan: A plan, or the path of its JSON file as a run's `front/` holds it.
        task: As in `search`.
        output: The ONNX file to write; must not exist yet.
        hardware: As in `search`; with several machines all of those of the search, since models are made for all.
        seed: For everything random; a trial's own seed is in its record.
        observe: Called with the task as soon as it is loaded.

    Returns:
        The record, with score and measurement.

    Raises:
        InvalidInput: If the plan can't be read or the output exists.
        InfeasiblePlan: If the plan does not fit the model.
        TaskFailed: If the user's own code raises.
    """
    from autocompress.pipeline import Workbench, apply_plan

    target = Path(output)
    if target.exists():
        raise InvalidInput(f"output {target}: exists already; give another file or remove it")
    if not target.parent.is_dir():
        raise InvalidInput(f"output {target}: the folder {target.parent} does not exist; create it")
    read = plan if isinstance(plan, Plan) else _read_plan(Path(plan))
    profiles = _profiles(hardware)
    loaded = load_task(task) if isinstance(task, str) else task
    if observe is not None:
        observe(loaded)
    with tempfile.TemporaryDirectory(prefix="autocompress-apply-") as folder:
        bench = Workbench(loaded, profiles, Path(folder))
        with _threads(_threads_per_trial(_workers(None, "processes", profiles, ALONE))):
            return apply_plan(Trial(0, read, seed=seed, proposal=Proposal("user")), bench, target)


def measure(
    model: str | Path,
    *,
    hardware: str | HardwareProfile = "local",
    reference: str | Path | None = None,
    batch_size: int = 1,
    observe: Callable[[str], None] | None = None,
) -> Measurement:
    """Measure an ONNX file on a device, interleaved with a reference model if one is given.

    Args:
        model: The ONNX file.
        hardware: As in `search`.
        reference: Another ONNX file with the same inputs; the latency ratio is taken against it.
        batch_size: Samples of one inference, for models with a free first axis.
        observe: Called with a line when machines elsewhere are lost, waited for, or back.

    Raises:
        InvalidInput: If a file is missing, or the model has batches of another size.
        ConversionError: If ONNX Runtime on the host can't load it.
        MeasurementError: If the device can't run it.
    """
    from autocompress.artifact import Artifact
    from autocompress.formats.onnx_runtime import random_inputs

    for path in (model, reference or model):
        if not Path(path).is_file():
            raise InvalidInput(f"model {path}: no such file; expected an ONNX file")
    profile = _profile(hardware)
    artifact = Artifact.of(Path(model))
    other = Artifact.of(Path(reference)) if reference is not None else artifact
    examples = random_inputs(Path(model), batch_size=_positive("batch size", batch_size) or 1)
    device = open_device(profile)
    if observe is not None:
        device.tell = observe
    return device.measure([artifact], other, examples=examples)[0]


def profile_device(
    hardware: str | HardwareProfile = "local",
    *,
    output: str | Path,
    threads: int | None = None,
    overwrite: bool = False,
    observe: Callable[[str], None] | None = None,
) -> ProfiledDevice:
    """Find what is fast on a machine by measuring small models, and write its hardware profile.

    Args:
        hardware: Where to begin, as in `search`: it says the device, the provider and the protocol, and what can't be
            measured stays as it is there.
        output: The YAML file to write; `search(hardware=...)` takes its path.
        threads: Threads of one inference; by default those of `hardware`.
        overwrite: True to replace a file that is there.
        observe: Called with a line before every step.

    Returns:
        The profile and the findings behind it.

    Raises:
        InvalidInput: If the output exists, or can't be used; nothing is measured then.
        DeviceUnavailable: If the device or its provider is missing or stays busy.
        MeasurementError: If not even float models can be measured.
    """
    from autocompress.profiling.benchmark import run_benchmark
    from autocompress.profiling.writing import ProfiledDevice, profile_of, profile_yaml
    from autocompress.serialization import write_atomically

    target = Path(output)
    if target.suffix not in (".yaml", ".yml"):
        raise InvalidInput(f"output {target}: expected a file that ends in .yaml, by which --hardware knows a path")
    if target.exists() and not overwrite:
        raise InvalidInput(f"output {target}: exists already; give another file, remove it, or overwrite it (--force)")
    if not target.parent.is_dir():
        raise InvalidInput(f"output {target}: the folder {target.parent} does not exist; create it")
    base = _with_threads(hardware, _positive("threads", threads))
    findings = run_benchmark(base, observe=observe or (lambda line: None))
    profile = profile_of(base, findings, target.stem)
    write_atomically(target, profile_yaml(profile, findings))
    return ProfiledDevice(profile, findings)


def _with_threads(hardware: str | HardwareProfile, threads: int | None) -> HardwareProfile:
    if hardware == LOCAL and threads is not None:
        return detect_profile(threads)
    profile = _profile(hardware)
    return profile if threads is None else replace(profile, threads=threads)


# -- what was asked for -----------------------------------------------------------------------------------------------


def make_request(
    *,
    budget: str | float | None,
    trials: int | None,
    space: str | SearchSpace,
    hardware: Hardware | Sequence[Hardware],
    strategy: str,
    objectives: Sequence[str],
    constraints: Sequence[str],
    max_drop: float | None,
    seed: int,
    score_on_device: bool,
) -> Request:
    """A search of one process as asked for, checked as far as that goes without the task; see `search`.

    Raises:
        InvalidInput: If anything given can't be used.
    """
    request = Request(
        budget_s=None if budget is None else _seconds(budget),
        trials=_positive("trials", trials),
        space=load_space(space) if isinstance(space, str) else space,
        profiles=_profiles(hardware),
        strategy=strategy,
        objectives=tuple(objectives),
        constraints=tuple(constraints),
        max_drop=max_drop,
        workers=1,
        seed=seed,
        score_on_device=score_on_device,
        executor="processes",
        cluster=ALONE,
    )
    if not 0 <= seed < 2**31:
        raise InvalidInput(f"seed {seed}: expected a whole number from 0 to 2147483647")
    if max_drop is not None and not 0 <= max_drop < math.inf:
        raise InvalidInput(f"max_drop {max_drop:g}: expected a number from 0 up, in points")
    STRATEGIES[strategy]
    for text in constraints:
        Constraint.parse(text)
    return request


def _budget_s(budget: str | float | None, trials: int | None) -> float | None:
    if budget is None:
        return None if trials is not None else parse_duration(DEFAULT_BUDGET)
    return _seconds(budget)


def _seconds(budget: str | float) -> float:
    seconds = parse_duration(budget) if isinstance(budget, str) else float(budget)
    if seconds <= 0:
        raise InvalidInput(f"budget {budget!r}: expected a time above zero, such as 90s, 15m, 4h or 2d")
    return seconds


def _resumed_cluster(config: RunConfig, executor: str | None, asked: Mapping[str, Any]) -> Cluster:
    """The cluster of a search that is taken up: as it was, but for what is given anew."""
    before = config.cluster if executor in (None, config.executor) else ALONE
    return replace(before, **{name: value for name, value in asked.items() if value not in (None, "")})


def _require_time(given: str | float | None, budget_s: float | None, spent_s: float) -> None:
    """Refuse a new budget that is spent already.

    Raises:
        InvalidInput: If it is.
    """
    if given is not None and budget_s is not None and budget_s <= spent_s:
        raise InvalidInput(
            f"budget {given!r}: {format_duration(spent_s)} of it are spent already, since a budget is that of all "
            "resumes together; give more"
        )


def _database(storage: str | None) -> Database | None:
    """The database of the study, if it is to be in one."""
    if storage in (None, "", JOURNAL):
        return None
    from autocompress.storage import Database

    return Database.of(str(storage))


def _with_study(config: RunConfig, directory: RunDirectory, database: Database | None) -> RunConfig:
    """The configuration with the study's place and name."""
    if database is None:
        return replace(config, storage="")
    from autocompress.storage import own_name

    return replace(config, storage=str(database), study=own_name(directory, database, config.study))


def _write_study(config: RunConfig, directory: RunDirectory, database: Database | None) -> None:
    """Write the study of a search that is complete."""
    if database is not None:
        from autocompress.storage import write_study

        write_study(directory, database, config.study)
    before = directory.config
    if (config.storage, config.study) != (before.storage, before.study):
        directory.write_config(replace(before, storage=config.storage, study=config.study))


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise InvalidInput(f"{name} {value}: expected a whole number from 1 up")
    return value


def _profile(hardware: Hardware) -> HardwareProfile:
    return resolve_profile(hardware) if isinstance(hardware, str) else hardware


def _profiles(hardware: Hardware | Sequence[Hardware]) -> tuple[HardwareProfile, ...]:
    """The machines that were asked for.

    Raises:
        InvalidInput: If none is, or two have one name: values are told apart by it.
    """
    several = [hardware] if isinstance(hardware, str | HardwareProfile) else list(hardware)
    found = tuple(map(_profile, several))
    names = [profile.name for profile in found]
    if not found:
        raise InvalidInput("hardware: no machine is given; expected a profile or several")
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(
                f"hardware: {names.count(name)} profiles are called {name!r}; give each a name of its own, by `name` "
                "in its YAML file"
            )
        if len(names) > 1 and not MACHINE_NAME.fullmatch(name):
            raise InvalidInput(
                f"hardware: a profile is called {name!r}; expected letters, digits and . _ + - in its name"
            )
    return found


def _workers(workers: int | None, executor: str, profiles: Sequence[HardwareProfile], cluster: Cluster) -> int:
    """Trials at the same time; one where inference takes several threads, since wall time suffers from other work."""
    kind = EXECUTORS[executor]
    if executor == "inline":
        return 1
    takes_wall_time = any(profile.threads > 1 and not profile.addresses for profile in profiles)
    count = _positive("workers", workers) or kind.usual_workers(cluster, takes_wall_time=takes_wall_time)
    if count is not None:
        return count
    if any(profile.threads > 1 for profile in profiles):
        return 1
    memory = memory_bytes() or WORKER_BYTES * _cores()
    return max(1, min(_cores(), int(memory / WORKER_BYTES)))


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads_per_trial(workers: int) -> int:
    return max(1, _cores() // workers)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """That many threads for torch, for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _pool(
    executor: str,
    workers: int | None,
    profiles: Sequence[HardwareProfile],
    cluster: Cluster,
    source: TaskSource,
) -> Iterator[TrialExecutor]:
    """An executor whose workers can load a task; it is gone afterwards, at once if something went wrong.

    Args:
        executor: Its name.
        workers: Trials at the same time; None for as many as can be, on the cluster as it is now.
        profiles: What models are measured on.
        cluster: Where to run.
        source: The task.
    """
    kind = EXECUTORS[executor]
    workers = _workers(workers, executor, profiles, cluster)
    pool = kind(workers, kind.usual_threads(workers, cluster) or _threads_per_trial(workers), cluster)
    try:
        if source.file:
            pool.carry(Path(source.file))
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _default_output(task: str) -> Path:
    name = re.sub(r"[^\w.-]+", "-", task).strip("-") or "task"
    return Path("runs") / f"{name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"plan {path}: can't be read: {error.strerror}") from error
    except AutocompressError as error:
        raise InvalidInput(f"plan {path}: {error}") from error
