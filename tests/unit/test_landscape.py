from __future__ import annotations

import numpy as np
import pytest

from autocompress.graph.inspect import layer_view, used_layers
from autocompress.graph.view import LayerView
from autocompress.landscape import Landscape
from autocompress.landscapes import landscape, values
from autocompress.methods import METHODS
from autocompress.plan import ORIGINAL
from autocompress.planner import Planner, planner, resolve_epochs
from autocompress.profile import HardwareProfile
from autocompress.space import Float, Int, MethodSpace, SearchSpace, load_space, neutral
from tests.conftest import context_of
from tests.unit.test_layer_drop import DEEP

PROFILE = HardwareProfile("test", channel_multiple=4, kernels={"conv": ("int8",), "linear": ("int8", "dynamic_int8")})
NETWORK = DEEP


@pytest.fixture(scope="module")
def view() -> LayerView:
    return layer_view(NETWORK.model(), NETWORK.examples)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return resolve_epochs(load_space("joint"), 3)


@pytest.fixture(scope="module")
def plan(view: LayerView, space: SearchSpace) -> Planner:
    return planner(space, {ORIGINAL: view}, PROFILE)


@pytest.fixture(scope="module")
def land(view: LayerView, space: SearchSpace, plan: Planner) -> Landscape:
    return landscape(space, plan, view, PROFILE)


def drawn(land: Landscape, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = [[rng.integers(size) if rng.random() < 0.3 else 0 for size in land.sizes] for _ in range(count)]
    return land.canonical(np.array(rows, np.int64))


def test_a_landscape_names_every_method_that_can_act(land: Landscape, space: SearchSpace) -> None:
    assert set(land.methods) == set(space.methods)
    assert all(site.options[0] == {} and len(site.options) > 1 for site in land.sites)


def test_points_survive_the_way_through_answers(land: Landscape) -> None:
    for point in drawn(land, 50):
        assert (land.point(land.answers(point)) == point).all()


def test_equal_plans_have_equal_points(land: Landscape, plan: Planner) -> None:
    points = drawn(land, 60)
    digests = {}
    for point in points:
        answers = land.answers(point)
        found = plan(lambda name, knob, given=answers: given.get(name, neutral(knob)))
        assert digests.setdefault(point.tobytes(), found.digest) == found.digest


def test_work_is_that_of_the_compressed_model(land: Landscape, plan: Planner) -> None:
    """Pruned, dropped and split layers have the multiply-adds that the landscape says."""
    for point in drawn(land, 12, seed=3):
        answers = land.answers(point)
        found = plan(lambda name, knob, given=answers: given.get(name, neutral(knob)))
        model = NETWORK.model()
        for step in found.steps:
            if METHODS[step.method].stage < 4:
                model = METHODS[step.method]()(model, step.settings, context_of(NETWORK, PROFILE))
        real = sum(layer.macs for layer in used_layers(model, NETWORK.examples))
        assert land.work(point[None]).macs.sum() == pytest.approx(real, rel=0.1)


def test_a_neutral_point_is_the_model_as_it_was(land: Landscape, view: LayerView) -> None:
    work = land.work(land.neutral()[None])
    assert work.macs.sum() == view.macs
    assert work.stored_bytes.sum() == 4 * view.parameters
    assert (work.precision == 0).all()


def test_sites_beneath_a_dropped_block_are_void(land: Landscape) -> None:
    block = next(number for number, site in enumerate(land.sites) if site.method == "layer_drop")
    inner = land.effects[block][1].layers[0]
    beneath = [
        number for number, options in enumerate(land.effects) if number != block and options[1].layers == (inner,)
    ]
    assert beneath
    point = land.neutral()
    point[beneath] = 1
    point[block] = 1
    found = land.canonical(point[None])[0]
    assert found[block] == 1
    assert (found[beneath] == 0).all()


def test_what_needs_no_training_is_known(land: Landscape) -> None:
    for change, needs in zip(land.changes, land.recovers, strict=True):
        site, option = land.sites[change[0]], land.sites[change[0]].options[change[1]]
        bits = next((value for name, value in option.items() if name.endswith("/bits")), 8)
        assert needs == (site.method != "quantization" or bits != 8)


def test_further_parameters_are_combined(view: LayerView) -> None:
    parameters = {"precision": ("fp32", "int8"), "bits": (8, 4), "scales": ("observed", "learned")}
    space = resolve_epochs(SearchSpace("few", methods={"quantization": MethodSpace(parameters)}), 1)
    plan = planner(space, {ORIGINAL: view}, PROFILE)
    assert {len(site.options) for site in landscape(space, plan, view, PROFILE).sites} == {5}


def test_ranges_are_tried_at_some_values() -> None:
    assert values(Int(1, 9)) == (3, 5, 7, 9)
    assert values(Float(0.0, 1.0)) == (0.25, 0.5, 0.75, 1.0)
