"""What a search has found: written down first, then kept for the parts of the loop."""

from __future__ import annotations

from collections import Counter

from autocompress.probe import Sensitivity
from autocompress.record import Confirmation, DeviceScore, Record, Trial
from autocompress.run_directory import Line, RunConfig, RunDirectory


class Findings:
    """All that a search has found, on disk and at hand.

    Args:
        directory: Locked by the caller; holds the baseline's record and what earlier processes found.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.config: RunConfig = directory.config
        self.records = list(directory.records())
        self.confirmations = list(directory.confirmations())
        self.device_scores = list(directory.device_scores())
        self.sensitivities = list(directory.sensitivities())
        self._by_number = {record.number: record for record in self.records}
        self.baseline = self._by_number[0]
        self.statuses = Counter(record.status for record in self.records if record is not self.baseline)
        """How many trials ended how, the baseline left out."""

        self.renew_front()

    def begin(self, trial: Trial) -> None:
        """Write down that a trial begins."""
        self.directory.note_begun(trial)

    def add(self, *lines: Line) -> None:
        """Write something down, then keep it."""
        self.directory.append(*lines)
        for line in lines:
            match line:
                case Record():
                    self.records.append(line)
                    self._by_number[line.number] = line
                    self.statuses[line.status] += 1
                case Confirmation():
                    self.confirmations.append(line)
                case DeviceScore():
                    self.device_scores.append(line)
                case Sensitivity():
                    self.sensitivities.append(line)

    def renew_front(self) -> None:
        """Bring the front up to date, and the baseline as a point beside it; on disk too."""
        self.baseline_point, self.front = self.directory.write_front(
            self.records, self.confirmations, self.device_scores
        )

    def record(self, number: int) -> Record:
        """The record of a trial."""
        return self._by_number[number]
