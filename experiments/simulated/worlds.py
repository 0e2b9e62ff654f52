"""Made-up networks, and what compression does to them, drawn anew for each: a search in one takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from autocompress.data import Array
from autocompress.landscapes import landscape
from autocompress.objective import make_objectives
from autocompress.plan import ORIGINAL, Plan
from autocompress.planner import planner, policy_plans, resolve_epochs
from autocompress.probe import Probe, Sensitivity
from autocompress.profile import HardwareProfile
from autocompress.record import Proposal, Record, Trial
from autocompress.space import load_space
from autocompress.strategies import Problem
from experiments.search_efficiency.asking import network

PROFILE = HardwareProfile("made up", channel_multiple=16, kernels={"conv": ("int8",), "linear": ("int8",)})
LAYERS, EPOCHS, EPOCH_S = 18, 15, 24.0
FIXED_S, LOOK_S = 3.3, 1.1
"""Seconds of a trial beside its training, and of looking at a change."""

ACCURACY, LATENCY_MS, SIZE_BYTES = 0.9, 1.0, 1e6
"""Of the baseline."""

HARM = {"layer_drop": 0.25, "channel_pruning": 0.3, "low_rank": 0.15, "sparsity": 0.06, "quantization": 0.03}
"""Divergence that a change causes as a rule that takes all of a middling layer, by method."""

SPREAD, UNSEEN = 0.8, 0.6
"""Standard deviations of the logarithms of a change's harm, and of what the table does not see of it."""

LEVEL, CURVE, POWER = 40.0, 0.8, 0.9
"""Points lost for a divergence of 1, how they grow with it, and the power of training by which they go."""

SMALLNESS, SMALLNESS_CURVE = 3.0, 2.5
"""What a model loses for good that all is taken from, and how that grows."""

HELD_PACE = 1.4
"""How much longer an epoch takes with weights of few bits or with zeros."""

INHERITED = 0.7
"""Share of earlier training that helps a model which was changed since."""

TRAINING_NOISE, SCORE_NOISE = 0.3, 0.1
"""Standard deviations in points of what chance does to a training, and to each score."""


