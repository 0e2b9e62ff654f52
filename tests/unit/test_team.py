"""Processes that train one model together do what one does alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from autocompress.data import Array
from autocompress.errors import RecoveryFailed
from autocompress.graph.constraints import Constraint, constrain
from autocompress.pipeline import Workbench, train
from autocompress.plan import Plan, Recovery, Step
from autocompress.record import Trial
from autocompress.recovery import Lessons, distillation, epoch_seconds, lessons, recover, sparsify, team
from autocompress.task import Task
from tests.conftest import PROFILE
from tests.tasks.stripes import Net, make_images, task
from tests.team import Team, together

Weights = dict[str, Array]
TAUGHT = Recovery(epochs=3, learning_rate=0.01, keep="last")


@pytest.fixture(scope="module", params=[2, 3])
def members(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Two or three processes."""
    with together(request.param, tmp_path_factory.mktemp("team")) as made:
        yield made


class Doubled(Constraint):
    """A constraint with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


class Plain(nn.Module):
    """A network without batch norm, with a constraint, and a weight that no forward pass uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        self.unused = nn.Linear(3, 3)
        constrain(self.head, Doubled())

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(image)).mean((2, 3)))


class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A dataset that knows what was read of it."""

    def __init__(self, count: int) -> None:
        self.images, self.classes = make_images(count, 0)
        self.read = list[int]()

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> tuple[Array, np.int64]:
        self.read.append(index)
        return self.images[index], self.classes[index]


class Shuffling:
    """A loader whose order is another in each process."""

    def __init__(self, count: int, size: int) -> None:
        self.images, self.classes = make_images(count, 0)
        self.size = size
        self.random = np.random.default_rng(7 if team.leads() else 8 + dist.get_rank())

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        order = self.random.permutation(len(self.classes))
        for start in range(0, len(order), self.size):
            chosen = order[start : start + self.size]
            yield self.images[chosen], self.classes[chosen]


def small(count: int, batch_size: int, kind: str = "arrays") -> Task:
    made = {
        "arrays": lambda: make_images(count, 0),
        "dataset": lambda: Images(count),
        "loader": lambda: Shuffling(count, batch_size),
    }[kind]
    return Task(name="small", model=Plain(), train=made(), validation=make_images(8, 1), batch_size=batch_size)


def in_fp32() -> AbstractContextManager[object]:
    """What stands for autocast here: sums of few samples that are rounded to bf16 are other sums."""
    return nullcontext()


def weights_of(model: nn.Module) -> Weights:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def trained(model: nn.Module, of: Task, recovery: Recovery = TAUGHT) -> Weights:
    """The weights after some recovery."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "autocast", in_fp32)
        patch.setattr(lessons, "autocast", in_fp32)
        recover(model, Lessons(of, of.build_model()), recovery, score=lambda _: 0.0, seed=0)
    return weights_of(model)


def plain(count: int, batch_size: int, kind: str = "arrays", recovery: Recovery = TAUGHT) -> Weights:
    return trained(Plain(), small(count, batch_size, kind), recovery)


