"""The guided search as optuna-dashboard shows it: every proposal with its source, in the coordinates of policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from autocompress.objective import Objective
from autocompress.record import Record
from autocompress.strategies._study import Shown, StudyView, state_of


class PolicyView:
    """A study of the search in the coordinates of policies.

    Args:
        journal: Its file.
        objectives: Of the search.
        distributions: Of the coordinates.
    """

    def __init__(
        self, journal: Path, objectives: Sequence[Objective], distributions: Mapping[str, BaseDistribution]
    ) -> None:
        self._objectives, self._distributions = objectives, dict(distributions)
        self._begun: dict[int, Shown] = {}
        """The trials that were begun here and have not ended."""

        self._view = StudyView(journal, objectives)

    def begin(self, number: int, source: str, policy: Mapping[str, float | str]) -> None:
        """A trial was proposed."""
        self._begun[number] = self._shown(number, source, policy)
        self._view.begin(self._begun[number])

    def end(self, record: Record, policy: Mapping[str, float | str] | None) -> None:
        """A trial ended, begun here or in an earlier process.

        Args:
            record: What came of it; after less than full training its values are not final, and not told.
            policy: Its coordinates; None if they are not known.
        """
        state = state_of(record)
        values = None
        if state == TrialState.COMPLETE:
            values = [record.values[objective.name] for objective in self._objectives]
        shown = self._begun.pop(record.number, None)
        if shown is None:
            shown = self._shown(record.number, record.trial.proposal.source, policy or {})
        self._view.end(shown, state, values, {})

    def drop(self, number: int) -> None:
        """A trial that was begun here was cancelled."""
        del self._begun[number]
        self._view.drop(number)

    def _shown(self, number: int, source: str, policy: Mapping[str, float | str]) -> Shown:
        return Shown(number, source, policy, {name: self._distributions[name] for name in policy})
