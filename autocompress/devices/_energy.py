"""Energy of the processor by its own counters, as Linux tells them (RAPL); on most systems only root may read them.

A counter holds the energy of a whole package, all of its cores and whatever runs on them, and moves about every
millisecond. Idle power is in it, memory and accelerators are not.

References:
    Khan et al., "RAPL in Action: Experiences in Using RAPL for Power Measurements", 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
"""Where Linux has the counters."""


@dataclass(frozen=True)
class Counter:
    """The counter of one package.

    Args:
        path: File with microjoules since some moment.
        range_uj: Where it starts from 0 again.
    """

    path: Path
    range_uj: int

    def read(self) -> int:
        """Microjoules now."""
        return int(self.path.read_text())


def find_counters(folder: Path) -> tuple[Counter, ...]:
    """The counters of all packages; none where there are none, or one can't be read.

    Args:
        folder: `POWERCAP`, or one of the same form.
    """
    try:
        packages = [zone for zone in sorted(folder.glob("intel-rapl:*")) if _name(zone).startswith("package")]
        counters = tuple(
            Counter(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())) for zone in packages
        )
        read(counters)
    except (OSError, ValueError):  # not for this user, or not as Linux has it: then nothing is known of energy
        return ()
    return counters


def read(counters: Sequence[Counter]) -> tuple[int, ...]:
    """Microjoules by every counter now."""
    return tuple(counter.read() for counter in counters)


def spent_uj(counters: Sequence[Counter], before: Sequence[int], after: Sequence[int]) -> int:
    """Microjoules between two readings, as long as no counter went round more than once.

    >>> spent_uj([Counter(Path("energy_uj"), 1000)], [990], [15])
    25
    """
    turns = zip(counters, before, after, strict=True)
    return sum(end - start + (counter.range_uj if end < start else 0) for counter, start, end in turns)


def _name(zone: Path) -> str:
    """What a zone is: package-0, core, uncore, dram or psys, which holds the packages and more."""
    return (zone / "name").read_text().strip()
