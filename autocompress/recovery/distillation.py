"""Fine-tuning a compressed model with the original as its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.plan import Recovery
from autocompress.recovery import team
from autocompress.recovery.compute import at_work, autocast
from autocompress.recovery.features import FeatureMatch, matched
from autocompress.recovery.lessons import Lesson, Lessons
from autocompress.recovery.penalties import penalty
from autocompress.recovery.training import BatchLoss, seconds_of_epoch, train
from autocompress.user_code import user_code

Loss = Callable[[Tensor, Tensor], Tensor]
Score = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Recovered:
    """What fine-tuning reached.

    Args:
        start: Score on validation data before the first epoch.
        score: On validation data with the weights that the model has now, of the torch model.
        epoch: The epoch of these weights, from 1; 0 if the best are kept and training never beat the start.
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
    before: int = 0,
    loss: Loss | None = None,
    features: Mapping[str, str] | None = None,
    folded: bool = False,
) -> Recovered:
    """Train a model in place on α·hard + (1 - α)·soft loss and leave the weights of its best or last epoch in it.

    Args:
        model: The compressed model; trained in place, in evaluation mode afterwards.
        lessons: Training data with the teacher's outputs.
        recovery: Epochs, at least 1, and everything else. The penalty acts if it has no epochs of its own.
        score: Score of a torch model, where training runs, on validation data; more is better. Of a team only the first
            process is asked.
        seed: For the order of the data and dropout.
        before: Epochs that the model has had; the rate goes on where one schedule over all of them would be.
        loss: On the true targets; by default cross-entropy for whole-number targets, else mean squared error.
        features: Layer of the model to layer of the teacher, for recoveries with a `feature_weight`; see `matched`.
        folded: True if batch norms have been folded into the model's layers.

    Raises:
        RecoveryFailed: If the loss becomes infinite or NaN.
        InfeasiblePlan: If inner layers are to be taught and there are none that fit.
    """
    torch.manual_seed(team.seed_of(seed))
    epochs = recovery.epochs
    # the best epoch lies late in a one-cycle schedule; scoring the early ones takes time and gives chance more choices
    first = epochs - 1 if recovery.keep == "last" else 2 * epochs // 3
    with ExitStack() as during:
        during.enter_context(at_work(model))
        start = team.told(lambda: score(model))
        best, weights = Recovered(start, start, 0, epochs), _snapshot(model)
        match = None
        if recovery.feature_weight:
            match = during.enter_context(matched(model, lessons, features or {}, folded=folded))
        batch_loss = make_batch_loss(model, recovery, loss, match=match, penalized=not recovery.sparsify_epochs)
        beside = match.parameters() if match else ()
        for epoch in train(
            model,
            lessons,
            batch_loss,
            epochs=epochs,
            learning_rate=recovery.learning_rate,
            seed=seed,
            before=before,
            taught=recovery.alpha < 1,
            beside=beside,
        ):
            if epoch <= first or not team.leads():
                continue
            reached = score(model)
            if reached >= best.score or recovery.keep == "last":
                best, weights = Recovered(start, reached, epoch, epochs), _snapshot(model)
        if team.leads():
            model.load_state_dict(weights)
        team.equalize(model)
    model.eval()
    return team.told(lambda: best)


def make_batch_loss(
    model: nn.Module,
    recovery: Recovery,
    loss: Loss | None,
    *,
    match: FeatureMatch | None = None,
    penalized: bool = False,
) -> BatchLoss:
    """The loss of a model on a batch: distillation, inner layers if they are matched, the penalty if there is one."""

    def batch_loss(lesson: Lesson) -> Tensor:
        total = distillation_loss(model, lesson, recovery, loss)
        if match is not None:
            total = total + recovery.feature_weight * match.loss(lesson)
        if penalized and recovery.penalty != "none":
            total = total + recovery.penalty_weight * penalty(model, recovery.penalty)
        return total

    return batch_loss


def distillation_loss(model: nn.Module, lesson: Lesson, recovery: Recovery, loss: Loss | None) -> Tensor:
    """α·hard + (1 - α)·soft loss of one batch.

    The soft part is the KL divergence of class distributions softened by the temperature, times T² so that its
    gradients do not shrink with T; for other targets the mean squared difference of the outputs. A lesson without the
    teacher's outputs, which an α of 1 does not need, has the hard part alone.

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
    if lesson.taught is None:
        return hard
    classes = classes and outputs.dim() > 1 and outputs.shape[1] > 1
    soft = _softened(outputs, lesson.taught, recovery.temperature) if classes else F.mse_loss(outputs, lesson.taught)
    return recovery.alpha * hard + (1 - recovery.alpha) * soft


def epoch_seconds(model: nn.Module, lessons: Lessons, loss: Loss | None, *, steps: int = 3) -> float:
    """Seconds that one epoch of recovery takes here, from a few real steps after a first one; trains `model`."""
    with at_work(model):
        return seconds_of_epoch(model, lessons, make_batch_loss(model, Recovery(), loss), steps=steps)


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
