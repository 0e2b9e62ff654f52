"""Sparsity: which weights become zero, when, and that they stay so."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.devices import resolve_profile
from autocompress.errors import InfeasiblePlan
from autocompress.formats.parity import torch_predictor
from autocompress.graph.constraints import constrain, constraints, free_weight
from autocompress.graph.folding import fold_batch_norms
from autocompress.graph.inspect import layer_view, replace, used_layers, weighted_modules
from autocompress.graph.masks import Mask, kept, largest_in_groups, obeys_groups, shared_out, zeros_at
from autocompress.graph.view import LayerView
from autocompress.methods.sparsity import Sparsity
from autocompress.pipeline import Workbench, run_baseline, run_trial
from autocompress.plan import Plan, Recovery, Scalar, Settings, Step
from autocompress.record import Trial
from autocompress.recovery import Lessons, recover
from autocompress.space import Choice, Knob, MethodSpace, neutral
from tests.conftest import PROFILE, SPECIMENS, Specimen, context_of
from tests.tasks.stripes import task


def sparse(specimen: Specimen, settings: Settings) -> nn.Module:
    """The released model."""
    method = Sparsity()
    model = method.finalize(method(specimen.model(), settings, context_of(specimen, PROFILE)))
    method.verify(model, settings)
    return model


def zeros(model: nn.Module, name: str) -> int:
    return sum(int((module.get_parameter("weight") == 0).sum()) for _, module in weighted_modules(model, name))


def everywhere(specimen: Specimen, **setting: Scalar) -> dict[str, dict[str, Scalar]]:
    layers = used_layers(specimen.model(), specimen.examples)
    return {layer.name: dict(setting) for layer in layers if layer.shape and np.prod(layer.shape) > 8}


@given(st.integers(2, 200), st.floats(0.01, 0.99), st.integers(0, 9))
def test_exactly_the_smallest_become_zero(count: int, share: float, seed: int) -> None:
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=count).round(1))
    number = round(share * count)
    mask = kept(weight, number)
    assert int((~mask).sum()) == number
    if 0 < number < count:
        assert weight[~mask].abs().max() <= weight[mask].abs().min()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("groups", [(1, 4), (2, 4), (4, 8)])
def test_a_pattern_keeps_the_largest_of_each_group(groups: tuple[int, int], axis: int) -> None:
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(16, 8, 3)))
    count, size = groups
    mask = kept(weight, round(weight.numel() * (1 - count / size)), groups, axis)
    assert obeys_groups(weight * mask, groups, axis)
    assert mask.equal(largest_in_groups(weight.abs(), groups, axis))
    rows = (weight * mask).abs().movedim(axis, -1).reshape(-1, size).sum(1)
    best = weight.abs().movedim(axis, -1).reshape(-1, size).topk(count, dim=1).values.sum(1)
    torch.testing.assert_close(rows, best)


def test_the_schedule_grows_to_all_zeros_in_a_quarter_of_the_training() -> None:
    counts = [zeros_at(progress / 100, 1000) for progress in range(101)]
    assert counts == sorted(counts)
    assert (counts[0], counts[25], counts[100]) == (0, 1000, 1000)
    assert counts[10] > 200, "most weights go early, while there is time to make up for them"


def test_a_mask_follows_the_schedule_and_is_then_fixed() -> None:
    layer = nn.Linear(20, 10).train()
    mask = Mask(layer.weight, 160)
    constrain(layer, mask)
    found = []
    for progress in (0.0, 0.1, 0.3, 0.5, 0.9):
        mask.advance(progress)
        with torch.no_grad():
            found.append(int((layer.weight == 0).sum()))
            free_weight(layer).mul_(torch.rand(10, 20))
    assert found == [zeros_at(progress, 160) for progress in (0.0, 0.1, 0.3, 0.5, 0.9)]
    assert mask.settled


def test_a_model_that_is_evaluated_in_the_midst_of_the_schedule_obeys() -> None:
    layer = nn.Linear(20, 10).train()
    mask = Mask(layer.weight, 160)
    constrain(layer, mask)
    mask.advance(0.0)
    assert int((layer.weight == 0).sum()) == 0
    layer.eval()
    assert int((layer.weight == 0).sum()) == 160


def test_gradients_reach_the_weights_that_stay() -> None:
    layer = nn.Linear(20, 10).train()
    mask = Mask(layer.weight, 160)
    constrain(layer, mask)
    reached = []
    for progress in (0.0, 0.6):
        mask.advance(progress)
        layer.zero_grad()
        layer(torch.ones(1, 20)).sum().backward()
        gradient = free_weight(layer).grad
        assert isinstance(gradient, Tensor)
        reached.append(int((gradient != 0).sum()))
    assert reached == [200, 40]


def test_a_settled_mask_is_left_alone() -> None:
    mask = Mask(torch.randn(4, 4), 8)
    mask.settled = True
    before = mask.kept.clone()
    mask.train().advance(0.0)
    mask(torch.randn(4, 4))
    assert mask.kept.equal(before)


def test_one_shot_never_changes_its_mask() -> None:
    specimen = SPECIMENS["mlp"]
    settings = {"0": {"sparsity": 0.5, "schedule": "one_shot"}}
    model = Sparsity()(specimen.model(), settings, context_of(specimen, PROFILE))
    assert all(constraint.settled for constraint in constraints(model))


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("name", ["residual", "depthwise", "conv1d"])
def test_every_weight_has_the_planned_share_of_zeros(name: str, sparsity: float) -> None:
    specimen = SPECIMENS[name]
    settings = everywhere(specimen, sparsity=sparsity)
    model = sparse(specimen, settings)
    for layer in settings:
        weight = model.get_submodule(layer).get_parameter("weight")
        assert zeros(model, layer) == min(round(sparsity * weight.numel()), weight.numel() - 1)


def test_a_threshold_takes_what_is_below_it() -> None:
    specimen = SPECIMENS["mlp"]
    weight = specimen.model().get_submodule("2").get_parameter("weight")
    model = sparse(specimen, {"2": {"threshold": 0.8}})
    assert zeros(model, "2") == int((weight.abs() < 0.8 * weight.std(correction=0)).sum())


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_a_pattern_holds_along_the_inputs(pattern: str) -> None:
    model = sparse(SPECIMENS["residual"], {"layers.0.conv1": {"pattern": pattern}, "fc": {"pattern": pattern}})
    count, size = (int(part) for part in pattern.split(":"))
    for name in ("layers.0.conv1", "fc"):
        assert obeys_groups(model.get_submodule(name).get_parameter("weight"), (count, size), 1)


def test_layers_that_share_a_ranking_have_the_planned_mean() -> None:
    specimen = SPECIMENS["residual"]
    settings = everywhere(specimen, sparsity=0.8, scope="global")
    model = sparse(specimen, settings)
    weights = [model.get_submodule(name).get_parameter("weight") for name in settings]
    total = sum(weight.numel() for weight in weights)
    assert sum(zeros(model, name) for name in settings) == pytest.approx(0.8 * total, abs=len(settings))
    assert len({round(float((weight == 0).float().mean()), 2) for weight in weights}) > 1


def test_a_shared_ranking_does_not_depend_on_the_scale_of_a_layer_and_empties_none() -> None:
    one, two = torch.randn(50, 40), torch.randn(30, 20)
    counts = shared_out([one, two], 2500)
    assert counts == shared_out([one, 1000 * two], 2500)
    assert counts[0] < 2000
    assert counts[1] < 600


def test_zeros_survive_folding_of_batch_norms() -> None:
    specimen = SPECIMENS["residual"]
    settings = everywhere(specimen, sparsity=0.7)
    model = Sparsity()(specimen.model(), settings, context_of(specimen, PROFILE))
    folded = fold_batch_norms(model, specimen.examples)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    Sparsity().verify(Sparsity().finalize(folded), settings)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("setting", [{"sparsity": 0.8}, {"pattern": "2:4"}, {"sparsity": 0.8, "schedule": "one_shot"}])
def test_zeros_survive_recovery(setting: dict[str, Scalar], epochs: int) -> None:
    settings = {"inner": setting, "outer": setting}
    bench = Workbench(task, (resolve_profile("fake"),), Path())
    model = Sparsity()(task.build_model(), settings, bench.context)
    reached = recover(
        model,
        Lessons(task, task.build_model()),
        Recovery(epochs=epochs),
        score=lambda candidate: task.score(torch_predictor(candidate), batch_size=64),
        seed=0,
    )
    assert reached.score >= reached.start
    Sparsity().verify(Sparsity().finalize(model), settings)


def test_a_layer_that_was_split_is_sparse_in_all_its_parts() -> None:
    specimen = SPECIMENS["mlp"]
    model = specimen.model()
    replace(model, "2", nn.Sequential(nn.Linear(32, 8, bias=False), nn.Linear(8, 32)))
    settings = {"2": {"sparsity": 0.75}}
    model = Sparsity().finalize(Sparsity()(model, settings, context_of(specimen, PROFILE)))
    Sparsity().verify(model, settings)
    assert zeros(model, "2.0") == zeros(model, "2.1") == 192


def test_a_sparse_trial_gives_a_smaller_file(tmp_path: Path) -> None:
    bench = Workbench(task, (resolve_profile("fake"),), tmp_path)
    baseline = run_baseline(Trial(0, Plan()), bench)
    steps = (Step("sparsity", {"inner": {"sparsity": 0.95}, "outer": {"sparsity": 0.95}}),)
    record = run_trial(Trial(1, Plan(steps=steps, recovery=Recovery(epochs=1))), bench)
    assert record.status == "complete", record.reason
    assert record.values["size_bytes"] < 0.5 * baseline.values["size_bytes"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sparsity": 0.0}, "share of zeros"),
        ({"sparsity": 1.0}, "share of zeros"),
        ({"sparsity": "0.5"}, "share of zeros"),
        ({"threshold": -1.0}, "threshold"),
        ({"pattern": "4:2"}, "N:M"),
        ({"pattern": "unstructured"}, "no amount given"),
        ({"sparsity": 0.5, "threshold": 0.1}, "sparsity and threshold given"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "sparsity and pattern given"),
        ({"pattern": "2:4", "scope": "global"}, "no global ranking"),
        ({"sparsity": 0.5, "scope": "model"}, "scope"),
        ({"sparsity": 0.5, "schedule": "late"}, "schedule"),
        ({"sparsity": 1e-6}, "makes no weight zero"),
    ],
)
def test_settings_that_are_none_are_refused(setting: dict[str, Scalar], message: str) -> None:
    specimen = SPECIMENS["residual"]
    with pytest.raises(InfeasiblePlan, match=message):
        Sparsity()(specimen.model(), {"fc": setting}, context_of(specimen, PROFILE))


@pytest.mark.parametrize(("name", "layer"), [("recurrent", "lstm"), ("depthwise", "1.0")])
def test_layers_whose_weights_cannot_be_grouped_are_refused(name: str, layer: str) -> None:
    specimen = SPECIMENS[name]
    with pytest.raises(InfeasiblePlan, match="leave it out"):
        Sparsity()(specimen.model(), {layer: {"pattern": "2:4"}}, context_of(specimen, PROFILE))


def test_a_finished_model_with_fewer_zeros_is_refused() -> None:
    specimen = SPECIMENS["mlp"]
    model = sparse(specimen, {"2": {"sparsity": 0.5}})
    spoiled = copy.deepcopy(model)
    with torch.no_grad():
        spoiled.get_submodule("2").get_parameter("weight").add_(1.0)
    with pytest.raises(InfeasiblePlan, match="0 zeros; expected 512"):
        Sparsity().verify(spoiled, {"2": {"sparsity": 0.5}})
    with pytest.raises(InfeasiblePlan, match="ranked together"):
        Sparsity().verify(spoiled, {"2": {"sparsity": 0.5, "scope": "global"}})
    with pytest.raises(InfeasiblePlan, match="is not 1:4"):
        Sparsity().verify(model, {"2": {"pattern": "1:4"}})


def proposed(view: LayerView, space: MethodSpace, answers: dict[str, Scalar]) -> tuple[Settings, dict[str, Knob]]:
    asked: dict[str, Knob] = {}

    def suggest(name: str, knob: Knob) -> Scalar:
        asked[name] = knob
        wanted = answers.get(name.rpartition("/")[2])
        return wanted if isinstance(knob, Choice) and wanted in knob.options else neutral(knob)  # type: ignore[return-value]

    return Sparsity().propose(view, suggest, space, PROFILE), asked


def test_a_pattern_is_asked_only_of_layers_that_it_fits_and_then_nothing_else() -> None:
    specimen = SPECIMENS["depthwise"]
    view = layer_view(specimen.model(), specimen.examples)
    space = MethodSpace({"pattern": ("unstructured", "2:4"), "sparsity": (0, 0.5), "scope": ("layer", "global")})
    settings, asked = proposed(view, space, {"pattern": "2:4", "sparsity": 0.5, "scope": "global"})
    assert settings["2.0"] == {"pattern": "2:4"}
    assert settings["1.0"] == {"sparsity": 0.5, "scope": "global"}
    assert "sparsity/2.0/sparsity" not in asked
    assert "sparsity/1.0/pattern" not in asked


def test_recurrent_and_attention_layers_are_not_proposed() -> None:
    specimen = SPECIMENS["recurrent"]
    settings, _ = proposed(layer_view(specimen.model(), specimen.examples), MethodSpace(), {"sparsity": 0.9})
    assert set(settings) == {"embed", "hidden", "fc"}


def test_proposed_layers_share_a_ranking_unless_the_space_says_otherwise() -> None:
    specimen = SPECIMENS["mlp"]
    view = layer_view(specimen.model(), specimen.examples)
    shared, asked = proposed(view, MethodSpace(), {"sparsity": 0.8})
    assert shared["0"] == {"sparsity": 0.8, "scope": "global"}
    assert set(asked) == {f"sparsity/{name}/sparsity" for name in shared}
    alone, _ = proposed(view, MethodSpace({"scope": ("layer",), "schedule": ("one_shot",)}), {"sparsity": 0.8})
    assert alone["0"] == {"sparsity": 0.8, "scope": "layer", "schedule": "one_shot"}


def test_tied_layers_share_their_zeros_and_are_counted_once() -> None:
    specimen = SPECIMENS["tied"]
    context = context_of(specimen, PROFILE)
    alike: Settings = {name: {"sparsity": 0.9, "scope": "global"} for name in ("words", "inner", "head")}
    model = Sparsity().finalize(Sparsity()(specimen.model(), alike, context))
    Sparsity().verify(model, alike)
    different: Settings = {"words": {"sparsity": 0.9}, "head": {"sparsity": 0.3}}
    with pytest.raises(InfeasiblePlan, match="'words' and 'head' share a weight, and are given"):
        Sparsity()(specimen.model(), different, context)


def test_of_tied_layers_one_is_offered() -> None:
    view = layer_view(SPECIMENS["tied"].model(), SPECIMENS["tied"].examples)
    proposed = Sparsity().propose(view, lambda _, knob: knob.options[-1], MethodSpace(), PROFILE)  # type: ignore[union-attr]
    assert set(proposed) == {"words", "mix", "inner"}
