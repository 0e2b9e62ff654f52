"""What a section of the report is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from html import escape
from typing import ClassVar

from autocompress.record import Record
from autocompress.registry import Registry
from autocompress.report.facts import RunFacts


class Section(ABC):
    """One part of the page.

    A subclass sets `name`, `title` and `order` (low ones stand first) and writes `html`, where every text that comes
    from the run must go through `html.escape`.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    order: ClassVar[int]

    @abstractmethod
    def html(self, facts: RunFacts) -> str:
        """What stands below the title; empty text leaves the section out."""

    def __call__(self, facts: RunFacts) -> str:
        """The section with its title."""
        content = self.html(facts)
        heading = f"<h2>{escape(self.title)}</h2>\n" if self.title else ""
        return f'<section id="{self.name}">\n{heading}{content}\n</section>' if content else ""


SECTIONS: Registry[type[Section]] = Registry("report section", "autocompress.report.sections")


def numbers(records: tuple[Record, ...], limit: int = 12) -> str:
    """The numbers of some trials as text, cut short after `limit`."""
    shown = ", ".join(str(record.number) for record in records[:limit])
    return f"{shown}, …" if len(records) > limit else shown
