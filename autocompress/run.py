"""A run: a search that ended or still goes on, as its directory tells it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import InvalidInput, RunDirectoryError, UnknownName
from autocompress.objective import (
    LATENCY_RATIO,
    Constraint,
    Direction,
    check_shares,
    names_on_machines,
    over_machines,
    quantity,
    weighted_change,
)
from autocompress.point import Point, summarize, ties
from autocompress.record import Record
from autocompress.report.table import Column, point_columns, with_misses
from autocompress.run_directory import CANCELLED, RunConfig, RunDirectory, RunStatus
from autocompress.serialization import write_atomically

if TYPE_CHECKING:
    import pandas


class Run:
    """A search on disk, finished or not; every property reads the directory anew.

    Args:
        path: The run directory.

    Raises:
        RunDirectoryError: If there is none at that path.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._directory = RunDirectory.open(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> RunConfig:
        """What the search was asked to do."""
        return self._directory.config

    @property
    def status(self) -> RunStatus:
        """`running`, `complete`, `stopped`, `failed` or `interrupted`."""
        beat = self._directory.heartbeat
        if beat is not None:
            return beat.status
        return "running" if self._directory.is_locked() else "interrupted"

    @property
    def reason(self) -> str:
        """Why the last process that searched here ended; empty while one does, or if none could say so."""
        beat = self._directory.heartbeat
        return beat.reason if beat is not None else ""

    @property
    def was_cancelled(self) -> bool:
        """True if the last process that searched here was told twice to stop."""
        beat = self._directory.heartbeat
        return beat is not None and beat.reason == CANCELLED

    @property
    def baseline(self) -> Point | None:
        """The user's model as it was, or None before it is measured."""
        return self._directory.points()[0]

    @property
    def points(self) -> tuple[Point, ...]:
        """The front, best first by the first objective."""
        return self._directory.points()[1]

    @property
    def near_misses(self) -> tuple[Point, ...]:
        """Where no model obeys the constraints: those that come nearest, the nearest first."""
        return self._directory.near_misses()

    @property
    def front(self) -> pandas.DataFrame:
        """The front as a table, a row a model."""
        import pandas

        return pandas.DataFrame([point.as_row() for point in self.points])

    @property
    def trials(self) -> pandas.DataFrame:
        """All finished trials as a table, in the order they ended."""
        import pandas

        return pandas.DataFrame([_trial_row(record) for record in self._directory.records()])

    def pick(
        self,
        where: str | Sequence[str] | None = None,
        best: str | None = None,
        output: str | Path | None = None,
    ) -> Point:
        """Choose one model of the front.

        Args:
            where: What it must obey: `latency_ms<=2`, `accuracy>=baseline-1%`, `size_bytes<=0.5x`; several as a
                sequence or joined by commas. With several machines a latency without a name has to obey on each.
            best: The value that decides among those left; by default the weights of the objectives if the search had
                some, else the first objective. With several machines a latency without a name is the geometric mean
                over all of them. Of models whose latencies can't be told apart it is the smallest.
            output: Where to copy the ONNX file, with the plan beside it as JSON; or a folder that exists.

        Returns:
            The point; with `output` its `file` and `plan` are the copies.

        Raises:
            InvalidInput: If no model fits (names the nearest), a name is unknown, or another file is in the way.
        """
        baseline, points = self._directory.points()
        if baseline is None or not points:
            raise InvalidInput(self._why_empty())
        known = [name for name in baseline.values() if any(name in point.values() for point in points)]
        constraints = tuple(one for text in _texts(where) for one in _constraint(text, known).on_machines(known))
        metric = self.config.metric
        shares = (metric, f"test_{metric}", f"device_{metric}") if self.config.is_percentage else ()
        check_shares(constraints, shares)
        fitting = [point for point in points if _miss(point, baseline, constraints) is None]
        if not fitting:
            raise InvalidInput(_nothing_fits(points, baseline, constraints))
        chosen = self._best(fitting, best, known)
        return chosen if output is None else self._copy(chosen, Path(output))

    def report(self, output: str | Path | None = None) -> Path:
        """Write the report, one HTML page that needs nothing else; by default `report.html` in the run directory."""
        from autocompress.report import write_report

        return write_report(self._directory, Path(output) if output is not None else self.path / "report.html")

    def as_json(self) -> dict[str, Any]:
        """The run as `autocompress show RUN --format json` prints it: a stable contract for scripts."""
        config, beat = self.config, self._directory.heartbeat
        baseline, front = self._directory.points()
        statuses = [record.status for record in self._directory.records() if record.number > 0]
        return {
            "task": config.task,
            "status": self.status,
            "budget_s": config.budget_s,
            "elapsed_s": beat.elapsed_s if beat else 0.0,
            "trials": {status: statuses.count(status) for status in ("complete", "screened", "failed")},
            "baseline": baseline.as_json() if baseline else None,
            "front": [point.as_json() for point in front],
            "near_misses": [point.as_json() for point in self.near_misses],
        }

    def columns(self) -> tuple[Column, ...]:
        """The columns that a table of the front has, or of the near misses where nothing obeys."""
        config, baseline, misses = self.config, self.baseline, self.near_misses
        points = (*([baseline] if baseline else []), *(misses or self.points))
        columns = point_columns(points, config.metric, config.is_percentage)
        return with_misses(columns, baseline, config.constraints) if misses and baseline else columns

    def _repr_html_(self) -> str:
        from autocompress.report.page import front_html

        return front_html(self._directory)

    def _best(self, points: Sequence[Point], best: str | None, known: Sequence[str]) -> Point:
        config, baseline = self.config, self.baseline
        if best is None and baseline is not None and all(objective.weight for objective in config.objectives):
            return min(points, key=lambda point: self._weighted(point, baseline))
        name = best or self._first_objective(known)
        if name not in known:
            raise _unknown("value to be best in", name, known)
        sign = -1.0 if self._direction(name) == "maximize" else 1.0
        having = [point for point in points if name in point.values()]
        if not having:
            raise InvalidInput(f"value to be best in {name!r}: none of the models that fit has it; give another")

        def rank(point: Point) -> tuple[float, float, int]:
            values = point.values()
            return sign * over_machines(values, name), over_machines(values, LATENCY_RATIO), point.size_bytes

        first = min(having, key=rank)
        as_fast = [point for point in having if ties(point, first, name)]
        return min(as_fast, key=lambda point: (point.size_bytes, *rank(point)), default=first)

    def _first_objective(self, known: Sequence[str]) -> str:
        """Its name, without a machine where it is an objective on all of them."""
        names = [objective.name for objective in self.config.objectives]
        whole = quantity(names[0])
        return whole if set(names_on_machines(whole, known)) <= set(names) else names[0]

    def _why_empty(self) -> str:
        misses = self.near_misses
        if not misses:
            return f"run {self.path}: the front is empty so far; wait for the first trials"
        wanted = ", ".join(map(str, self.config.constraints))
        return f"run {self.path}: no model has {wanted}; the nearest: {', '.join(point.file for point in misses)}"

    def _weighted(self, point: Point, baseline: Point) -> float:
        config = self.config
        return weighted_change(config.objectives, point.values(), baseline.values(), is_share=config.is_percentage)

    def _direction(self, name: str) -> Direction:
        metric = self.config.metric
        return self.config.direction if name in (metric, f"test_{metric}", f"device_{metric}") else "minimize"

    def _copy(self, point: Point, output: Path) -> Point:
        file = output / f"{point.name}.onnx" if output.is_dir() else output
        if file.suffix != ".onnx":
            raise InvalidInput(f"output {output}: expected a file name that ends in .onnx, or a folder that exists")
        record = next(record for record in self._directory.records() if record.number == point.number)
        assert record.artifact is not None, "points have an artifact"
        plan = file.with_suffix(".json")
        copies = {file: self._content(record.artifact.path), plan: record.plan.to_json().encode()}
        for target, content in copies.items():
            _refuse_overwriting(target, content)
        for target, content in copies.items():
            _write(target, content)
        return replace(point, file=str(file), plan=str(plan))

    def _content(self, artifact: str) -> bytes:
        try:
            return (self.path / artifact).read_bytes()
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path / artifact}: can't be read: {error.strerror}; restore it, or make the model again from "
                "its plan with `autocompress apply`"
            ) from error


