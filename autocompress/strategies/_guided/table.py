"""The sensitivity table: every single change of the original, looked at before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest

import numpy as np

from autocompress.data import Array
from autocompress.landscape import Landscape
from autocompress.plan import ORIGINAL
from autocompress.probe import Probe, Sensitivity
from autocompress.strategies._base import Problem
from autocompress.strategies._guided.damage import Key, damages, key_of
from autocompress.strategies._guided.plans import PlanOf
from autocompress.strategies._guided.policies import savings

TABLE_SHARE = 0.15
"""Share of the budget that looking at single changes may take."""

HARMFUL = 3.0
"""The divergence that a change is taken to cause which could not be made, or whose outputs are not finite."""

LOOKS_FOR_A_TRIAL = 3
"""Entries of the table for each trial that is allowed, at most."""


class Table:
    """What is to be looked at, and what was seen.

    Args:
        problem: What to search.
        plan_of: The plan of a change.
        is_wanted: False to look at nothing: all changes then count as equally harmful.
    """

    def __init__(self, problem: Problem, plan_of: PlanOf, *, is_wanted: bool = True) -> None:
        self._problem = problem
        self._landscape = problem.landscapes[ORIGINAL]
        self._probes = _probes(self._landscape, plan_of, problem.seed) if is_wanted else {}
        self._waiting = dict.fromkeys(self._probes)
        self._entries: dict[str, Sensitivity] = {}
        self._asked: set[str] = set()
        self._damages: dict[str, Array] | None = None

    def next(self) -> Probe | None:
        """The next change to look at, while the table takes no more than its share of the budget or the trials."""
        if not self._waiting or not self._may_look():
            return None
        digest = next(iter(self._waiting))
        del self._waiting[digest]
        self._asked.add(digest)
        return self._probes[digest][0]

    def note(self, entry: Sensitivity) -> bool:
        """Take in what was seen; False if it is no change of this table."""
        digest = entry.plan.digest
        if digest not in self._probes:
            return False
        self._entries[digest] = entry
        self._waiting.pop(digest, None)
        self._damages = None
        return True

    @property
    def damages(self) -> Mapping[str, Array]:
        """Divergence of each change, by architecture."""
        if self._damages is None:
            known: dict[Key, float] = {
                key_of(self._landscape, self._probes[digest][1]): HARMFUL if entry.reason else entry.divergence
                for digest, entry in sorted(self._entries.items())
            }
            self._damages = {name: damages(landscape, known) for name, landscape in self._problem.landscapes.items()}
        return self._damages

    def points(self) -> Iterator[tuple[Array, Sensitivity]]:
        """The points of all changes that were seen, in an order that does not depend on when (sites,)."""
        for digest, entry in sorted(self._entries.items()):
            if not entry.reason:
                yield self._landscape.single_changes[self._probes[digest][1]], entry

    def _may_look(self) -> bool:
        looks, trials = len(self._asked | self._entries.keys()), self._problem.trials
        if trials is not None and looks >= LOOKS_FOR_A_TRIAL * trials:
            return False
        if self._problem.budget_s is None:
            return True
        spent_s = sum(entry.seconds for entry in self._entries.values()) / self._problem.workers
        return spent_s < TABLE_SHARE * self._problem.budget_s


def _probes(landscape: Landscape, plan_of: PlanOf, seed: int) -> dict[str, tuple[Probe, int]]:
    """Every change by the digest of its plan: those that save most first, methods by turns."""
    by_method: dict[str, list[int]] = {}
    for change in np.argsort(-savings(landscape), kind="stable").tolist():
        by_method.setdefault(landscape.sites[landscape.changes[change][0]].method, []).append(change)
    found = {}
    for turn in zip_longest(*by_method.values()):
        for change in turn:
            if change is not None:
                site, option = landscape.changes[change]
                plan = plan_of(landscape.sites[site].options[option]).without_recovery()
                found[plan.digest] = Probe(plan, seed), change
    return found
