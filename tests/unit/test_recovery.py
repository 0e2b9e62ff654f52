from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.data import Batch
from autocompress.errors import InfeasiblePlan, InvalidInput, RecoveryFailed
from autocompress.formats.parity import torch_predictor
from autocompress.graph.constraints import Constraint, constrain
from autocompress.graph.folding import fold_batch_norms
from autocompress.plan import Recovery
from autocompress.recovery import Lessons, epoch_seconds, recalibrate, recover, sparsify
from autocompress.recovery.features import matched
from autocompress.recovery.penalties import output_channels, penalty
from autocompress.recovery.training import WEIGHT_DECAY, make_optimizer, one_cycle, prepare
from autocompress.task import Task
from tests.conftest import SPECIMENS
from tests.tasks.stripes import Net, make_images, task


def score(model: nn.Module) -> float:
    return task.score(torch_predictor(model), batch_size=64)


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons(task, task.build_model())


def fresh() -> nn.Module:
    torch.manual_seed(3)
    return Net(8).eval()


def test_a_student_learns_from_its_teacher(lessons: Lessons) -> None:
    student = fresh()
    before = score(student)
    reached = recover(student, lessons, Recovery(epochs=8, learning_rate=0.01), score=score, seed=0)
    assert reached.score > before + 0.2
    assert score(student) == pytest.approx(reached.score), "the weights of the best epoch are left in the model"


def test_the_same_seed_gives_the_same_weights(lessons: Lessons) -> None:
    models = [fresh(), fresh()]
    for model in models:
        recover(model, lessons, Recovery(epochs=1), score=score, seed=5)
    for one, two in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("first", [1, 3, 9])
def test_a_schedule_that_goes_on_is_the_rest_of_the_one_over_all_steps(first: int) -> None:
    def rates(begins_at: int) -> list[tuple[float, float]]:
        optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
        schedule = one_cycle(optimizer, 0.01, begins_at, 12)
        found = []
        for _ in range(begins_at, 12):
            found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]))
            optimizer.step()
            schedule.step()
        return found

    assert rates(first) == rates(0)[first:]


def test_more_training_does_not_begin_at_the_peak_again(lessons: Lessons) -> None:
    moved = []
    for before in (0, 30):
        model = task.build_model()
        weights = copy.deepcopy(model.state_dict())
        recovery = Recovery(epochs=1, keep="last")
        recover(model, lessons, recovery, score=lambda _: 0.0, seed=0, before=before)
        after = model.state_dict()
        moved.append(sum(float((after[name] - weights[name]).abs().sum()) for name, _ in model.named_parameters()))
    assert moved[1] < 0.1 * moved[0]


@pytest.mark.parametrize("epochs", range(1, 7))
def test_training_may_be_as_short_as_a_few_steps(epochs: int) -> None:
    images, classes = make_images(8, 0)
    short = Task(name="short", model=task.model, train=(images, classes), validation=(images, classes))
    reached = recover(fresh(), Lessons(short, short.build_model()), Recovery(epochs), score=lambda _: 0.0, seed=0)
    assert reached.epochs == epochs


def test_training_never_ends_below_its_start(lessons: Lessons) -> None:
    model = task.build_model()
    before = score(model)
    recover(model, lessons, Recovery(epochs=1, learning_rate=1.0), score=score, seed=0)
    assert score(model) >= before


def test_the_last_epoch_is_kept_where_validation_data_favors_the_start(lessons: Lessons) -> None:
    models = {"last": task.build_model(), "best": task.build_model()}
    scores = iter(range(100, 0, -1))  # every epoch seems worse than the one before
    for keep, model in models.items():
        recovery = Recovery(epochs=4, keep=keep)  # type: ignore[arg-type]
        reached = recover(model, lessons, recovery, score=lambda _: float(next(scores)), seed=0)
        assert reached.epoch == {"last": 4, "best": 0}[keep]
    before, last, best = (model.state_dict()["norm.weight"] for model in (task.build_model(), *models.values()))
    assert torch.equal(best, before)
    assert not torch.equal(last, before)


