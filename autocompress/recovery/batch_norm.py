"""Taking the statistics of batch norms anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from autocompress.data import take
from autocompress.errors import InvalidInput
from autocompress.recovery.compute import at_work, tensors

if TYPE_CHECKING:
    from autocompress.task import Task


def recalibrate(model: nn.Module, task: Task, *, batches: int = 8, seed: int = 0) -> None:
    """Replace the running statistics of every batch norm by means over some training batches.

    Pruned and factorized layers shift what follows them; fresh statistics give back much of the accuracy without a
    gradient step. The model is left in evaluation mode.

    Raises:
        InvalidInput: If the data come one sample a batch, of which no statistics can be taken.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    used = 0
    with at_work(model), torch.no_grad():
        for batch in take(task.split("train"), max(2, task.batch_size), batches, seed=seed):
            if len(batch) > 1:
                model(*tensors(batch.inputs))
                used += 1
    if not used:
        raise InvalidInput(
            "train data: no batch of 2 or more samples, which batch norm needs for its statistics; use larger batches"
        )
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    model.eval()
