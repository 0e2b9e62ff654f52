"""The one plain training loop, shared by recovery and by training towards sparsity."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.lr_scheduler import OneCycleLR

from autocompress.errors import RecoveryFailed
from autocompress.graph.constraints import Constraint, constraints
from autocompress.recovery import team
from autocompress.recovery.lessons import Lesson, Lessons

BatchLoss = Callable[[Lesson], Tensor]
"""The loss of the model in training on one batch."""

WEIGHT_DECAY = 1e-4


def train(
    model: nn.Module,
    lessons: Lessons,
    batch_loss: BatchLoss,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    before: int = 0,
    taught: bool = True,
    beside: Sequence[nn.Parameter] = (),
) -> Iterator[int]:
    """Train a model in place; yields after each epoch its number, from 1.

    One-cycle learning rate (Smith and Topin, "Super-convergence", 2019), AdamW, gradients clipped to norm 1, bf16
    autocast where it is known. Channels-last memory would be a little faster, but with several threads and
    8 channels torch 2.13 corrupts memory in the backward pass of its convolutions.

    Processes of a team begin with the weights of the first one, and have equal ones after every epoch; see `team`.

    Args:
        model: Trained in place; between epochs it may be put into any mode.
        lessons: Training data with the teacher's outputs.
        batch_loss: Runs the model on a batch.
        epochs: Passes over the data.
        learning_rate: Peak of the schedule.
        seed: For the order of the data.
        before: Epochs that the weights have had: the schedule goes on where one over all of them would be.
        taught: False for a loss that does not look at the teacher's outputs, which then are not computed.
        beside: Parameters that are trained too and are none of the model's.

    Raises:
        RecoveryFailed: If the loss or its gradient becomes infinite or NaN.
    """
    fewest = prepare(model)
    team.equalize(model, beside)
    optimizer = make_optimizer(model, learning_rate, beside)
    steps = epochs * lessons.steps
    schedule = one_cycle(optimizer, learning_rate, before * lessons.steps, before * lessons.steps + steps)
    scheduled = [one for one in constraints(model) if not one.settled]
    for epoch in range(1, epochs + 1):
        model.train()
        samples = 0
        batches = lessons.epoch(seed + epoch, fewest=fewest, taught=taught, shared=True)
        for index, lesson in enumerate(islice(batches, lessons.steps)):
            for constraint in scheduled:
                constraint.advance(((epoch - 1) * lessons.steps + index) / steps)
            _step(optimizer, batch_loss, lesson)
            schedule.step()
            samples += len(lesson.targets)
        team.average_statistics(model, samples)
        yield epoch


def one_cycle(optimizer: torch.optim.Optimizer, peak: float, first: int, steps: int) -> OneCycleLR:
    """A schedule over some steps, at the first one that is left of it."""
    rise = max(0.2, 1.5 / (steps + 1))  # the scheduler divides by zero where the rise takes exactly one step
    schedule = OneCycleLR(optimizer, peak, total_steps=steps + 1, pct_start=rise)
    if first:
        schedule.last_epoch = first - 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # no step of the optimizer comes before this one
            schedule.step()
    return schedule


def seconds_of_epoch(model: nn.Module, lessons: Lessons, batch_loss: BatchLoss, *, steps: int) -> float:
    """Seconds that one epoch takes here, from a few real steps after a first one; trains the model."""
    fewest = prepare(model)
    optimizer = make_optimizer(model, 1e-4)
    times = []
    for lesson in islice(lessons.epoch(0, fewest=fewest, shared=True), steps + 1):
        started = time.perf_counter()
        _step(optimizer, batch_loss, lesson)
        times.append(time.perf_counter() - started)
    counted = times[1:] or times
    return sum(counted) / len(counted) * lessons.steps


def prepare(model: nn.Module) -> int:
    """Set a model to training, frozen weights included; returns the fewest samples that a batch must have.

    What constraints hold frozen stays so: their own parameters, and free weights that one of them does not train.
    """
    held = _of_constraints(model)
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter not in held:
            parameter.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList) and any(map(_freezes, module)):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    model.train()
    return 2 if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()) else 1


def make_optimizer(
    model: nn.Module, learning_rate: float, beside: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """AdamW that decays weights, but neither biases and scales nor what constraints have learned."""
    held = _of_constraints(model)
    trained = [parameter for parameter in (*model.parameters(), *beside) if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.dim() > 1 and parameter not in held]
    kept = [parameter for parameter in trained if parameter.dim() <= 1 or parameter in held]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=WEIGHT_DECAY)


def _of_constraints(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that constraints brought along, such as codebooks; parameters are hashed by identity."""
    return {parameter for constraint in constraints(model) for parameter in constraint.parameters()}


def _freezes(module: nn.Module) -> bool:
    return isinstance(module, Constraint) and not module.trains_free_weight


def _step(optimizer: torch.optim.Optimizer, batch_loss: BatchLoss, lesson: Lesson) -> None:
    """One step of gradient descent.

    Raises:
        RecoveryFailed: If the loss or the norm of its gradient is not finite.
    """
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    loss = lesson.share * batch_loss(lesson) if lesson.share else None
    if loss is not None:
        loss.backward()  # type: ignore[no-untyped-call]
    value = team.averaged(trained, loss)
    if not math.isfinite(value):
        raise RecoveryFailed(f"the training loss became {value}; lower the learning rate of the recovery")
    norm = nn.utils.clip_grad_norm_(trained, 1.0)
    if not math.isfinite(norm.item()):
        raise RecoveryFailed(f"the gradient's norm became {norm.item()}; lower the learning rate of the recovery")
    optimizer.step()
