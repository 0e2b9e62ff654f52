"""Getting accuracy back after compression: fine-tuning with distillation, batch norm recalibration."""

from autocompress.recovery.batch_norm import recalibrate
from autocompress.recovery.distillation import Recovered, epoch_seconds, recover
from autocompress.recovery.lessons import Lessons

__all__ = ["Lessons", "Recovered", "epoch_seconds", "recalibrate", "recover"]
