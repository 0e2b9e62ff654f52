"""Training towards sparsity, before structure is removed."""

from __future__ import annotations

import torch
from torch import nn

from autocompress.plan import Recovery
from autocompress.recovery import team
from autocompress.recovery.compute import at_work
from autocompress.recovery.distillation import Loss, make_batch_loss
from autocompress.recovery.lessons import Lessons
from autocompress.recovery.training import train


def sparsify(model: nn.Module, lessons: Lessons, recovery: Recovery, *, seed: int, loss: Loss | None = None) -> None:
    """Train a model in place with a penalty, so that what is removed afterwards matters little.

    The weights of the last epoch stay, since they are the sparsest, not those that score best; inner layers are not
    taught.

    Args:
        model: Left in evaluation mode.
        lessons: Training data with the teacher's outputs.
        recovery: Its `sparsify_epochs`, penalty, rate, temperature and α.
        seed: For the order of the data and dropout.
        loss: On the true targets; see `recover`.

    Raises:
        RecoveryFailed: If the loss becomes infinite or NaN.
        InfeasiblePlan: If the model has nothing that the penalty acts on.

    References:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017.
    """
    torch.manual_seed(team.seed_of(seed))
    batch_loss = make_batch_loss(model, recovery, loss, penalized=True)
    epochs, rate = recovery.sparsify_epochs, recovery.learning_rate
    taught = recovery.alpha < 1
    with at_work(model):
        for _ in train(model, lessons, batch_loss, epochs=epochs, learning_rate=rate, seed=seed, taught=taught):
            pass
    model.eval()
