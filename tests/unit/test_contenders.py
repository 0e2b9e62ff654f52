"""What the strategies are compared with in `experiments/search_efficiency`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autocompress.plan import Plan
from autocompress.record import Record, Trial
from autocompress.strategies import SearchStrategy
from experiments.search_efficiency.contenders import CONTENDERS
from experiments.simulated.worlds import World


def go(strategy: SearchStrategy, world: World, count: int) -> list[Record]:
    strategy.tell(world.baseline)
    records = []
    for _ in range(count):
        trial = strategy.ask()
        assert isinstance(trial, Trial)
        records.append(world.run(trial))
        strategy.tell(records[-1])
    return records


def test_local_search_stays_near_the_models_that_it_knows(tmp_path: Path) -> None:
    """By what half of its changes differ from the nearest model that was known; chance differs in most sites."""
    world = World(0, tmp_path / "study.journal", budget_s=3600.0, workers=1)
    records = go(CONTENDERS["uniform_local"].make(world.problem), world, 40)
    known = [world.land.realized(Plan())]
    apart = []
    for record in records:
        point = world.land.realized(record.plan)
        apart.append(min(int((point != other).sum()) for other in known))
        known.append(point)
    local = [count for count, one in zip(apart, records, strict=True) if one.trial.proposal.source != "policy"]
    assert len(local) > 20
    assert np.median(local) <= 3
