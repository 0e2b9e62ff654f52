"""How much a guided search trains: rungs, from whose weights, and who goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from autocompress.data import Array
from autocompress.landscape import Landscape
from autocompress.plan import ARCHITECTURE, ORIGINAL, split_epochs
from autocompress.strategies._guided.candidates import Candidates
from autocompress.strategies._guided.gain import exclusive_volumes
from autocompress.strategies._guided.plans import PlanOf
from autocompress.strategies._guided.relatives import Relative, is_held, nearest
from autocompress.strategies._guided.results import Result, Results

ETA = 4
"""Factor from one rung of training to the next; one of so many models of a rung goes on."""

RUNGS = 3
"""Rungs from the first training of a model to all that it is given, where an epoch is short enough."""

WORTHWHILE_S = 3.0
"""Seconds of training on the first rung at least: what a trial takes beside it."""

MOST_STARTS = 5
"""Plans that the plan of a new point starts from, one after another: whoever replays it has to train them all."""

BestOf = Callable[[Sequence[Result], int], Sequence[Result]]
"""So many of some results, the best first."""


class Training:
    """The rungs of a search.

    Args:
        landscapes: By architecture.
        plan_of: Says how much a point is trained in full.
        epoch_s: Seconds of an epoch of the original.
        inherits: False to train each model from the beginning and in full.

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020.
    """

    def __init__(
        self, landscapes: Mapping[str, Landscape], plan_of: PlanOf, epoch_s: float, *, inherits: bool = True
    ) -> None:
        self._landscapes, self._epoch_s, self._inherits = landscapes, epoch_s, inherits
        self.full = {name: _full_epochs(landscape, plan_of) for name, landscape in landscapes.items()}
        """Epochs of a model that is trained in full, by architecture."""

    def begins_with(self, results: Results) -> list[Result]:
        """Models whose weights others may start from."""
        return results.trained if self._inherits else []

    def free_epochs(self, architecture: str, point: Array, *, before: float, own: int) -> float:
        """Epochs with free values, whose weights others may start from.

        Args:
            architecture: Of the model.
            point: Its options (sites,).
            before: Epochs of the weights that it began with.
            own: Epochs of its own recovery.
        """
        if not self._is_rebuilt(architecture, point):  # it goes on with held values
            return 0.0
        held = bool(is_held(self._landscapes[architecture], point[None])[0])
        return before + split_epochs(own, is_rebuilt=True, is_held=held)[0]

    def epochs_needed(self, architecture: str, points: Array) -> Array:
        """Epochs of points in full: none for those that lose nothing that training brings back (points,)."""
        landscape = self._landscapes[architecture]
        epochs = np.full(len(points), float(self.full[architecture]))
        if architecture == ORIGINAL:
            epochs[landscape.one_hot(points) @ landscape.recovers == 0] = 0.0
        return epochs

    def first_rung(
        self, name: str, points: Array, sources: Sequence[str], results: Results, damage: Array
    ) -> Candidates:
        """Points with the training of the first rung, from their nearest relatives.

        Args:
            name: Of the architecture.
            points: Options (points, sites).
            sources: What proposed each.
            results: Whose weights they may start from.
            damage: Divergence by change.
        """
        landscape, full = self._landscapes[name], float(self.full[name])
        relatives = [
            Relative(result.number, result.point, result.free)
            for result in self.begins_with(results)
            if result.architecture == name and result.free and result.starts < MOST_STARTS
        ]
        trains = self.epochs_needed(name, points) > 0
        starts, before = nearest(landscape, points, relatives, damage)
        starts, before = np.where(trains, starts, 0), np.where(trains, before, 0.0)
        held = is_held(landscape, points)
        trained = {0: b"", **{one.number: one.point[landscape.early].tobytes() for one in relatives}}
        done = np.array(
            [
                start > 0 and trained[start] == early.tobytes()
                for start, early in zip(starts.tolist(), points[:, landscape.early], strict=True)
            ],
            np.bool_,
        )
        least = self._first_epochs(name)
        first = np.where(held, min(int(full), max(2, least)), least)  # free epochs and held ones
        own = np.where(trains & ~(done & ~held), first, 0)
        total = np.where(own > 0, np.maximum(full, before + own), before)
        return Candidates(name, points, sources, starts, np.zeros(len(points), np.int64), before, own, total)

    def promotions(
        self, results: Results, best_of: BestOf, *, longest: bool = False, everyone: bool = False
    ) -> Iterator[Candidates]:
        """More training for the best of each rung, one model each.

        Args:
            results: All of them.
            best_of: Chooses the best of a rung.
            longest: True to train beyond what a model is given in full.
            everyone: True for more training of all models whose weights are kept.
        """
        by_rung: dict[int, dict[int, Candidates]] = {}
        longest_trained = self._longest_trained(results)
        known = {result.number for result in self.begins_with(results)}
        heirs = {result.number for result in results.front if result.start in known}
        for number in sorted(known | heirs):
            result = results.by_number[number]
            more = self._promotion(result, longest_trained, longest=longest)
            if more is not None:
                by_rung.setdefault(self._rung(result), {})[number] = more
        for _, rung in sorted(by_rung.items()):
            count = len(rung) if everyone else math.ceil(len(rung) / ETA)
            for result in best_of([results.by_number[number] for number in rung], count):
                yield rung[result.number]

    def _promotion(
        self, result: Result, longest_trained: Mapping[tuple[str, bytes], Result], *, longest: bool
    ) -> Candidates | None:
        """More training of a model, from the weights of the longest training of its kind; None if it had all there is.

        Values alone that are held to what a plan says go on where they are.
        """
        full = self.full[result.architecture]
        total = min(ETA * math.ceil(result.epochs), full * (ETA if longest else 1))
        if total <= result.epochs:
            return None
        begins, before = result, result.epochs
        if self._is_rebuilt(result.architecture, result.point):
            begins = longest_trained[self._trained_weights(result)]
            before = begins.free
        own = max(0, total - math.floor(before))
        if not own and bool(is_held(self._landscapes[result.architecture], result.point[None])[0]):
            own = 1
        return Candidates(
            result.architecture,
            result.point[None],
            ["promotion"],
            np.array([begins.number if before else 0]),
            np.array([result.number]),
            np.array([before]),
            np.array([own]),
            np.array([max(before + own, float(full))]),
        )

    def _longest_trained(self, results: Results) -> dict[tuple[str, bytes], Result]:
        """Of the models whose weights others may start from, the one of each kind that was trained longest."""
        found: dict[tuple[str, bytes], Result] = {}
        for result in sorted(self.begins_with(results), key=lambda one: (one.free, -one.number)):
            found[self._trained_weights(result)] = result
        return found

    def _is_rebuilt(self, architecture: str, point: Array) -> bool:
        """True if a model has weights that training repairs before their values are restricted."""
        return architecture != ORIGINAL or bool(point[self._landscapes[architecture].early].any())

    def _trained_weights(self, result: Result) -> tuple[str, bytes]:
        """The same for models that have the same trained weights but for restricted values."""
        landscape = self._landscapes[result.architecture]
        return result.architecture, result.point[landscape.early].tobytes()

    def _rung(self, result: Result) -> int:
        """The rung that the training of a model has reached, from 0."""
        first = self._first_epochs(result.architecture)
        return math.floor(math.log(max(1.0, result.epochs / max(1, first)), ETA) + 1e-9)

    def _first_epochs(self, architecture: str) -> int:
        """Epochs of a model on the first rung."""
        full = self.full[architecture]
        first = max(full / ETA ** (RUNGS - 1), WORTHWHILE_S / self._epoch_s)
        return min(full, max(1, round(first))) if self._inherits else full


def _full_epochs(landscape: Landscape, plan_of: PlanOf) -> int:
    """Epochs of a model that is trained in full."""
    if landscape.architecture != ORIGINAL:
        return plan_of({ARCHITECTURE: landscape.architecture}).recovery.epochs
    for (site, option), needs in zip(landscape.changes, landscape.recovers, strict=True):
        if needs:
            return plan_of(landscape.sites[site].options[option]).recovery.epochs
    return 0


def best_by_volume(
    some: Sequence[Result], count: int, results: Results, axes_of: Callable[[Result], Array]
) -> list[Result]:
    """So many of some results, by non-domination rank, within a rank by what each adds to the volume of the others.

    Args:
        some: Of which.
        count: How many.
        results: All that there are.
        axes_of: The costs of a result by objective, each in [0, 1] for what is worth anything (objectives,).
    """
    left = list(some)
    ranked: list[Result] = []
    while left and len(ranked) < count:
        best = results.front_of(left)
        adds = exclusive_volumes(np.array([axes_of(result) for result in best]))
        ranked += [best[row] for row in np.argsort(-adds, kind="stable")]
        chosen = {result.number for result in best}
        left = [result for result in left if result.number not in chosen]
    return ranked[:count]