class World:
    """One made-up network.

    Args:
        seed: For all that is drawn.
        journal: Where a strategy keeps its study.
        budget_s: Of a search.
        workers: Trials at the same time.
    """

    def __init__(self, seed: int, journal: Path, *, budget_s: float, workers: int) -> None:
        space = replace(load_space("joint"), widths=(), depths=(), students=False)
        space, view = resolve_epochs(space, EPOCHS), network(LAYERS)
        plan = planner(space, {ORIGINAL: view}, PROFILE)
        self.land = landscape(space, plan, view, PROFILE)
        self.problem = Problem(
            plan=plan,
            policies=policy_plans(space, plan),
            objectives=make_objectives((), "accuracy", "maximize"),
            constraints=(),
            seed=seed,
            journal=journal,
            landscapes={ORIGINAL: self.land},
            epoch_s=EPOCH_S,
            budget_s=budget_s,
            workers=workers,
        )
        self._seed, rng = seed, np.random.default_rng(seed)
        self._taken = self._takes(self.land.single_changes)
        rule = np.array([HARM[self.land.sites[site].method] for site, _ in self.land.changes])
        size = LAYERS * np.maximum(self._taken, 1e-3)
        self._harm = rule * size * np.exp(SPREAD * rng.standard_normal(len(size)))
        self._seen = self._harm * np.exp(UNSEEN * rng.standard_normal(len(size)))
        self._numbers = {point.tobytes(): row for row, point in enumerate(self.land.single_changes)}

    @property
    def baseline(self) -> Record:
        """The record of the network as it was."""
        return Record(Trial(0, Plan(), proposal=Proposal("baseline")), "complete", values=self._values(0.0, 1.0, 1.0))

    def seconds(self, plan: Plan) -> float:
        """How long a trial of a plan takes."""
        if not plan.recovery.epochs:
            return FIXED_S
        point = self.land.realized(plan)
        share = 0.1 + 0.9 * float(self.land.work(point[None]).macs.sum()) / sum(self.land.macs)
        held = any(float(setting.get("bits", 8)) < 8 for step in plan.steps for setting in step.settings.values())
        held |= any(step.method == "sparsity" for step in plan.steps)
        return FIXED_S + plan.recovery.epochs * EPOCH_S * share * (HELD_PACE if held else 1.0)

    def look(self, probe: Probe) -> Sensitivity:
        """The entry of the table for a change."""
        point = self.land.realized(probe.plan)
        latency, size = self._costs(point)
        row = self._numbers[point.tobytes()]
        values = {"latency_ratio": latency, "size_bytes": SIZE_BYTES * size}
        return Sensitivity(probe, divergence=float(self._seen[row]), values=values, seconds=LOOK_S)

    def run(self, trial: Trial) -> Record:
        """The record of a trial, its score by chance above or below `loss`."""
        point, lost = self.land.realized(trial.plan), self.loss(trial.plan)
        if trial.plan.total_epochs:
            structure = point[self.land.early].tobytes(), trial.plan.total_epochs
            lost += TRAINING_NOISE * self._chance(structure)
        lost += SCORE_NOISE * self._chance((trial.plan.digest,))
        latency, size = self._costs(point)
        recover_s = self.seconds(trial.plan) - FIXED_S
        seconds = {"build": FIXED_S} | ({"train": recover_s} if recover_s else {})
        return Record(trial, "complete", values=self._values(lost, latency, size), seconds=seconds)

    def loss(self, plan: Plan) -> float:
        """Points that the model of a plan loses in truth."""
        point = self.land.realized(plan)
        hot, recovers = self.land.one_hot(point[None])[0] > 0, self.land.recovers
        all_harm, lasting = float(self._harm[hot].sum()), float(self._harm[hot & ~recovers].sum())
        if not all_harm:
            return 0.0
        left = (1 + 15 * self._epochs(plan)) ** -POWER
        lost = LEVEL * all_harm ** (CURVE - 1) * (lasting + (all_harm - lasting) * left)
        small = (SMALLNESS * float(self._takes(point[None])[0])) ** SMALLNESS_CURVE
        return float(lost + (1 - left) * small)

    def _epochs(self, plan: Plan) -> float:
        """Epochs that count for the model of a plan."""
        if plan.start is None:
            return plan.recovery.epochs
        early = self.land.early
        is_same = np.array_equal(self.land.realized(plan)[early], self.land.realized(plan.start)[early])
        return plan.recovery.epochs + (1.0 if is_same else INHERITED) * self._epochs(plan.start)

    def _takes(self, points: Array) -> Array:
        """Mean share of the multiply-adds and of the weights that points take, by 8 bits a weight (points,)."""
        work = self.land.work(points)
        held = np.minimum(work.weights, work.stored_bytes).sum(axis=1)
        shares: Array = 1 - 0.5 * (work.macs.sum(axis=1) / sum(self.land.macs) + held / sum(self.land.weights))
        return np.maximum(shares, 0.0)

    def _costs(self, point: Array) -> tuple[float, float]:
        """Latency and size as shares of the baseline's."""
        work = self.land.work(point[None])
        pace = np.where(work.precision[0] > 0, 0.4, 1.0)
        latency = 0.05 + 0.95 * float((work.macs[0] * pace).sum()) / sum(self.land.macs)
        return latency, 0.02 + 0.98 * float(work.stored_bytes.sum()) / (4 * sum(self.land.weights))

    def _values(self, lost: float, latency: float, size: float) -> Mapping[str, float]:
        costs = {"latency_ms": LATENCY_MS * latency, "latency_ratio": latency, "size_bytes": SIZE_BYTES * size}
        return {"accuracy": ACCURACY - lost / 100, **costs, "peak_memory_bytes": 1e6}

    def _chance(self, key: tuple[object, ...]) -> float:
        """A standard normal number that is the same for the same key."""
        digits = np.frombuffer(repr((self._seed, *key)).encode(), np.uint8)
        return float(np.random.default_rng(digits).standard_normal())
