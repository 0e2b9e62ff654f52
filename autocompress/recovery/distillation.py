"""Fine-tuning a compressed model with the original as its teacher: one plain training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import RecoveryFailed
from autocompress.graph.constraints import constraints
from autocompress.plan import Recovery
from autocompress.recovery.lessons import Lesson, Lessons, autocast
from autocompress.user_code import user_code

Loss = Callable[[Tensor, Tensor], Tensor]
Score = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Recovered:
    """What fine-tuning reached.

    Args:
        start: Score on validation data before the first epoch.
        score: Best score on validation data over the epochs, of the torch model.
        epoch: The epoch whose weights the model has now, from 1; 0 if training never beat the start.
        epochs: Epochs that were run.
    """

    start: float
    score: float
    epoch: int
    epochs: int


def recover(
    model: nn.Module,
    lessons: Lessons,
    recovery: Recovery,
    *,
    score: Score,
    seed: int,
    loss: Loss | None = None,
    fidelity: float = 1.0,
) -> Recovered:
    """Train a model in place on α·hard + (1 - α)·soft loss and leave the weights of its best epoch in it.

    One-cycle learning rate (Smith and Topin, "Super-convergence", 2019), AdamW, gradients clipped to norm 1, bf16
    autocast where the processor has it. Channels-last memory would be a little faster, but with several threads and
    8 channels torch 2.13 corrupts memory in the backward pass of its convolutions.

    Args:
        model: The compressed model; trained in place, in evaluation mode afterwards.
        lessons: Training data with the teacher's outputs.
        recovery: Epochs, rate, temperature and α.
        score: Score of a torch model on validation data; more is better.
        seed: For the order of the data and dropout.
        loss: On the true targets; by default cross-entropy for whole-number targets, else mean squared error.
        fidelity: Share of the epochs to run, in (0, 1].

    Raises:
        RecoveryFailed: If the loss becomes infinite or NaN.
    """
    epochs = max(1, round(recovery.epochs * fidelity))
    torch.manual_seed(seed)
    fewest = _prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recovery.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recovery.learning_rate, total_steps=epochs * lessons.steps + 1, pct_start=0.2
    )
    start = score(model)
    best, weights = Recovered(start, start, 0, epochs), _snapshot(model)
    scheduled, steps = [one for one in constraints(model) if not one.settled], epochs * lessons.steps
    for epoch in range(1, epochs + 1):
        model.train()
        for index, lesson in enumerate(islice(lessons.epoch(seed + epoch, fewest=fewest), lessons.steps)):
            for constraint in scheduled:
                constraint.advance(((epoch - 1) * lessons.steps + index) / steps)
            _step(model, optimizer, distillation_loss(model, lesson, recovery, loss))
            schedule.step()
        if epoch <= epochs // 2:
            continue  # the best epoch lies late in a one-cycle schedule; scoring the early ones costs a third more
        reached = score(model)
        if reached >= best.score:
            best, weights = Recovered(start, reached, epoch, epochs), _snapshot(model)
    model.load_state_dict(weights)
    model.eval()
    return best


def distillation_loss(model: nn.Module, lesson: Lesson, recovery: Recovery, loss: Loss | None) -> Tensor:
    """α·hard + (1 - α)·soft loss of one batch.

    The soft part is the KL divergence of class distributions softened by the temperature, times T² so that its
    gradients do not shrink with T; for other targets the mean squared difference of the outputs.

    References:
        Hinton et al., "Distilling the knowledge in a neural network", 2015.
    """
    classes = not lesson.targets.is_floating_point()
    with autocast():
        outputs: Tensor = model(*lesson.inputs)
    outputs = outputs.float()
    function = loss or (F.cross_entropy if classes else _squared_error)
    hard = user_code(
        lambda: function(
            outputs, _column_dropped(lesson.targets, outputs) if loss is None and classes else lesson.targets
        ),
        f"computing the loss of outputs {tuple(outputs.shape)} on train targets {tuple(lesson.targets.shape)}",
    )
    classes = classes and outputs.dim() > 1 and outputs.shape[1] > 1
    soft = _softened(outputs, lesson.taught, recovery.temperature) if classes else F.mse_loss(outputs, lesson.taught)
    return recovery.alpha * hard + (1 - recovery.alpha) * soft


def epoch_seconds(model: nn.Module, lessons: Lessons, loss: Loss | None, *, steps: int = 3) -> float:
    """Seconds that one epoch of recovery takes here, from a few real steps after a first one; trains `model`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    fewest = _prepare(model)
    times = []
    for lesson in islice(lessons.epoch(0, fewest=fewest), steps + 1):
        started = time.perf_counter()
        _step(model, optimizer, distillation_loss(model, lesson, Recovery(), loss))
        times.append(time.perf_counter() - started)
    counted = times[1:] or times
    return sum(counted) / len(counted) * lessons.steps


def _prepare(model: nn.Module) -> int:
    """Set a model to training, frozen weights included; returns the fewest samples that a batch must have."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    model.train()
    return 2 if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()) else 1


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of gradient descent.

    Raises:
        RecoveryFailed: If the loss is not finite.
    """
    if not math.isfinite(loss.item()):
        raise RecoveryFailed(f"the training loss became {loss.item()}; lower the learning rate of the recovery")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _softened(outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Divergence of classes (samples, classes, …), the mean over samples and places."""
    student = F.log_softmax(_rows(outputs) / temperature, dim=1)
    teacher = F.log_softmax(_rows(taught) / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _column_dropped(targets: Tensor, outputs: Tensor) -> Tensor:
    """Classes (samples, 1) as (samples,)."""
    return targets.squeeze(1) if targets.dim() == outputs.dim() and targets.shape[1] == 1 else targets


def _rows(outputs: Tensor) -> Tensor:
    """(samples, classes, …) as (samples × places, classes)."""
    return outputs.movedim(1, -1).flatten(0, -2)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets.reshape(outputs.shape))


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
