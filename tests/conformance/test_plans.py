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

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from torch import nn

from autocompress.data import Array
from autocompress.errors import InfeasiblePlan
from autocompress.formats.onnx_runtime import predictor
from autocompress.methods import METHODS
from autocompress.pipeline import Workbench, build, finish, lower, settle, survey_architectures
from autocompress.plan import Plan, Scalar, Stage
from autocompress.planner import Planner, planner
from autocompress.space import Choice, Float, Knob, MethodSpace, RecoverySpace, SearchSpace, neutral
from tests.conftest import PROFILE, SPECIMENS, bench_of

SAMPLES = 256
STEPS = 2
TORCH_STEPS = 30
FEASIBLE = 0.8
"""Share of random plans that must be carried out, so that the tests below are about something."""


SPACES = {"clustering": MethodSpace({"bits": (32, 3, 2)})}
"""The layers of these models have few weights, after pruning often fewer than a codebook of 8 bits has entries."""


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


def run(graph: ModelProto, inputs: tuple[Array, ...], *, literally: bool) -> Array:
    """The output of a graph, node by node as it is written, or on integer kernels where it describes them.

    ONNX Runtime also rounds the weights of float layers between integer ones, which no plan asks for, and to all 8
    bits, so that products saturate on processors that want 7. That is left out here; what ships has it.
    """
    options = onnxruntime.SessionOptions()
    if literally:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=None if literally else ["WeightBiasQuantization"],
    )
    names = [item.name for item in session.get_inputs()]
    return np.asarray(session.run(None, dict(zip(names, inputs, strict=True)))[0])


def steps_apart(wanted: Array, got: Array) -> float:
    """The error that 99 % of the outputs stay within, in steps of 1/255 of the range of the wanted ones."""
    step = max(float(wanted.max() - wanted.min()) / 255, 1e-12)
    return float(np.quantile(np.abs(wanted - got), 0.99, method="lower")) / step


def check_agreement(name: str, plan: Plan, model: nn.Module, plain: ModelProto, graph: ModelProto) -> None:
    specimen = SPECIMENS[name]
    onnx.checker.check_model(graph)
    inputs = specimen.samples(SAMPLES)
    wanted, exported, got = (
        specimen.outputs(model, SAMPLES).detach().numpy(),
        *(predictor(one)(inputs) for one in (plain, graph)),
    )
    size = max(float(np.abs(wanted).max()), 1e-12)
    assert np.abs(exported - wanted).max() <= 1e-4 * size
    if all(METHODS[step.method].stage < Stage.NUMERICS for step in plan.steps):
        assert np.abs(got - wanted).max() <= 1e-4 * size
        return
    rounded, integer = (run(graph, inputs, literally=literally) for literally in (True, False))
    assert steps_apart(rounded, integer) <= STEPS
    assert (rounded.argmax(1) == integer.argmax(1)).mean() >= 0.99
    assert steps_apart(wanted, got) <= TORCH_STEPS


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
    assert outcomes["done"] >= FEASIBLE * outcomes.total(), outcomes
