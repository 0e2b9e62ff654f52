"""What a report reads of a run, gathered once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from autocompress.point import Point, confirmed
from autocompress.probe import Sensitivity
from autocompress.record import Record
from autocompress.run_directory import RunConfig, RunDirectory


@dataclass(frozen=True)
class RunFacts:
    """A run as a report sees it.

    Args:
        config: What the search was asked to do.
        status: How the search stands, in a word.
        elapsed_s: Wall time spent over all resumes.
        records: All finished trials, with their latest values, in the order they ended.
        baseline: None before it is measured.
        front: The points of the front.
        near_misses: Where no model obeys the constraints: those that come nearest.
        sensitivities: Entries of the sensitivity table, in the order they were made.
        test_fold_scores: Number of a trial to its scores on parts of the test split.
        confirming_s: Seconds that confirming the front took, one number for each model.
        device_scoring_s: Seconds that scoring on the device took, one number for each model.
        folder: Where the page will lie; links are relative to it.
    """

    config: RunConfig
    status: str
    elapsed_s: float
    records: tuple[Record, ...]
    baseline: Point | None
    front: tuple[Point, ...]
    near_misses: tuple[Point, ...]
    sensitivities: tuple[Sensitivity, ...]
    test_fold_scores: Mapping[int, tuple[float, ...]]
    confirming_s: tuple[float, ...]
    device_scoring_s: tuple[float, ...]
    folder: Path

    @classmethod
    def read(cls, directory: RunDirectory, folder: Path) -> RunFacts:
        """The facts in a run directory, for a page in `folder`."""
        beat = directory.heartbeat
        baseline, front = directory.points()
        confirmations = directory.confirmations()
        return cls(
            config=directory.config,
            status=beat.status if beat else "interrupted",
            elapsed_s=beat.elapsed_s if beat else 0.0,
            records=confirmed(directory.records(), confirmations),
            baseline=baseline,
            front=front,
            near_misses=directory.near_misses(),
            sensitivities=directory.sensitivities(),
            test_fold_scores={one.number: one.test_fold_scores for one in confirmations},
            confirming_s=tuple(one.seconds for one in confirmations),
            device_scoring_s=tuple(one.seconds for one in directory.device_scores()),
            folder=folder,
        )

    @property
    def complete(self) -> tuple[Record, ...]:
        """The trials that have all values."""
        return tuple(record for record in self.records if record.status == "complete")

    def count(self, status: str) -> int:
        """How many trials ended so."""
        return sum(record.status == status for record in self.records if record.number > 0)

    def link(self, file: str) -> str:
        """The address of a file as the page must write it."""
        return quote(Path(os.path.relpath(file, self.folder)).as_posix())
