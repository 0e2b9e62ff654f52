"""Training around compression: towards sparsity before it, fine-tuning with distillation after it."""

from autocompress.recovery import team
from autocompress.recovery.batch_norm import recalibrate
from autocompress.recovery.compute import autocast, compute_name
from autocompress.recovery.distillation import Recovered, epoch_seconds, recover
from autocompress.recovery.lessons import Lessons
from autocompress.recovery.sparsifying import sparsify

__all__ = [
    "Lessons",
    "Recovered",
    "autocast",
    "compute_name",
    "epoch_seconds",
    "recalibrate",
    "recover",
    "sparsify",
    "team",
]