def normalized(count: int, batch_size: int) -> Weights:
    torch.manual_seed(team.seed_of(3))  # each begins with weights of its own
    return trained(Net(8).eval(), small(count, batch_size))


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def close(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(np.allclose(one[name], other[name], atol=1e-5) for name in one)


@pytest.mark.parametrize(("count", "batch_size"), [(36, 12), (5, 5), (13, 6), (7, 1)])
@pytest.mark.parametrize("kind", ["arrays", "dataset", "loader"])
def test_a_team_gets_the_weights_that_one_gets_alone(members: Team, count: int, batch_size: int, kind: str) -> None:
    """With batches of 12 samples, of 5, of 6 with one left over, and of a single one."""
    first, *others = members(plain, count, batch_size, kind)
    assert close(first, plain(count, batch_size, kind))
    assert all(same(first, other) for other in others)
    assert not close(first, weights_of(Plain()))


def test_penalties_count_once(members: Team) -> None:
    recovery = replace(TAUGHT, penalty="group_lasso", penalty_weight=0.01)
    assert close(members(plain, 24, 12, "arrays", recovery)[0], plain(24, 12, "arrays", recovery))


def test_a_team_agrees_where_inner_layers_are_taught(members: Team) -> None:
    """Not on what one gets alone: each divides by what the teacher says of its own part."""
    first, *others = members(plain, 24, 12, "arrays", replace(TAUGHT, feature_weight=1.0))
    assert all(same(first, other) for other in others)
    assert not same(first, weights_of(Plain()))


@pytest.mark.parametrize(("count", "batch_size"), [(24, 12), (7, 5), (3, 3)])
def test_a_team_agrees_on_batch_norms(members: Team, count: int, batch_size: int) -> None:
    """In batches of which parts of one sample would come, and where some processes have none at all."""
    first, *others = members(normalized, count, batch_size)
    assert all(same(first, other) for other in others)
    assert all(np.isfinite(values).all() for values in first.values())
    assert first["norm.num_batches_tracked"] == 3 * (count // batch_size + (count % batch_size > 1))
    assert not np.array_equal(first["norm.running_mean"], np.zeros(8))


def sparse() -> Weights:
    model = Net(8).eval()
    of = small(24, 12)
    recovery = Recovery(penalty="l1", penalty_weight=0.1, sparsify_epochs=2)
    sparsify(model, Lessons(of, of.build_model()), recovery, seed=0)
    return weights_of(model)


def test_a_team_agrees_after_training_towards_sparsity(members: Team) -> None:
    first, *others = members(sparse)
    assert all(same(first, other) for other in others)


def best_of(scores: list[float]) -> tuple[Weights, int, int]:
    model, asked, of = Plain(), list[float](), small(24, 12)

    def score(_: nn.Module) -> float:
        asked.append(scores[len(asked)])
        return asked[-1]

    reached = recover(model, Lessons(of, of.build_model()), Recovery(epochs=3), score=score, seed=0)
    return weights_of(model), reached.epoch, len(asked)


def test_the_first_alone_scores_and_all_keep_its_best_weights(members: Team) -> None:
    (first, epoch, asked), *others = members(best_of, [5.0, 3.0])
    assert (epoch, asked) == (0, 2)
    assert same(first, weights_of(Plain()))
    assert all(same(first, other) and (number, often) == (0, 0) for other, number, often in others)


def strange(rank: int, raises: bool) -> Weights:
    """Training whose loss is NaN, or raises, on one process."""
    of = small(24, 12)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if raises and dist.get_rank() == rank:
            raise RecoveryFailed("here")
        value = nn.functional.cross_entropy(outputs, targets)
        return value * math.nan if dist.get_rank() == rank else value

    model = Plain()
    recover(model, Lessons(of, of.build_model()), TAUGHT, score=lambda _: 0.0, seed=0, loss=loss)
    return weights_of(model)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_is_nan_for_one_ends_training_for_all(members: Team, rank: int) -> None:
    for error in members(strange, rank, False):
        assert isinstance(error, RecoveryFailed)
        assert "the training loss became nan" in str(error)


def dropped() -> Weights:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 4, bias=False))
    torch.manual_seed(team.seed_of(0))
    zeros = (model[1](torch.ones(1, 64)) == 0).numpy()
    return {"zeros": zeros, **trained(model, small(24, 12))}


def test_dropout_differs_from_process_to_process(members: Team) -> None:
    first, *others = members(dropped)
    assert not any(np.array_equal(first["zeros"], other.pop("zeros")) for other in others)
    assert all(same({"2.weight": first["2.weight"]}, other) for other in others)


def read_by_each() -> tuple[list[int], int]:
    of = small(12, 6, "dataset")
    train_data = Lessons(of, of.build_model())
    of.train.read.clear()
    sizes = [len(lesson.targets) for lesson in train_data.epoch(1, shared=True)]
    return of.train.read, sum(sizes)


def test_of_a_dataset_each_reads_its_part_alone(members: Team) -> None:
    items = [item for read, count in members(read_by_each) for item in read if count]
    assert sorted(items) == list(range(12))


def seconds() -> float:
    of = small(24, 12)
    return epoch_seconds(of.build_model(), Lessons(of, of.build_model()), None)


def test_the_time_of_an_epoch_is_that_of_the_team(members: Team) -> None:
    assert all(value > 0 for value in members(seconds))


PLAN = Plan(
    steps=(
        Step("channel_pruning", {"inner": {"pruning_ratio": 0.5}}),
        Step("quantization", {"stem": {"precision": "int8", "bits": 3}}),
    ),
    recovery=Recovery(epochs=4),
)


def carried_out(folder: str, trial: Trial) -> list[str]:
    """What lies in the run directory after a trial was trained; each process has one of its own."""
    own = Path(folder) / ("first" if team.leads() else f"other{dist.get_rank()}")
    (own / "artifacts").mkdir(parents=True, exist_ok=True)
    train(trial, Workbench(task, (PROFILE,), own))
    return sorted(path.name for path in (own / "artifacts").iterdir())


def test_the_first_alone_writes_weights_and_all_go_by_them(members: Team, tmp_path: Path) -> None:
    for trial in (Trial(1, PLAN, 0), Trial(1, PLAN, 0), Trial(2, replace(PLAN, start=PLAN), 0)):
        first, *others = members(carried_out, str(tmp_path), trial)
        assert isinstance(first, list), first.__notes__
        assert first
        assert not any(others)


def test_who_is_alone_has_no_team() -> None:
    assert (team.size(), team.leads(), team.seed_of(3), team.told(lambda: 4)) == (1, True, 3, 4)
    assert team.bounds(5, 1) == [slice(0, 5)]


def test_batches_are_divided_evenly_and_no_part_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "size", lambda: 3)
    for fewest in (1, 2):
        for count in range(fewest, 20):
            sizes = [bound.stop - bound.start for bound in team.bounds(count, fewest)]
            used = [size for size in sizes if size]
            assert sum(sizes) == count
            assert max(used) - min(used) <= 1
            assert min(used) >= fewest
            assert len(used) == min(3, count // fewest)
