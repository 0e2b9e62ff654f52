"""The searcher by which `tune.Tuner` runs our strategies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from autocompress.api import Hardware, make_request
from autocompress.errors import AutocompressError, InvalidInput
from autocompress.run import Run
from autocompress.serialization import from_json, to_json
from autocompress.space import SearchSpace
from autocompress.task import Task
from autocompress.task_source import referred
from autocompress.tune.driver import Driver, Order, cluster_workers
from autocompress.tune.handover import Known
from autocompress.tune.trials import RECORD

_DRIVERS: dict[Path, Driver] = {}
"""The searches of this process by their directories: a restored Tuner works with a copy of what the user holds."""


class AutocompressSearcher(Searcher):
    """Proposes the trials of a search to Ray Tune, and takes their records into its run directory.

    The search itself is that of `autocompress.search`, in a thread beside Tune: the same strategy, sensitivity table,
    screen, records, front and report. Tune carries out its trials; the baseline before them, looks at single changes
    between them and the front after them, measured together and scored on test data, are left to processes of Ray that
    take none of its CPUs. Wherever a trial runs, its model is measured on the node of the search, by the agents of the
    profile, or on nodes that declare the machine, as in a search with the executor "ray".

        search = AutocompressSearcher("task.py", output="runs/tuned", trials=20)
        config = tune.TuneConfig(search_alg=search, num_samples=-1, max_concurrent_trials=2, reuse_actors=True)
        results = tune.Tuner(trainable, tune_config=config, run_config=tune.RunConfig(name="tuned")).fit()
        search.finish().front

    After a crash `tune.Tuner.restore(path, trainable=trainable).fit()` goes on, and the same `search.finish()` ends it.
    It has to resume unfinished trials, as it does by default: the search waits for them. A trial whose process died
    more often than `max_failures` allows has failed, and stays so.

    Args:
        task: A task, or where it is; as in `autocompress.search`, and so is all that is not named here.
        output: Run directory, which every machine of the cluster has to reach by this path.
        trials: Largest number of trials beside the baseline. With `num_samples=-1` Tune asks for as many, and its `fit`
            ends with the search; with another number, whichever is smaller.
        budget: Wall time for everything, in seconds or as "4h". Without one, and without `trials`, only Tune ends the
            search, by its `num_samples`, and the strategy knows of no end.
        space, hardware, strategy, objectives, constraints, max_drop, seed, score_on_device: Those of the search. Tune's
            own `metric` and `mode` change nothing but its tables.

    Raises:
        InvalidInput: If anything given can't be used.
    """

    def __init__(
        self,
        task: Task | str,
        *,
        output: str | Path,
        trials: int | None = None,
        budget: str | float | None = None,
        space: str | SearchSpace = "joint",
        hardware: Hardware | Sequence[Hardware] = "local",
        strategy: str = "guided",
        objectives: Sequence[str] = (),
        constraints: Sequence[str] = (),
        max_drop: float | None = None,
        seed: int = 0,
        score_on_device: bool = False,
    ) -> None:
        super().__init__()
        request = make_request(
            budget=budget,
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
        source = referred(task) if isinstance(task, str) else task
        self._order = Order(source, request, Path(output).resolve())
        self._workers: int | None = None

    @property
    def run(self) -> Run:
        """The search as it stands, also while it goes on.

        Raises:
            RunDirectoryError: If it has not begun.
        """
        return Run(self._order.directory)

    def finish(self) -> Run:
        """End the search and wait for its end: the front is confirmed, and the report written.

        To be called after `Tuner.fit`. Trials that Tune did not end have no record then.

        Raises:
            SearchFailed: If every trial fails in the same way.
            DeviceUnavailable: If there is nothing to measure on.
        """
        driver = self._driver
        if driver is None and self._order.directory.exists() and self.run.status == "complete":
            return self.run
        try:
            (driver or self._start(Known())).close()
        finally:
            _DRIVERS.pop(self._order.directory, None)
        return self.run

    # -- what Tune calls -------------------------------------------------------------------------------------------

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Mapping[str, Any], **spec: Any
    ) -> bool:
        """Refuse a `param_space`: what is searched is said by `space`.

        Raises:
            InvalidInput: If there is one.
        """
        raise InvalidInput(
            f"param_space with {', '.join(map(str, config))}: an AutocompressSearcher has its own space; give "
            "AutocompressSearcher(..., space=...) and no param_space"
        )

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Take over the number of trials at the same time."""
        self._workers = max_concurrent
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial; None if there is none before something has ended, `FINISHED` once the search has.

        Raises:
            AutocompressError: What ended the search, if something went wrong.
        """
        driver = self._driver or self._start(None)
        if not driver.is_over:
            return driver.next(trial_id)
        try:
            driver.close()
        except BaseException:
            del _DRIVERS[self._order.directory]
            raise
        return str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take in what a trial reports."""
        if self._driver is not None and RECORD in result:
            self._driver.end(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take in how a trial ended: with its record, with its process, or stopped by Tune."""
        driver = self._driver
        if driver is None:
            return
        if result is not None and RECORD in result:
            driver.end(trial_id, result)
        elif error:
            driver.lose(trial_id)
        else:
            driver.drop(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Write down which trials Tune knows; all else is in the run directory."""
        known = self._driver.known() if self._driver is not None else Known()
        Path(checkpoint_path).write_text(to_json(known), encoding="utf-8")  # which Tune renames once it is whole

    def restore(self, checkpoint_path: str) -> None:
        """Go on from the run directory with what Tune knew at its checkpoint."""
        known = from_json(Known, Path(checkpoint_path).read_text(encoding="utf-8"))
        if self._driver is not None:  # of a Tuner that broke in this process; this one knows less, perhaps
            with suppress(AutocompressError):
                self._driver.close(confirms=False)
        self._start(known)

    @property
    def _driver(self) -> Driver | None:
        return _DRIVERS.get(self._order.directory)

    def _start(self, known: Known | None) -> Driver:
        """Begin or go on with the search."""
        request = self._order.request
        order = replace(self._order, request=replace(request, workers=self._workers or cluster_workers(request)))
        driver = _DRIVERS[self._order.directory] = Driver(order, known)
        return driver
