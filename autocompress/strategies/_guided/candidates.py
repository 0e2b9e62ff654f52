"""What a guided search may do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.data import Array


@dataclass(frozen=True)
class Candidates:
    """Points of one architecture that may be tried, and how they would be trained; all (points,) but the first two.

    Args:
        architecture: Of all of them.
        points: Options (points, sites).
        sources: What proposed each.
        starts: Trial whose weights it would start from, or 0.
        promotes: Trial whose model would be trained more, or 0.
        before: Epochs that count for it already.
        own: Epochs that it would be given now.
        total: Epochs at which its worth is judged.
    """

    architecture: str
    points: Array
    sources: Sequence[str]
    starts: Array
    promotes: Array
    before: Array
    own: Array
    total: Array

    @classmethod
    def untrained(cls, architecture: str, point: Array, source: str) -> Candidates:
        """A point that is not trained."""
        none, zero = np.zeros(1, np.int64), np.zeros(1)
        return cls(architecture, point[None], [source], none, none, zero, none, zero)

    @classmethod
    def joined(cls, some: Sequence[Candidates]) -> Candidates:
        """Candidates of one architecture one after another; one of them at least."""
        if len(some) == 1:
            return some[0]

        def column(name: str) -> Array:
            return np.concatenate([getattr(one, name) for one in some])

        return cls(
            some[0].architecture,
            column("points"),
            [source for one in some for source in one.sources],
            column("starts"),
            column("promotes"),
            column("before"),
            column("own"),
            column("total"),
        )

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: Array) -> Candidates:
        return Candidates(
            self.architecture,
            self.points[rows],
            [self.sources[row] for row in rows],
            self.starts[rows],
            self.promotes[rows],
            self.before[rows],
            self.own[rows],
            self.total[rows],
        )
