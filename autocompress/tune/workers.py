"""What a search does beside its trials, on Ray: the baseline, looks at single changes, the front in the end."""

from __future__ import annotations

from pathlib import Path

from autocompress.executors.ray import RayExecutor
from autocompress.tune.handover import write_site


class Workers(RayExecutor):
    """Carries calls out on the cluster on which Tune carries out the trials, and tells these where that is.

    The calls wait for no CPU. The loop never has more at work than it has workers, trials among them, and Tune keeps
    the CPU of an ended trial for the next: who waited for one might wait for ever. They see the GPUs of their nodes, so
    that an epoch takes as long as in a trial that Tune gives one.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(workers, 1, takes_cpus=False)

    def begin(self, run: Path) -> None:
        """Let other nodes have the files of a run, and trials know how they get at them and at what measures."""
        super().begin(run)
        write_site(run, self.site)
