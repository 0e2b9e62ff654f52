"""Sections of the report; a section is one file of this folder, found by the registry."""

from autocompress.report.sections._base import SECTIONS, Section

__all__ = ["SECTIONS", "Section"]
