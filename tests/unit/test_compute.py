from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autocompress.formats.parity import torch_predictor
from autocompress.pipeline import Workbench
from autocompress.plan import Recovery
from autocompress.recovery import Lessons, compute, compute_name, recalibrate, recover
from autocompress.task import Task
from tests.conftest import SPECIMENS
from tests.tasks.stripes import task

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def test_without_a_gpu_training_runs_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    compute.compute_device.cache_clear()
    try:
        assert compute.compute_device() == torch.device("cpu")
        assert compute_name() == "the processor"
        model = nn.Linear(2, 2)
        with compute.at_work(model):
            assert model.weight.device.type == "cpu"
    finally:
        compute.compute_device.cache_clear()


@gpu
def test_a_model_that_the_task_keeps_on_the_gpu_is_brought_to_the_processor() -> None:
    elsewhere = Task(name="elsewhere", model=task.build_model().cuda(), train=task.train, validation=task.validation)
    assert next(elsewhere.build_model().parameters()).device.type == "cpu"


@gpu
def test_a_trained_model_comes_back_from_the_gpu_with_the_same_parameters() -> None:
    model = task.build_model()
    before = list(model.parameters())
    places = []

    def score(candidate: nn.Module) -> float:
        places.append(next(candidate.parameters()).device.type)
        return task.score(torch_predictor(candidate), batch_size=64)

    recover(model, Lessons(task, task.build_model()), Recovery(epochs=1), score=score, seed=0)
    assert set(places) == {"cuda"}
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
    recalibrate(model, task)
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())


@gpu
@pytest.mark.parametrize("name", list(SPECIMENS))
def test_a_model_says_the_same_on_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    specimen = SPECIMENS[name]
    here, there = specimen.model(), copy.deepcopy(specimen.model()).to("cuda")
    expected, found = (torch_predictor(model)(specimen.samples(4)) for model in (here, there))
    assert abs(expected - found).max() <= 1e-4 * abs(expected).max()


@gpu
def test_the_teacher_of_a_workbench_stays_on_the_processor(tmp_path_factory: pytest.TempPathFactory) -> None:
    bench = Workbench(task, (), tmp_path_factory.mktemp("bench"))
    assert next(iter(bench.lessons.epoch(0))).inputs[0].device.type == "cuda"
    assert next(bench.teacher.parameters()).device.type == "cpu"
    assert next(bench.lessons.teacher.parameters()).device.type == "cuda"
