"""What every compression method promises, on every kind of model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
import torch

from autocompress.data import Array
from autocompress.errors import InfeasiblePlan
from autocompress.formats.onnx_export import export
from autocompress.formats.onnx_runtime import predictor
from autocompress.graph.inspect import layer_view
from autocompress.graph.running import output_shapes
from autocompress.graph.view import LayerView
from autocompress.methods import METHODS, CompressionMethod, Context
from autocompress.plan import Plan, Scalar, Settings, Stage, Step
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, Knob, MethodSpace, neutral
from tests.conftest import PROFILE, SPECIMENS, Specimen, context_of

VIEWS = {name: layer_view(specimen.model(), specimen.examples) for name, specimen in SPECIMENS.items()}


def last(_: str, knob: Knob) -> Scalar:
    return knob.options[-1] if isinstance(knob, Choice) else knob.high


def propose(method: CompressionMethod, view: LayerView, suggest: Callable[[str, Knob], Scalar] = last) -> Settings:
    return method.propose(view, suggest, MethodSpace(), PROFILE)


def single_settings(method: CompressionMethod, view: LayerView) -> Iterator[Settings]:
    """Every answer but the neutral one to every knob, alone."""
    knobs: dict[str, Knob] = {}
    propose(method, view, lambda name, knob: knobs.setdefault(name, knob) and neutral(knob))
    for wanted, knob in knobs.items():
        assert isinstance(knob, Choice)
        for value in knob.options[1:]:
            yield propose(
                method,
                view,
                lambda name, knob, wanted=wanted, value=value: value if name == wanted else neutral(knob),
            )


CASES = [(method, name) for method in METHODS for name in SPECIMENS if propose(METHODS[method](), VIEWS[name])]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[CompressionMethod, Specimen, Settings, Context]:
    """A method, a model it can be applied to, its strongest settings, and the context."""
    method, specimen = METHODS[request.param[0]](), SPECIMENS[request.param[1]]
    return method, specimen, propose(method, VIEWS[request.param[1]]), context_of(specimen, PROFILE)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def run(graph: onnx.ModelProto, inputs: Array) -> Array:
    return predictor(graph)((inputs,))


def test_each_method_has_a_model_that_it_suits() -> None:
    assert {method for method, _ in CASES} == set(METHODS)


def test_the_input_model_is_untouched(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    method, specimen, settings, context = case
    model = specimen.model().train()
    next(model.parameters()).requires_grad_(False)
    before = weights(model)
    method(model, settings, context)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not next(model.parameters()).requires_grad
    assert all(module.training for module in model.modules())


def test_output_shapes_are_kept_for_any_batch(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    method, specimen, settings, context = case
    changed = method(specimen.model(), settings, context)
    for count in (1, 3):
        inputs = (specimen.samples(count),)
        assert output_shapes(changed, inputs) == output_shapes(specimen.model(), inputs)


def test_gradients_reach_every_parameter(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    method, specimen, settings, context = case
    changed = method(specimen.model(), settings, context).train()
    changed(torch.from_numpy(specimen.samples(4))).square().sum().backward()
    assert all(p.is_leaf and p.grad is not None and p.grad.isfinite().all() for p in changed.parameters())


def test_a_frozen_parameter_stays_frozen(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    method, specimen, settings, context = case
    model = specimen.model()
    frozen, parameter = next(iter(model.named_parameters()))
    parameter.requires_grad_(False)
    changed = dict(method(model, settings, context).named_parameters())
    assert [name for name, parameter in changed.items() if not parameter.requires_grad] == [frozen]


def test_every_setting_changes_the_model_or_the_graph(
    case: tuple[CompressionMethod, Specimen, Settings, Context],
) -> None:
    method, specimen, settings, context = case
    plain = export(specimen.model(), specimen.examples)
    seen = {run(plain, specimen.samples(8)).tobytes()}
    alone = list(single_settings(method, layer_view(specimen.model(), specimen.examples)))
    assert len(alone) >= len(settings)
    for single in alone:
        model = method.finalize(method(specimen.model(), single, context))
        graph = method.lower(export(model, specimen.examples), single, context)
        outputs = run(graph, specimen.samples(8)).tobytes()
        assert outputs not in seen, f"{single} gives the same as another setting or none"
        seen.add(outputs)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("settings", [{}, {"no.such.layer": {}}, {"fc": {"no_such_parameter": 1}}, {"fc": {}}])
def test_settings_that_make_no_sense_are_refused(method: str, settings: Settings, profile: HardwareProfile) -> None:
    specimen = SPECIMENS["residual"]
    with pytest.raises(InfeasiblePlan, match=method):
        METHODS[method]()(specimen.model(), settings, context_of(specimen, profile))


def test_the_export_agrees_with_onnx_runtime(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    method, specimen, settings, context = case
    model = method.finalize(method(specimen.model(), settings, context))
    inputs = specimen.samples(64)
    with torch.no_grad():
        wanted = model(torch.from_numpy(inputs)).numpy()
    plain = export(model, specimen.examples)
    got = run(plain, inputs)
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()
    lowered = run(method.lower(plain, settings, context), inputs)
    assert np.abs(lowered - wanted).max() <= 0.1 * np.abs(wanted).max()
    assert (lowered.argmax(1) == wanted.argmax(1)).mean() >= 0.9


def test_lowering_leaves_the_given_graph_alone(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    method, specimen, settings, context = case
    graph = export(method(specimen.model(), settings, context), specimen.examples)
    before = copy.deepcopy(graph)
    method.lower(graph, settings, context)
    assert graph == before


def test_settings_survive_json(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    method, _, settings, _ = case
    plan = Plan(steps=(Step(method.name, settings),))
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["steps"][0]["settings"] == settings


def test_the_same_seed_gives_the_same_result(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    method, specimen, settings, context = case
    first, second = (method(specimen.model(), settings, context) for _ in range(2))
    assert weights(first).keys() == weights(second).keys()
    assert all(torch.equal(weights(first)[name], tensor) for name, tensor in weights(second).items())
    graphs = [method.lower(export(model, specimen.examples), settings, context) for model in (first, second)]
    assert graphs[0].SerializeToString(deterministic=True) == graphs[1].SerializeToString(deterministic=True)


def test_neutral_answers_give_no_settings(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    method, specimen, _, _ = case
    view = layer_view(specimen.model(), specimen.examples)
    assert propose(method, view, lambda _, knob: neutral(knob)) == {}


def test_knobs_are_paths_of_method_layer_and_parameter(
    case: tuple[CompressionMethod, Specimen, Settings, Context],
) -> None:
    method, specimen, _, _ = case
    asked: list[str] = []
    propose(
        method,
        layer_view(specimen.model(), specimen.examples),
        lambda name, knob: asked.append(name) or last(name, knob),
    )
    assert asked
    assert len(set(asked)) == len(asked)
    for name in asked:
        first, layer, parameter = name.split("/")
        assert first == method.name
        assert parameter in method.parameters
        assert layer in dict(specimen.model().named_modules())


def test_layers_that_a_space_excludes_are_left_alone(
    case: tuple[CompressionMethod, Specimen, Settings, Context],
) -> None:
    method, specimen, _, _ = case
    view = layer_view(specimen.model(), specimen.examples)
    assert method.propose(view, last, MethodSpace(exclude=("*",)), PROFILE) == {}


def test_methods_act_from_structure_to_numerics() -> None:
    assert METHODS["channel_pruning"].stage == Stage.STRUCTURE
    assert METHODS["quantization"].stage == Stage.NUMERICS