@dataclass(frozen=True)
class _Miss:
    """The constraint that a point breaks worst."""

    constraint: Constraint
    violation: float


def _miss(point: Point, baseline: Point, constraints: Sequence[Constraint]) -> _Miss | None:
    values = point.values()  # some lack a value, as models do that the device can't run
    misses = [_Miss(c, c.violation(values, baseline.values()) if c.name in values else math.inf) for c in constraints]
    return max((miss for miss in misses if miss.violation > 0), key=lambda miss: miss.violation, default=None)


def _nothing_fits(points: Sequence[Point], baseline: Point, constraints: Sequence[Constraint]) -> str:
    misses = [(point, miss) for point in points if (miss := _miss(point, baseline, constraints)) is not None]
    nearest = sorted(misses, key=lambda pair: pair[1].violation)[:3]
    listing = ", ".join(
        f"{point.name} ({miss.constraint.name} {point.values().get(miss.constraint.name, math.nan):.4g}, "
        f"wanted {miss.constraint.operator} {miss.constraint.bound(baseline.values()):.4g})"
        for point, miss in nearest
    )
    wanted = ", ".join(str(constraint) for constraint in constraints)
    return f"none of the {len(points)} models of the front has {wanted}; ask for less. Nearest: {listing}"


def _texts(where: str | Sequence[str] | None) -> tuple[str, ...]:
    given = (where,) if isinstance(where, str) else where or ()
    return tuple(text for part in given for text in part.split(",") if text.strip())


def _constraint(text: str, known: Sequence[str]) -> Constraint:
    constraint = Constraint.parse(text)
    if constraint.name not in known:
        raise _unknown("value in a constraint", constraint.name, known)
    return constraint


def _unknown(kind: str, name: str, known: Sequence[str]) -> InvalidInput:
    if name.startswith("test_") and name.removeprefix("test_") in known:
        return InvalidInput(
            f"{kind} {name!r}: there are no test scores; they come at the end of a search whose task has test data"
        )
    if name.startswith("device_") and name.removeprefix("device_") in known:
        return InvalidInput(
            f"{kind} {name!r}: no model of the front has a score on the device; they come with --score-on-device, on "
            "--resume too, and a budget that is large enough"
        )
    return UnknownName(kind, name, known)


def _refuse_overwriting(target: Path, content: bytes) -> None:
    if target.exists() and (not target.is_file() or target.read_bytes() != content):
        raise InvalidInput(f"output {target}: exists already with other content; give another name or remove it")


def _write(target: Path, content: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
    except OSError as error:
        raise InvalidInput(f"output {target}: can't be written: {error.strerror}; give another place") from error


def _trial_row(record: Record) -> dict[str, Any]:
    return {
        "number": record.number,
        "name": summarize(record.plan),
        "status": record.status,
        "reason": record.reason,
        "source": record.trial.proposal.source,
        **record.values,
        "fidelity": record.trial.fidelity,
        "seconds": record.elapsed_s,
        "notes": "; ".join(record.notes),
    }
