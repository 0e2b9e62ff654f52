"""An artifact: the file that ships."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict


@dataclass(frozen=True)
class Artifact:
    """One model file, known by its content.

    Args:
        path: Where it lies.
        sha256: Digest of its content.
        size_bytes: Its size on disk.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    path: str
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> Artifact:
        """The artifact in a file."""
        content = path.read_bytes()
        return cls(str(path), hashlib.sha256(content).hexdigest(), len(content))
