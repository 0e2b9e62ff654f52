from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.errors import RecoveryFailed
from autocompress.formats.parity import torch_predictor
from autocompress.plan import Recovery
from autocompress.recovery import Lessons, epoch_seconds, recalibrate, recover
from autocompress.task import Task
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


def test_training_never_ends_below_its_start(lessons: Lessons) -> None:
    model = task.build_model()
    before = score(model)
    recover(model, lessons, Recovery(epochs=1, learning_rate=1.0), score=score, seed=0)
    assert score(model) >= before


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
