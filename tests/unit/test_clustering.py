"""Clustering: codebooks by K-means, what training keeps of them, what they keep of zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.data import Array
from autocompress.devices import resolve_profile
from autocompress.errors import InfeasiblePlan
from autocompress.formats.parity import torch_predictor
from autocompress.graph.codebooks import Codebook, cluster, codebook, count_values, kmeans, nearest
from autocompress.graph.constraints import constraints, free_weight, release
from autocompress.graph.inspect import layer_view, replace, used_layers
from autocompress.graph.masks import obeys_groups
from autocompress.methods.clustering import Clustering
from autocompress.methods.sparsity import Sparsity
from autocompress.pipeline import Workbench, run_baseline, run_trial
from autocompress.plan import Plan, Recovery, Scalar, Settings, Step
from autocompress.record import Trial
from autocompress.recovery import Lessons, recover
from autocompress.space import Choice, Knob, MethodSpace
from tests.conftest import PROFILE, SPECIMENS, context_of
from tests.tasks.stripes import task

SAMPLES = st.tuples(st.integers(1, 400), st.integers(0, 5), st.sampled_from(["normal", "cauchy", "rounded", "sparse"]))


def sample(count: int, seed: int, kind: str) -> Array:
    rng = np.random.default_rng(seed)
    values = rng.standard_cauchy(count) if kind == "cauchy" else rng.normal(size=count)
    values = values.round(1) if kind == "rounded" else values
    return (values * (rng.random(count) < 0.3) if kind == "sparse" else values).astype(np.float32)


def cost(values: Array, centroids: Array) -> float:
    return float(np.abs(values[:, None].astype(np.float64) - centroids).min(1).__pow__(2).sum())


def weight_of(model: nn.Module, name: str) -> Tensor:
    return model.get_submodule(name).get_parameter("weight").detach()


def clustered(settings: Settings, specimen: str = "residual") -> nn.Module:
    """The released model."""
    chosen, method = SPECIMENS[specimen], Clustering()
    model = method.finalize(method(chosen.model(), settings, context_of(chosen, PROFILE)))
    method.verify(model, settings)
    return model


@given(SAMPLES, st.integers(1, 6))
def test_kmeans_costs_no_more_than_an_even_grid(drawn: tuple[int, int, str], bits: int) -> None:
    values = sample(*drawn)
    centroids = kmeans(values, 2**bits)
    assert len(centroids) <= 2**bits
    assert (np.diff(centroids) > 0).all()
    grid = np.linspace(values.min(), values.max(), 2**bits)
    assert cost(values, centroids) <= cost(values, grid) * (1 + 1e-5) + 1e-9


def least_cost(values: Array, count: int) -> float:
    """Of any `count` clusters of sorted values, by dynamic programming over where the last one begins."""
    number = len(values)
    best = np.array([0.0] + [np.inf] * number)
    for _ in range(count):
        ends = [min(best[a] + np.var(values[a:b]) * (b - a) for a in range(b)) for b in range(1, number + 1)]
        best = np.array([0.0, *ends])
    return float(best[-1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [2, 4, 8])
def test_kmeans_is_near_the_best_of_all_clusterings(count: int, seed: int) -> None:
    values = np.sort(sample(60, seed, "normal"))
    assert cost(values, kmeans(values, count)) <= 1.25 * least_cost(values, count)


def test_values_that_are_few_enough_are_their_own_centroids() -> None:
    values = np.array([3, 1, 3, 2, 1], np.float32)
    np.testing.assert_array_equal(kmeans(values, 4), [1, 2, 3])


@given(SAMPLES, st.integers(1, 8), st.sampled_from([None, 63, 127]))
def test_a_codebook_gives_few_values_and_keeps_zeros(drawn: tuple[int, int, str], bits: int, limit: int | None) -> None:
    weight = torch.from_numpy(sample(*drawn))
    if not weight.any():
        return
    constraint = codebook(weight, bits, limit=limit)
    obeying = constraint(constraint.right_inverse(weight))
    assert count_values(obeying) <= 2**bits
    assert (obeying[weight == 0] == 0).all()
    if limit is not None:
        steps = obeying / constraint.step
        assert steps.abs().max() <= limit + 1e-3
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)


@given(SAMPLES, st.integers(1, 6))
def test_assigning_again_with_the_same_codebook_changes_nothing(drawn: tuple[int, int, str], bits: int) -> None:
    weight = torch.from_numpy(sample(*drawn))
    centroids = torch.from_numpy(kmeans(weight.numpy(), 2**bits))
    once = centroids[nearest(weight, centroids).long()]
    assert centroids[nearest(once, centroids).long()].equal(once)


def test_gradients_move_whole_clusters_and_never_zero() -> None:
    layer = nn.Linear(16, 16)
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    assert cluster(layer, layer, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), 0.1)
    before = layer.weight.detach().clone()
    layer(torch.randn(8, 16)).square().sum().backward()
    optimizer.step()
    assert (layer.weight[:, ::2] == 0).all()
    assert (layer.weight[:, 1::2] != before[:, 1::2]).any()
    assert count_values(layer.weight) <= 8
    assert free_weight(layer).shape == (8,)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_every_weight_has_few_values(bits: int) -> None:
    model = clustered({"layers.1.conv1": {"bits": bits}})
    assert count_values(weight_of(model, "layers.1.conv1")) == 2**bits
    assert count_values(weight_of(model, "layers.1.conv2")) > 256


def test_integers_lie_on_one_grid_for_the_layer() -> None:
    model = clustered({"layers.1.conv1": {"bits": 4, "integers": True}})
    values = weight_of(model, "layers.1.conv1").unique()
    steps = values / values.abs().max() * (63 if PROFILE.reduce_range else 127)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("setting", [{"bits": 2}, {"bits": 4, "integers": True}])
def test_values_stay_few_in_recovery(setting: dict[str, Scalar]) -> None:
    settings = {"inner": setting, "outer": setting, "stem": {"bits": 4}}
    bench = Workbench(task, (resolve_profile("fake"),), Path())
    model = Clustering()(task.build_model(), settings, bench.context)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recover(
        model,
        Lessons(task, task.build_model()),
        Recovery(epochs=1),
        score=lambda candidate: task.score(torch_predictor(candidate), batch_size=64),
        seed=0,
    )
    codebooks = [name for name in before if name.endswith("original")]
    assert len(codebooks) == 3
    Clustering().verify(Clustering().finalize(model), settings)


def test_sparsity_and_clustering_hold_together_after_recovery(tmp_path: Path) -> None:
    bench = Workbench(task, (resolve_profile("fake"),), tmp_path)
    zeros = {"inner": {"sparsity": 0.7}, "outer": {"pattern": "2:4"}}
    values = {"inner": {"bits": 3}, "outer": {"bits": 4}}
    model = Sparsity()(task.build_model(), zeros, bench.context)
    for constraint in constraints(model):
        constraint.settled = True
    model = Clustering()(model, values, bench.context)
    recover(model, Lessons(task, task.build_model()), Recovery(epochs=1), score=lambda _: 0.0, seed=0)
    model = release(model)
    Sparsity().verify(model, zeros)
    Clustering().verify(model, values)
    assert obeys_groups(weight_of(model, "outer"), (2, 4), 1)


def test_a_whole_trial_with_zeros_and_codebooks_is_carried_out(tmp_path: Path) -> None:
    bench = Workbench(task, (resolve_profile("fake"),), tmp_path)
    run_baseline(Trial(0, Plan()), bench)
    layers = ("inner", "outer")
    steps = (
        Step("sparsity", {name: {"sparsity": 0.5} for name in layers}),
        Step("clustering", {name: {"bits": 4} for name in layers}),
    )
    record = run_trial(Trial(1, Plan(steps=steps, recovery=Recovery(epochs=2))), bench)
    assert record.status == "complete", record.reason
    assert record.values["accuracy"] > 0.6


def test_parts_of_a_split_layer_have_a_codebook_each() -> None:
    specimen = SPECIMENS["mlp"]
    model = specimen.model()
    replace(model, "2", nn.Sequential(nn.Linear(32, 8, bias=False), nn.Linear(8, 32)))
    model = Clustering()(model, {"2": {"bits": 3}}, context_of(specimen, PROFILE))
    assert len([one for one in constraints(model) if isinstance(one, Codebook)]) == 2
    model = Clustering().finalize(model)
    Clustering().verify(model, {"2": {"bits": 3}})
    assert not weight_of(model, "2.0").unique().equal(weight_of(model, "2.1").unique())


def test_a_second_time_changes_nothing_and_says_so() -> None:
    settings = {"fc": {"bits": 4}}
    with pytest.raises(InfeasiblePlan, match="changes nothing"):
        Clustering()(clustered(settings), settings, context_of(SPECIMENS["residual"], PROFILE))


@pytest.mark.parametrize("bits", [0, 9, 32, 4.0, "4", True])
def test_bits_that_are_none_are_refused(bits: Scalar) -> None:
    with pytest.raises(InfeasiblePlan, match="whole number 1 to 8"):
        clustered({"fc": {"bits": bits}})


def test_integers_are_true_or_false() -> None:
    with pytest.raises(InfeasiblePlan, match="true or false"):
        clustered({"fc": {"bits": 4, "integers": 1}})


def test_recurrent_layers_are_refused() -> None:
    with pytest.raises(InfeasiblePlan, match="leave it out"):
        clustered({"lstm": {"bits": 4}}, "recurrent")


def test_a_layer_with_few_weights_is_refused_and_not_proposed() -> None:
    with pytest.raises(InfeasiblePlan, match="has 128 numbers; expected at least 1024 for the 256 values of bits 8"):
        clustered({"fc": {"bits": 8}})
    view = layer_view(SPECIMENS["residual"].model(), SPECIMENS["residual"].examples)
    asked: dict[str, Knob] = {}
    Clustering().propose(view, lambda name, knob: asked.setdefault(name, knob) and 32, MethodSpace(), PROFILE)
    assert asked["clustering/fc/bits"] == Choice((32, 4, 2))
    assert asked["clustering/layers.1.conv2/bits"] == Choice((32, 8, 4, 2))


def test_the_space_says_which_bits_and_whether_integers() -> None:
    view = layer_view(SPECIMENS["mlp"].model(), SPECIMENS["mlp"].examples)
    space = MethodSpace({"bits": (32, 3), "integers": (False, True)}, layers=("2",))
    settings = Clustering().propose(view, lambda _, knob: knob.options[-1], space, PROFILE)  # type: ignore[union-attr]
    assert settings == {"2": {"bits": 3, "integers": True}}


def test_a_model_with_more_values_than_planned_is_refused() -> None:
    model = SPECIMENS["mlp"].model()
    assert {layer.name for layer in used_layers(model, SPECIMENS["mlp"].examples)} == {"0", "2", "4"}
    with pytest.raises(InfeasiblePlan, match=r"'2' has \d+ values; expected 16"):
        Clustering().verify(model, {"2": {"bits": 4}})
