"""What plans of several methods promise, whatever the methods and the model.

A plan goes through the pipeline's own steps without training, and then:

- `onnx.checker` accepts the file, and the file gives outputs of the model's shape;
- the plain export gives what the finished torch model gives, to 1e-4 of its largest output;
- so does the file that ships if nothing in the plan changes the numbers it computes with (no step of `Stage.NUMERICS`);
- else the file, as ONNX Runtime optimizes it to integer kernels, gives in at least 99 % of its outputs what the
  rounding that it describes gives, to 2 steps of 1/255 of their range, and the same largest class in at least 99 %
  of the places. That rounding is carried out literally, on floats, by the same file with all optimizations off: it is
  the fake quantization of weights and activations with the scales that ship;
- and it stays near the finished torch model, whose activations and 8-bit weights are not rounded: an error of at most
  `TORCH_STEPS` such steps in 99 % of the outputs. This catches wrong scales and ranges; what rounding costs is for
  the score to say.

A plan that a method refuses must raise `InfeasiblePlan` and name the method.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from torch import nn

from autocompress.errors import InfeasiblePlan
from autocompress.formats.onnx_runtime import ROUNDS_FLOAT_LAYERS, predictor
from autocompress.formats.parity import Parity, compare, torch_predictor
from autocompress.methods import METHODS
from autocompress.pipeline import Workbench, build, finish, lower, settle, survey_architectures
from autocompress.plan import Plan, Scalar, Stage
from autocompress.planner import Planner, planner
from autocompress.space import Choice, Float, Knob, MethodSpace, RecoverySpace, SearchSpace, neutral
from autocompress.task import Predict
from tests.conftest import PROFILE, SPECIMENS, bench_of

SAMPLES = 256
STEPS = 2
TORCH_STEPS = 30
FEASIBLE = 0.8
"""Share of random plans that must be carried out, so that the tests below are about something."""

CONTRADICTORY = {"tied": 0.6}
"""The same for models whose layers may be given settings that contradict each other."""


SPACES = {
    "channel_pruning": MethodSpace(
        {"pruning_ratio": (0, 0.25, 0.5), "importance": ("l2", "l1", "bn_scale", "taylor", "activation")}
    ),
    "low_rank": MethodSpace(
        {
            "rank_ratio": (1, 0.5, 0.25),
            "decomposition": ("svd", "whitened_svd", "nmf", "channel", "spatial", "tucker"),
        }
    ),
    "sparsity": MethodSpace(
        {
            "pattern": ("unstructured", "2:4", "1:2"),
            "sparsity": (0, 0.5, 0.8),
            "threshold": (0, 0.5),
            "scope": ("global", "layer"),
            "schedule": ("gradual", "one_shot"),
        }
    ),
    "clustering": MethodSpace({"bits": (32, 3, 2), "integers": (False, True)}),
    "quantization": MethodSpace(
        {
            "precision": ("fp32", "int8", "dynamic_int8", "weight_only", "nbits", "fp16"),
            "bits": (8, 6, 4, 3, 2),
            "granularity": ("per_channel", "per_tensor"),
            "symmetric": (True, False),
            "calibration": ("minmax", "percentile", "entropy", "mse"),
            "scales": ("observed", "learned"),
        }
    ),
}
"""Everything that a setting may say, but for what the layers of these models are too small for: codebooks of more
bits, and blocks of other sizes than 32."""


def space_of(methods: Sequence[str]) -> SearchSpace:
    spaces = {method: SPACES.get(method, MethodSpace()) for method in methods}
    return SearchSpace("all", methods=spaces, recovery=RecoverySpace(epochs=0))


def bench_and_view(name: str, folder: Path) -> tuple[Workbench, Planner, tuple[str, ...]]:
    """A test model at the start of the pipeline, the planner of all methods for it, and the methods it suits."""
    bench = bench_of(SPECIMENS[name], folder)
    views, _ = survey_architectures(bench, space_of(list(METHODS)))
    plan = planner(space_of(list(METHODS)), views, PROFILE)
    alone = [planner(space_of([method]), views, PROFILE)(strongest).steps for method in METHODS]
    return bench, plan, tuple(steps[0].method for steps in alone if steps)


def strongest(_: str, knob: Knob) -> Scalar:
    return knob.options[-1] if isinstance(knob, Choice) else knob.high


def drawn(plan: Planner, methods: Sequence[str], seed: int) -> Plan:
    """A plan of some methods, each of which changes about half of the layers that it can change."""
    dice = random.Random(seed)

    def suggest(name: str, knob: Knob) -> Scalar:
        if name.split("/")[1] not in methods or dice.random() < 0.4:
            return neutral(knob)
        if isinstance(knob, Choice):
            return dice.choice(knob.options)
        return dice.uniform(knob.low, knob.high) if isinstance(knob, Float) else dice.randint(knob.low, knob.high)

    for _ in range(50):
        made = plan(suggest)
        if {step.method for step in made.steps} == set(methods):
            return made
    pytest.fail(f"no plan with all of {', '.join(methods)} in 50 draws")


def carried_out(bench: Workbench, plan: Plan, seed: int) -> tuple[nn.Module, ModelProto, ModelProto]:
    """The finished torch model of a plan, its plain export, and the graph that ships."""
    context = replace(bench.context, seed=seed)
    model = finish(settle(bench, build(bench, plan, seed), plan, seed), plan)
    return model, *lower(model, plan, context)


def check_agreement(name: str, plan: Plan, model: nn.Module, plain: ModelProto, graph: ModelProto) -> None:
    onnx.checker.check_model(graph)
    inputs, original = SPECIMENS[name].samples(SAMPLES), torch_predictor(model)

    def apart(wanted: Predict, got: Predict) -> Parity:
        return compare(wanted, got, inputs, batch_size=SAMPLES)

    assert apart(original, predictor(plain)).relative_error <= 1e-4
    shipped = apart(original, predictor(graph))
    if all(METHODS[step.method].stage < Stage.NUMERICS for step in plan.steps):
        assert shipped.relative_error <= 1e-4
        return
    # float layers whose weights ONNX Runtime rounds, which no plan asks for, are in what ships but not in this
    kernels = apart(predictor(graph, optimized=False), predictor(graph, without=[ROUNDS_FLOAT_LAYERS]))
    assert kernels.steps <= STEPS
    assert kernels.agreement >= 0.99
    assert shipped.steps <= TORCH_STEPS


def outcome(name: str, bench: Workbench, plan: Plan, seed: int = 0) -> str:
    """`done` for a plan that was carried out and agrees, `refused` for one that a method refused and said so."""
    try:
        finished = carried_out(bench, plan, seed)
    except InfeasiblePlan as error:
        reason = str(error)
    else:
        check_agreement(name, plan, *finished)
        return "done"
    assert any(reason.startswith(step.method) for step in plan.steps), f"{reason!r} names no method"
    return "refused"


@pytest.mark.parametrize("name", list(SPECIMENS))
def test_any_two_methods_go_together(name: str, tmp_path: Path) -> None:
    bench, plan, methods = bench_and_view(name, tmp_path)
    for pair in combinations(methods, 2):
        outcomes = (outcome(name, bench, drawn(plan, pair, seed)) for seed in range(3))
        assert "done" in outcomes, f"{pair} never go together"


@pytest.mark.parametrize("name", list(SPECIMENS))
def test_any_three_or_more_methods_go_together(name: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    bench, plan, methods = bench_and_view(name, tmp_path)
    count = -(-pytestconfig.getoption("--plans") // len(SPECIMENS))
    outcomes: Counter[str] = Counter()
    groups = st.sets(st.sampled_from(methods), min_size=min(3, len(methods)))

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(groups, st.integers(0, 2**32 - 1))
    def try_one(chosen: set[str], seed: int) -> None:
        outcomes[outcome(name, bench, drawn(plan, sorted(chosen), seed), seed)] += 1

    try_one()
    assert outcomes["done"] >= CONTRADICTORY.get(name, FEASIBLE) * outcomes.total(), outcomes
