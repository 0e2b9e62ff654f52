"""What every compression method promises, on every kind of model."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import pytest
import torch

from autocompress.data import Array
from autocompress.errors import InfeasiblePlan
from autocompress.formats.onnx_export import export
from autocompress.formats.onnx_runtime import predictor
from autocompress.graph.inspect import layer_view, used_layers
from autocompress.graph.running import inputs_of, output_shapes
from autocompress.graph.view import LayerView
from autocompress.methods import METHODS, CompressionMethod, Context
from autocompress.plan import Plan, Scalar, Settings, Stage, Step
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, Int, Knob, MethodSpace, Suggest, neutral
from tests.conftest import PROFILE, SPECIMENS, Specimen, context_of

VIEWS = {name: layer_view(specimen.model(), specimen.examples) for name, specimen in SPECIMENS.items()}


def values(knob: Knob) -> tuple[Scalar, ...]:
    """What a knob may be answered, the neutral value first; of a range its ends and the middle."""
    if isinstance(knob, Choice):
        return knob.options
    middle = (knob.low + knob.high) / 2
    return knob.low, round(middle) if isinstance(knob, Int) else middle, knob.high


def last(_: str, knob: Knob) -> Scalar:
    return values(knob)[-1]


def propose(method: CompressionMethod, view: LayerView, suggest: Suggest = last) -> Settings:
    return method.propose(view, suggest, MethodSpace(), PROFILE)


def knobs(method: CompressionMethod, view: LayerView, given: Mapping[str, Scalar]) -> dict[str, Knob]:
    """The knobs that are asked, in their order, where some get answers and the others the neutral one."""
    asked: dict[str, Knob] = {}

    def suggest(name: str, knob: Knob) -> Scalar:
        asked[name] = knob
        return given.get(name, neutral(knob))

    propose(method, view, suggest)
    return asked


def series(method: CompressionMethod, view: LayerView) -> Iterator[list[Settings]]:
    """One layer changed in all ways that its first knob offers, then in all that a further knob does.

    Further knobs are asked depending on the first, with whose last value they go. At most five layers, spread over the
    model.
    """
    first: dict[str, str] = {}
    plain = knobs(method, view, {})
    for name in plain:
        first.setdefault(name.split("/")[1], name)
    for layer, name in list(first.items())[:: max(1, -(-len(first) // 5))]:
        yield [alone(method, view, {name: value}) for value in values(plain[name])[1:]]
        strongest = {name: values(plain[name])[-1]}
        for other, knob in knobs(method, view, strongest).items():
            if other.split("/")[1] == layer and other != name:
                yield [alone(method, view, strongest | {other: value}) for value in values(knob)]


def alone(method: CompressionMethod, view: LayerView, given: Mapping[str, Scalar]) -> Settings:
    return propose(method, view, lambda name, knob: given.get(name, neutral(knob)))


CASES = [(method, name) for method in METHODS for name in SPECIMENS if propose(METHODS[method](), VIEWS[name])]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[CompressionMethod, Specimen, Settings, Context]:
    """A method, a model it can be applied to, its strongest settings, and the context."""
    method, specimen = METHODS[request.param[0]](), SPECIMENS[request.param[1]]
    return method, specimen, propose(method, VIEWS[request.param[1]]), context_of(specimen, PROFILE)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def run(graph: onnx.ModelProto, inputs: tuple[Array, ...]) -> Array:
    return predictor(graph)(inputs)


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


def test_what_a_method_says_it_leaves_is_left(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    """Layers that are gone and the multiply-adds of those that are not, which searches reckon with."""
    method, specimen, settings, context = case
    name = next(name for name, other in SPECIMENS.items() if other is specimen)
    left = method.leaves(VIEWS[name], settings, PROFILE)
    real = used_layers(method(specimen.model(), settings, context), specimen.examples)
    names = {layer.name for layer in left.layers}
    assert all(any(f"{one.name}.".startswith(f"{kept}.") for kept in names) for one in real), "nothing else is left"
    assert sum(layer.macs for layer in left.layers) == pytest.approx(sum(layer.macs for layer in real), rel=0.15)
    assert all(0 <= layer.density <= 1 and 0 < layer.bits <= 32 for layer in left.layers)


def test_output_shapes_are_kept_for_any_batch(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    method, specimen, settings, context = case
    changed = method(specimen.model(), settings, context)
    for count in (1, 3):
        inputs = specimen.samples(count)
        assert output_shapes(changed, inputs) == output_shapes(specimen.model(), inputs)


def test_gradients_reach_every_parameter_that_is_not_held_fast(
    case: tuple[CompressionMethod, Specimen, Settings, Context],
) -> None:
    method, specimen, settings, context = case
    changed = method(specimen.model(), settings, context).train()
    specimen.outputs(changed, 4).square().sum().backward()
    trained = [parameter for parameter in changed.parameters() if parameter.requires_grad]
    assert trained
    assert all(p.is_leaf and p.grad is not None and p.grad.isfinite().all() for p in trained)
    fast = [name for name, parameter in changed.named_parameters() if not parameter.requires_grad]
    assert all(".parametrizations." in name for name in fast), "only constraints hold a weight fast"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_step_on_a_gpu_is_that_on_the_processor(
    case: tuple[CompressionMethod, Specimen, Settings, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, specimen, settings, context = case
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    here = method(specimen.model(), settings, context).train()
    for module in here.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    there = copy.deepcopy(here).to("cuda")
    for model in (here, there):
        model(*inputs_of(model, specimen.samples(4))).square().sum().backward()
    gradients = [
        torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]) for model in (here, there)
    ]
    # a value that lies between two steps of a grid may be rounded either way
    tolerance = 0.05 if method.name == "quantization" else 1e-3
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < tolerance


def test_a_frozen_layer_stays_frozen(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    method, specimen, settings, context = case
    model = specimen.model()
    layer = used_layers(model, specimen.examples)[0].name
    model.get_submodule(layer).requires_grad_(False)
    changed = method(model, settings, context)
    weights = {
        name: parameter
        for name, parameter in changed.get_submodule(layer).named_parameters()
        # a batch norm that was folded in leaves a bias to train; weight norm has two originals
        if name.endswith(("weight", "weight.original", "weight.original0", "weight.original1"))
    }
    assert weights
    assert not any(parameter.requires_grad for parameter in weights.values()), list(weights)


def test_every_setting_changes_the_model_or_the_graph(
    case: tuple[CompressionMethod, Specimen, Settings, Context],
) -> None:
    method, specimen, _, context = case
    untouched = run(export(specimen.model(), specimen.examples), specimen.samples(8)).tobytes()
    for settings in series(method, layer_view(specimen.model(), specimen.examples)):
        seen = {untouched}
        for one in settings:
            outputs = run(lowered(method, specimen.model(), one, context), specimen.samples(8)).tobytes()
            assert outputs not in seen, f"{one} gives the same as another setting or none"
            seen.add(outputs)


def lowered(method: CompressionMethod, model: torch.nn.Module, settings: Settings, context: Context) -> onnx.ModelProto:
    """The graph of a model that a method alone has changed, held against its settings."""
    model = method.finalize(method(model, settings, context))
    method.verify(model, settings)
    return method.lower(export(model, context.examples), settings, context)


def some_setting(method: str) -> Mapping[str, Scalar]:
    """What the method would do to the first layer of the first model that it suits."""
    name = next(specimen for one, specimen in CASES if one == method)
    return next(iter(propose(METHODS[method](), VIEWS[name]).values()))


@pytest.mark.parametrize("name", list(SPECIMENS))
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_layer_that_is_not_proposed_is_changed_and_verified_or_refused(method: str, name: str) -> None:
    """Never silently nothing: whatever layer a setting is forced on, it acts, or the plan is infeasible."""
    specimen, setting = SPECIMENS[name], some_setting(method)
    context = context_of(specimen, PROFILE)
    untouched = run(export(specimen.model(), specimen.examples), specimen.samples(8))
    proposed = propose(METHODS[method](), VIEWS[name])
    for layer in (layer.name for layer in VIEWS[name].layers if layer.name not in proposed):
        try:
            graph = lowered(METHODS[method](), specimen.model(), {layer: setting}, context)
        except InfeasiblePlan as error:
            reason = str(error)
        else:
            assert not np.array_equal(run(graph, specimen.samples(8)), untouched), f"{layer}: nothing happened"
            continue
        assert reason.startswith(method), reason


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
        wanted = specimen.outputs(model, 64).numpy()
    plain = export(model, specimen.examples)
    got = run(plain, inputs)
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()
    changed = run(method.lower(plain, settings, context), inputs)
    assert np.abs(changed - wanted).max() <= 0.1 * np.abs(wanted).max()
    assert (changed.argmax(1) == wanted.argmax(1)).mean() >= 0.9


def test_lowering_leaves_the_given_graph_alone(case: tuple[CompressionMethod, Specimen, Settings, Context]) -> None:
    method, specimen, settings, context = case
    graph = export(method.finalize(method(specimen.model(), settings, context)), specimen.examples)
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
    graphs = [
        method.lower(export(method.finalize(model), specimen.examples), settings, context) for model in (first, second)
    ]
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
        assert layer.partition(":")[0] in dict(specimen.model().named_modules())


def test_layers_that_a_space_excludes_are_left_alone(
    case: tuple[CompressionMethod, Specimen, Settings, Context],
) -> None:
    method, specimen, _, _ = case
    view = layer_view(specimen.model(), specimen.examples)
    assert method.propose(view, last, MethodSpace(exclude=("*",)), PROFILE) == {}


def test_methods_act_from_structure_to_numerics() -> None:
    assert METHODS["channel_pruning"].stage == Stage.STRUCTURE
    assert METHODS["quantization"].stage == Stage.NUMERICS
