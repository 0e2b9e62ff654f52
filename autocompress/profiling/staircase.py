"""The staircase: latency of a convolution against its channels, and the multiple that its steps have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

CANDIDATES = (1, 2, 4, 8, 16, 32)
"""Multiples that are told apart, each twice the one before it."""

COUNTS = (*range(8, 33), 34, 36, 38, 40)
"""Channel counts that are measured."""

FLATTEST = 0.3
"""Least exponent of latency against channels from which on steps can be told; it is 2 where MACs are all."""


@dataclass(frozen=True)
class Staircase:
    """Latency against channels, all measured in the same minutes.

    Args:
        latency_ms: Channels of a convolution, as many in as out, to the latency of a model made of some.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    latency_ms: Mapping[int, float]

    @property
    def exponent(self) -> float:
        """The power of the channels that latency grows with, from a straight line through the logarithms."""
        channels = np.log(np.array(list(self.latency_ms), float))
        latency = np.log(np.array(list(self.latency_ms.values()), float))
        return float(np.polyfit(channels, latency, 1)[0])

    def saved(self, multiple: int) -> tuple[float, float]:
        """What half a step less than a multiple saves, as a share of what fewer channels should save.

        About 1 where latency follows the channels, 0 where a half-empty step costs as much as a full one, and below
        0 where it costs more.

        Args:
            multiple: Twice the width of what is left out; an even number.

        Returns:
            The share, and its weight: how large what should be saved is against noise that is the same for all counts.

        Raises:
            ValueError: If no two channel counts were measured that tell.
        """
        half = multiple // 2
        pairs = [
            (fewer, fewer + half)
            for fewer in self.latency_ms
            if fewer % multiple == half and fewer + half in self.latency_ms
        ]
        if not pairs:
            raise ValueError(f"no counts around multiples of {multiple} among {list(self.latency_ms)}")
        # sums, not a mean of shares: pairs that should save much say more than those where noise is as large as that
        found = sum(np.log(self.latency_ms[more] / self.latency_ms[fewer]) for fewer, more in pairs)
        expected = self.exponent * sum(np.log(more / fewer) for fewer, more in pairs)
        return float(found / expected), float(expected**2 / len(pairs))

    @property
    def multiple(self) -> int | None:
        """The multiple that explains the steps best; None where latency hardly follows the channels.

        A machine with steps of 16 saves nothing by 24 channels instead of 32, 12 instead of 16, 10 instead of 12 or 9
        instead of 10, but all it should by 16 instead of 32. Each multiple so foresees 0 or 1 for all of these shares,
        and the one with the least squared error is taken. Counts that cost more than the next multiple, as those do
        for which a runtime has no fast layout, count like those that save nothing.
        """
        if self.exponent < FLATTEST:
            return None
        shares = {multiple: self.saved(multiple) for multiple in CANDIDATES[1:]}

        def error(candidate: int) -> float:
            return sum(
                weight * (min(max(share, 0.0), 1.0) - (multiple > candidate)) ** 2
                for multiple, (share, weight) in shares.items()
            )

        return min(CANDIDATES, key=error)
