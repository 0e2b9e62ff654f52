"""Nothing of a trial outlives it."""

from __future__ import annotations

import gc
import random
import weakref
from pathlib import Path

from torch import nn

from autocompress.errors import InfeasiblePlan
from autocompress.methods import METHODS
from autocompress.pipeline import Workbench, build, finish, lower, settle, survey_architectures
from autocompress.plan import Plan, Scalar
from autocompress.planner import planner
from autocompress.space import Choice, Float, Knob, MethodSpace, RecoverySpace, SearchSpace, neutral
from tests.conftest import PROFILE, SPECIMENS, bench_of

TRIALS = 200
WARM = 20
PAGE_BYTES = 4096
SLACK_BYTES = 20 * 2**20
"""What resident memory may gain from the 20th trial to the last, for caches and holes: 110 kB a trial. One copy of the
model with its two graphs and sessions takes more."""


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def varied_plans(bench: Workbench) -> list[Plan]:
    """As many plans as trials, each with about half of all methods on half of the layers."""
    space = SearchSpace(
        "all", methods=dict.fromkeys(METHODS, MethodSpace()), recovery=RecoverySpace(epochs=0, student_epochs=0)
    )
    plan = planner(space, survey_architectures(bench, space)[0], PROFILE)
    dice = random.Random(0)

    def suggest(methods: set[str], name: str, knob: Knob) -> Scalar:
        if name.split("/")[1] not in methods or dice.random() < 0.5:
            return neutral(knob)
        if isinstance(knob, Choice):
            return dice.choice(knob.options)
        return dice.uniform(knob.low, knob.high) if isinstance(knob, Float) else dice.randint(knob.low, knob.high)

    chosen = [set(dice.sample(sorted(METHODS), dice.randint(1, len(METHODS)))) for _ in range(TRIALS)]
    return [plan(lambda name, knob, methods=methods: suggest(methods, name, knob)) for methods in chosen]


def carry_out(bench: Workbench, plan: Plan, models: list[weakref.ref[nn.Module]]) -> bool:
    """Go through the pipeline's steps; every model on the way is added to `models`. False if a method refuses."""
    try:
        built = build(bench, plan, 0)
        settled = settle(bench, built, plan, 0)
        finished = finish(settled, plan)
        models += map(weakref.ref, {built, settled, finished})
        lower(finished, plan, bench.context)
    except InfeasiblePlan:
        return False
    return True


def test_two_hundred_trials_in_one_process_leave_nothing_behind(tmp_path: Path) -> None:
    bench, models = bench_of(SPECIMENS["depthwise"], tmp_path), list[weakref.ref[nn.Module]]()
    done, warm = 0, 0
    for number, plan in enumerate(varied_plans(bench)):
        done += carry_out(bench, plan, models)
        if number % WARM == WARM - 1:
            gc.collect()
            assert not [model for model in models if model() is not None], f"trial {number} keeps a model alive"
            warm = warm or resident_bytes()
    assert done >= 0.8 * TRIALS
    assert resident_bytes() - warm <= SLACK_BYTES