def test_a_teacher_whose_outputs_do_not_count_is_not_asked() -> None:
    class Silent(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise AssertionError("asked")

    untaught = Recovery(epochs=1, alpha=1.0)
    recover(fresh(), Lessons(task, Silent()), untaught, score=lambda _: 0.0, seed=0)
    slimming = Recovery(alpha=1.0, penalty="l1", penalty_weight=0.01, sparsify_epochs=1)
    sparsify(fresh(), Lessons(task, Silent()), slimming, seed=0)


def test_a_loss_that_is_no_number_ends_the_trial(lessons: Lessons) -> None:
    model = fresh()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(RecoveryFailed, match="lower the learning rate"):
        recover(model, lessons, Recovery(epochs=1), score=lambda _: 0.0, seed=0)


def test_the_teacher_is_asked_once_for_data_in_arrays() -> None:
    calls = []

    class Counting(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            calls.append(len(image))
            return torch.zeros(len(image), 4)

    lessons = Lessons(task, Counting())
    for epoch in range(3):
        seen = sum(len(lesson.targets) for lesson in lessons.epoch(epoch))
        assert seen == 512
    assert sum(calls) == 512


def test_a_loader_is_taught_batch_by_batch_and_pairs_stay_together() -> None:
    images, classes = make_images(96, 4)
    loader = [(images[start : start + 32], classes[start : start + 32]) for start in range(0, 96, 32)]
    other = Task(name="loader", model=task.model, train=loader, validation=(images, classes))
    lessons = Lessons(other, other.build_model())
    assert lessons.steps == 3
    for lesson in lessons.epoch(0):
        np.testing.assert_allclose(lesson.taught, lessons._ask(lesson.inputs))


def test_a_batch_that_comes_again_is_answered_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images, classes = make_images(64, 4)
    asked = []

    class Counting(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            asked.append(len(image))
            return image.flatten(1)[:, :4]

    class Shifted:
        """Data that are drawn anew for each seed, and the same for the same."""

        def batches(self, size: int, *, seed: int | None = None) -> Iterator[Batch]:
            moved = images + np.float32(seed or 0)
            for start in range(0, 64, size):
                yield Batch((moved[start : start + size],), classes[start : start + size])

        def fingerprint(self) -> str:
            return "shifted"

    other = Task(name="loader", model=task.model, train=Shifted(), validation=(images, classes), batch_size=32)
    lessons = Lessons(other, Counting())
    first, again, later = (list(lessons.epoch(seed)) for seed in (1, 1, 2))
    assert sum(asked) == 128, "twice the same, and once more"
    for one, other_one in zip(first, again, strict=True):
        assert torch.equal(one.taught, other_one.taught)  # type: ignore[arg-type]
    assert not torch.equal(first[0].taught, later[0].taught)  # type: ignore[arg-type]
    monkeypatch.setattr("autocompress.recovery.lessons.MOST_REMEMBERED_BYTES", 0)
    forgetful = Lessons(other, Counting())
    asked.clear()
    for _ in range(2):
        list(forgetful.epoch(1))
    assert sum(asked) == 128, "without memory every batch is asked for"


def test_regression_is_recovered_by_squared_error() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(256, 5)).astype(np.float32)
    targets = inputs @ rng.normal(size=(5, 1)).astype(np.float32)
    teacher = nn.Linear(5, 1)
    with torch.no_grad():
        teacher.weight.copy_(torch.from_numpy(np.linalg.lstsq(inputs, targets, rcond=None)[0].T))
        teacher.bias.zero_()
    data = (inputs, targets)
    regression = Task(name="line", model=teacher, train=data, validation=data, metric="mse")
    student = nn.Linear(5, 1)
    recover(
        student,
        Lessons(regression, teacher),
        Recovery(epochs=20, learning_rate=0.1),
        score=lambda model: -regression.score(torch_predictor(model), batch_size=64),
        seed=0,
    )
    assert regression.score(torch_predictor(student)) < 0.05 * float(np.square(targets).mean())


def test_statistics_can_not_be_taken_of_one_sample_a_batch() -> None:
    images, classes = make_images(4, 0)
    loader = [(images[place : place + 1], classes[place : place + 1]) for place in range(4)]
    single = Task(name="single", model=task.model, train=loader, validation=(images, classes))
    with pytest.raises(InvalidInput, match="no batch of 2 or more samples"):
        recalibrate(task.build_model(), single)
    arrays = Task(name="single", model=task.model, train=(images, classes), validation=(images, classes), batch_size=1)
    recalibrate(task.build_model(), arrays)


def test_recalibration_takes_the_statistics_of_the_data() -> None:
    model = task.build_model()
    spoiled = copy.deepcopy(model)
    norm = spoiled.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    norm.running_mean += 3.0
    assert score(spoiled) < score(model) - 0.1
    recalibrate(spoiled, task)
    assert score(spoiled) > score(model) - 0.05
    assert not spoiled.training


def test_an_epoch_is_timed_by_real_steps(lessons: Lessons) -> None:
    assert epoch_seconds(task.build_model(), lessons, None) > 0


def test_a_gradient_that_is_no_number_ends_the_trial(lessons: Lessons) -> None:
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(144, 4))

        def forward(self, image: Tensor) -> Tensor:
            return (image.flatten(1).abs() @ self.weight.abs()).sqrt()  # infinite slope at zero

    with pytest.raises(RecoveryFailed, match="the gradient's norm became nan; lower the learning rate"):
        recover(Rooted(), lessons, Recovery(epochs=1), score=lambda _: 0.0, seed=0)


class Scaled(Constraint):
    """A learned scale; a frozen free weight if asked for."""

    def __init__(self, trains_free_weight: bool) -> None:
        super().__init__()
        self.trains_free_weight = trains_free_weight
        self.scale = nn.Parameter(torch.ones(16, 1, 1, 1))
        self.fixed = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale * self.fixed


def test_only_weights_decay() -> None:
    model = task.build_model()
    constrain(model.get_submodule("inner"), Scaled(True))
    prepare(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay = {
        names[parameter]: group["weight_decay"]
        for group in make_optimizer(model, 0.1).param_groups
        for parameter in group["params"]
    }
    weights = {"stem.weight", "inner.parametrizations.weight.original", "outer.weight", "head.weight"}
    assert {name for name, value in decay.items() if value == WEIGHT_DECAY} == weights
    assert {"inner.parametrizations.weight.0.scale", "norm.weight", "inner.bias"} <= decay.keys() - weights


def test_frozen_weights_are_trained_but_for_those_that_constraints_hold(lessons: Lessons) -> None:
    model = task.build_model()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    constrain(model.get_submodule("inner"), Scaled(False))
    constrain(model.get_submodule("outer"), Scaled(True))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recover(model, lessons, Recovery(epochs=1), score=lambda _: 0.0, seed=0)
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == {
        "inner.parametrizations.weight.original",
        "inner.parametrizations.weight.0.fixed",
        "outer.parametrizations.weight.0.fixed",
    }


def test_matching_features_brings_inner_layers_close_and_leaves_no_trace(lessons: Lessons) -> None:
    def distance(model: nn.Module) -> float:
        with matched(model, lessons, {"outer": "outer"}) as match, torch.no_grad():
            lesson = next(lessons.epoch(9))
            model.eval()(*lesson.inputs)
            return float(match.loss(lesson))

    def trained(weight: float) -> nn.Module:
        torch.manual_seed(4)
        model = Net(16)
        recovery = Recovery(epochs=4, learning_rate=0.01, feature_weight=weight)
        recover(model, lessons, recovery, score=lambda _: 0.0, seed=0, features={"outer": "outer"})
        return model

    model = trained(5.0)
    assert distance(model) < 0.7 * distance(trained(0.0))
    assert model.state_dict().keys() == Net(16).state_dict().keys()
    assert not any(module._forward_hooks for module in [*model.modules(), *lessons.teacher.modules()])


def test_a_model_is_at_no_distance_from_itself_also_with_its_batch_norms_folded(lessons: Lessons) -> None:
    folded = fold_batch_norms(task.build_model(), task.examples)
    for model, is_folded in ((task.build_model(), False), (folded, True)):
        with matched(model, lessons, {}, folded=is_folded) as match, torch.no_grad():
            lesson = next(lessons.epoch(0))
            model(*lesson.inputs)
            assert float(match.loss(lesson)) < 1e-2, "bf16 rounding where the processor has it"
            assert match.parameters() == ()


def test_channels_that_a_narrow_student_lacks_are_mapped(lessons: Lessons) -> None:
    with matched(Net(8), lessons, {}) as match:
        assert [tuple(weight.shape) for weight in match.parameters()] == [(16, 8)] * 4, "stem, norm, inner and outer"


def test_the_stages_of_a_network_are_matched_by_default() -> None:
    specimen = SPECIMENS["residual"]
    data = (specimen.samples(8), np.zeros(8, np.int64))
    wrapped = nn.Sequential(specimen.model())
    own = Task(name="wrapped", model=wrapped, train=data, validation=data)
    with matched(own.build_model(), Lessons(own, wrapped), {}) as match:
        assert list(match._pairs) == ["0.layers"]


@pytest.mark.parametrize(
    ("student", "wanted", "error", "message"),
    [
        (Net(8), {"inner": "iner"}, InvalidInput, "the model has no layer 'iner'; did you mean 'inner'"),
        (nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), {}, InfeasiblePlan, "share no layers; name layers"),
        (Net(8), {"head": "outer"}, InfeasiblePlan, r"layer 'head' gives \(64, 4\) .* and \(64, 16, 12, 12\)"),
    ],
)
def test_features_that_cannot_be_matched_are_explained(
    lessons: Lessons, student: nn.Module, wanted: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message), matched(student, lessons, wanted):
        pass


def test_l1_counts_the_scales_of_batch_norms_or_else_the_weights() -> None:
    model = Net(8)
    assert penalty(model, "l1").item() == 8, "fresh scales are 1"
    folded = fold_batch_norms(model.eval(), task.examples)
    weights = [folded.get_submodule(name).get_parameter("weight") for name in ("stem", "inner", "outer", "head")]
    assert penalty(folded, "l1").item() == pytest.approx(sum(one.abs().sum().item() for one in weights), rel=1e-5)


def test_group_lasso_is_least_where_whole_channels_are_zero() -> None:
    whole, scattered = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        for layer, zeros in ((whole, (slice(0, 2), slice(None))), (scattered, (slice(None), slice(0, 4)))):
            layer.weight.fill_(1.0)
            layer.weight[zeros] = 0.0
    assert penalty(whole, "group_lasso").item() == pytest.approx(2 * 8**0.5 * 8**0.5)
    assert penalty(whole, "group_lasso").item() < penalty(scattered, "group_lasso").item()
    penalty(whole, "group_lasso").backward()  # type: ignore[no-untyped-call]
    assert whole.weight.grad is not None
    assert whole.weight.grad.isfinite().all(), "at channels that are zero too"


@pytest.mark.parametrize("groups", [1, 2])
def test_output_channels_are_those_that_bias_counts(groups: int) -> None:
    for layer in (nn.Conv1d(4, 6, 3, groups=groups), nn.ConvTranspose1d(4, 6, 3, groups=groups)):
        with torch.no_grad():
            axis = 1 if layer.transposed else 0
            layer.weight.zero_().select(axis, 1).fill_(1.0)
        hot = output_channels(layer).abs().sum(1).nonzero().flatten().tolist()
        with torch.no_grad():
            assert layer.bias is not None
            layer.bias.zero_()
            answered = layer(torch.ones(1, 4, 5))[0].sum(1).nonzero().flatten().tolist()
        assert hot == answered


@pytest.mark.parametrize(("kind", "layer", "weight"), [("l1", "norm", 0.02), ("group_lasso", "inner", 0.001)])
def test_training_towards_sparsity_brings_some_channels_to_nothing(
    lessons: Lessons, kind: Literal["l1", "group_lasso"], layer: str, weight: float
) -> None:
    def dead(weight: float) -> int:
        model = task.build_model()
        recovery = Recovery(penalty=kind, penalty_weight=weight, sparsify_epochs=12, learning_rate=0.03)
        sparsify(model, lessons, recovery, seed=0)
        assert score(model) > 0.9
        channels = model.get_submodule(layer).get_parameter("weight").detach().reshape(16, -1).norm(dim=1)
        return int((channels < 0.05 * channels.max()).sum())

    assert dead(weight) >= dead(weight / 1e4) + 1


def test_a_penalty_needs_something_to_act_on() -> None:
    with pytest.raises(InfeasiblePlan, match="no convolution or linear layer; leave the penalty out"):
        penalty(nn.Embedding(4, 4), "l1")
