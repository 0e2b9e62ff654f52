"""Which cluster a search is to run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from autocompress.errors import InvalidInput


@dataclass(frozen=True)
class Cluster:
    """A cluster as asked for, for executors that run on one.

    Args:
        address: Where it is; None for the one that the environment names, or else one of this machine alone.
        gpus_per_trial: GPUs that training a trial takes, each of its trainers as many, which may be a part of one; 0
            trains on processors.
        trainers_per_trial: Processes that train a trial together, each on its part of every batch.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    address: str | None = None
    gpus_per_trial: float = 0.0
    trainers_per_trial: int = 1

    def __post_init__(self) -> None:
        if self.gpus_per_trial < 0 or (self.gpus_per_trial > 1 and self.gpus_per_trial % 1):
            raise InvalidInput(
                f"gpus per trial {self.gpus_per_trial:g}: expected a part of one, such as 0.25, or a whole number"
            )
        if self.trainers_per_trial < 1 or self.trainers_per_trial % 1:
            raise InvalidInput(f"trainers per trial {self.trainers_per_trial:g}: expected a whole number, 1 or more")


ALONE = Cluster()
"""What runs on no cluster has."""
