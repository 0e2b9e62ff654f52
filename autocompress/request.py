"""What a search was asked for, and the configuration that this becomes once the task is known."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress import __version__
from autocompress.cluster import Cluster
from autocompress.errors import RunDirectoryError
from autocompress.objective import (
    Direction,
    check_shares,
    make_objectives,
    measured_objectives,
    parse_constraints,
)
from autocompress.profile import HardwareProfile
from autocompress.run_directory import RunConfig
from autocompress.space import SearchSpace
from autocompress.strategies import STRATEGIES
from autocompress.task_source import TaskSource

if TYPE_CHECKING:
    from autocompress.worker import Description

LEAST_EPOCHS, MOST_EPOCHS = 2, 40
"""Fewest and most epochs that "auto" gives."""

ON_RUNGS, FOR_ALL = 9, 8
"""Epochs where there is no budget to suit: of the few that come to the last rung, and of all that are trained."""

TRIALS_IN_BUDGET = 40
"""Trials with recovery that "auto" epochs let fit into a budget."""

FULL_TRAININGS = 6
"""The same for strategies that begin with little training and prolong that of the best."""

TRAINING_SHARE, SLOWNESS = 0.6, 1.5
"""Share of a budget that is for training; how much longer an epoch takes with distillation and rounding in it."""


@dataclass(frozen=True)
class Request:
    """A search as asked for, before the task is known."""

    budget_s: float | None
    trials: int | None
    space: SearchSpace
    profiles: tuple[HardwareProfile, ...]
    strategy: str
    objectives: tuple[str, ...]
    constraints: tuple[str, ...]
    max_drop: float | None
    workers: int
    seed: int
    score_on_device: bool
    executor: str
    cluster: Cluster


def make_config(request: Request, description: Description, source: TaskSource) -> RunConfig:
    """The request with everything resolved that the task decides.

    Raises:
        InvalidInput: If objectives or constraints don't fit the task's metric.
    """
    metric = description.metric
    direction: Direction = "maximize" if description.maximize else "minimize"
    texts = request.constraints
    if request.max_drop is not None:
        texts += (_drop_constraint(request.max_drop, description),)
    machines = [profile.name for profile in request.profiles]
    known = (metric, *(objective.name for objective in measured_objectives(machines)))
    constraints = parse_constraints(texts, known)
    check_shares(constraints, (metric,) if description.is_percentage else ())
    return RunConfig(
        task=description.task,
        task_reference=source.reference,
        metric=metric,
        is_percentage=description.is_percentage,
        direction=direction,
        fingerprints=description.fingerprints,
        space=request.space,
        profiles=request.profiles,
        objectives=make_objectives(request.objectives, metric, direction, machines),
        constraints=constraints,
        strategy=request.strategy,
        budget_s=request.budget_s,
        trials=request.trials,
        workers=request.workers,
        seed=request.seed,
        versions=_versions(),
        machine=platform.node(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        score_on_device=request.score_on_device,
        executor=request.executor,
        cluster=request.cluster,
    )


def _drop_constraint(max_drop: float, description: Description) -> str:
    """The bound on the metric: points below the baseline for shares, percent of the baseline for others."""
    share, sign = max_drop / 100, -1 if description.maximize else 1
    if description.is_percentage:
        return f"{description.metric}>=baseline-{share!r}" if sign < 0 else f"{description.metric}<=baseline+{share!r}"
    return f"{description.metric}{'>=' if sign < 0 else '<='}baseline*{1 + sign * share!r}"


def auto_epochs(config: RunConfig, epoch_s: float) -> int:
    """Epochs of a full recovery that suit a search.

    A strategy with rungs gives them to a few models alone, others give them to all that are trained.

    Args:
        config: Of the search.
        epoch_s: Seconds of an epoch of the original.
    """
    has_rungs = STRATEGIES[config.strategy].has_rungs
    if config.budget_s is None:
        return ON_RUNGS if has_rungs else FOR_ALL
    trained = FULL_TRAININGS if has_rungs else TRIALS_IN_BUDGET
    each_s = TRAINING_SHARE * config.budget_s * config.workers / trained
    return int(min(MOST_EPOCHS, max(LEAST_EPOCHS, each_s / (SLOWNESS * epoch_s))))


def require_same(config: RunConfig, description: Description, path: str | Path, *, accept_changes: bool) -> None:
    """Refuse to go on with another task.

    Raises:
        RunDirectoryError: Naming what differs.
    """
    now = description.fingerprints
    changed = sorted(key for key in config.fingerprints if now.get(key) != config.fingerprints[key])
    if changed and not accept_changes:
        raise RunDirectoryError(
            f"run {path}: not the same {', '.join(changed)} as when the search began; start a new search, or go on "
            "all the same with --accept-changes"
        )


def _versions() -> dict[str, str]:
    names = ("torch", "onnx", "onnxruntime", "optuna", "numpy")
    own = {"python": platform.python_version(), "autocompress": __version__}
    return own | {name: version(name) for name in names}
