"""Every shipped search space is searched, on a model that it is made for, for as long as its first plans take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import autocompress
from autocompress.data import Array
from autocompress.plan import ORIGINAL
from autocompress.planner import architectures, check_space
from autocompress.run_directory import RunDirectory
from autocompress.space import load_space
from tests.conftest import AttentionNet
from tests.tasks import stripes

FOLDER = Path(__file__).parents[2] / "search_spaces"
SPACES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
EPOCHS = {"epochs": 1, "student_epochs": 1}


def sequences(count: int, seed: int) -> tuple[Array, Array]:
    """Noise (count, 6, 8) and the quarter of the features in which most of it lies."""
    values = np.random.default_rng(seed).normal(size=(count, 6, 8)).astype(np.float32)
    return values, np.square(values).sum(axis=1).reshape(count, 4, 2).sum(axis=2).argmax(axis=1)


def attention_task() -> autocompress.Task:
    """A small transformer with random weights; what it says does not matter here."""
    torch.manual_seed(0)
    return autocompress.Task(
        name="attention", model=AttentionNet().eval(), train=sequences(64, 0), validation=sequences(32, 1)
    )


@pytest.mark.parametrize("name", SPACES)
def test_the_first_plans_of_a_shipped_space_become_models(name: str, tmp_path: Path) -> None:
    task = attention_task() if name == "transformer" else stripes.task
    space = load_space(name)
    space = replace(space, recovery=replace(space.recovery, **EPOCHS))  # type: ignore[arg-type]
    check_space(space, architectures(space, task.student_variants))
    run = autocompress.search(
        task, space=space, trials=3, hardware="fake", executor="inline", workers=1, output=tmp_path / "run"
    )
    records = RunDirectory(run.path).records()
    assert len(records) == 4, "with the baseline"
    assert all(record.status in ("complete", "screened") for record in records), [record.reason for record in records]
    assert all(record.plan.steps or record.plan.architecture != ORIGINAL for record in records[1:])
    assert len(run.front) >= 1


@pytest.mark.parametrize("name", SPACES)
def test_a_shipped_space_says_what_it_is(name: str) -> None:
    assert load_space(name).description
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")
    assert f"`{name}`" in (FOLDER / "README.md").read_text()
