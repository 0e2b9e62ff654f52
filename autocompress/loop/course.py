"""What the parts of a search share while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.loop.calls import Calls
from autocompress.loop.findings import Findings
from autocompress.loop.telling import Telling
from autocompress.loop.times import Budget
from autocompress.loop.waiting import Waiting


@dataclass(frozen=True)
class Course:
    """A running search, as its parts see it.

    Args:
        findings: What it has found.
        calls: The workers.
        waiting: For them.
        budget: Its time.
        telling: Tells what happens.
    """

    findings: Findings
    calls: Calls
    waiting: Waiting
    budget: Budget
    telling: Telling
