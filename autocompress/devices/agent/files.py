"""The agent's files, each under the digest of its content."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from autocompress.devices.agent.refusals import BadContent, Busy, NotFound

MOST_UPLOADS = 4
"""Files that may be on their way in at one time."""

_DIGEST = re.compile("[0-9a-f]{64}")
_LOG = logging.getLogger(__name__)


class FileStore:
    """A folder of files that are named by their content, up to a quota; the one used longest ago goes first.

    Args:
        folder: Created if missing; unfinished files of an earlier agent are removed.
        quota_bytes: What all files together may take. The newest stays, however large.
    """

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        self.quota_bytes = quota_bytes
        self._files, self._incoming = folder / "files", folder / "incoming"
        self._uploads = 0
        self._files.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir()

    def path(self, digest: str) -> Path:
        """Where a file lies, which counts as a use of it.

        Raises:
            NotFound: If it is not there, or `digest` is not 64 hexadecimal digits.
        """
        path = self._place(digest)
        try:
            os.utime(path)
        except FileNotFoundError as error:
            raise NotFound(f"no file {digest}; send it first") from error
        return path

    def has(self, digest: str) -> bool:
        """True if a file is there; asking is no use of it."""
        return self._place(digest).exists()

    def link(self, digest: str, target: Path) -> None:
        """Give a file a second name, which outlives the removal of the first.

        Raises:
            NotFound: If it is not there.
        """
        source = self.path(digest)
        try:
            os.link(source, target)
        except OSError:  # a file system without links, as memory cards have
            shutil.copyfile(source, target)

    async def receive(self, digest: str, chunks: AsyncIterator[bytes]) -> None:
        """Write a file as it comes; one that is not whole leaves nothing.

        Raises:
            BadContent: If its content has another digest.
            Busy: If too many files are on their way.
        """
        target = self._place(digest)
        if self._uploads >= MOST_UPLOADS:
            raise Busy(f"{self._uploads} files are on their way; try again")
        self._uploads += 1
        handle, name = tempfile.mkstemp(dir=self._incoming)
        temporary = Path(name)
        try:
            found = hashlib.sha256()
            with os.fdopen(handle, "wb") as file:
                async for chunk in chunks:
                    found.update(chunk)
                    file.write(chunk)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())  # a board may lose its power at any time
            if found.hexdigest() != digest:
                raise BadContent(f"the content has the digest {found.hexdigest()}, not {digest}: truncated or changed")
            self._keep(temporary, target)
        finally:
            self._uploads -= 1
            temporary.unlink(missing_ok=True)

    def adopt(self, path: Path) -> str:
        """Move a file of our own in, and return its digest."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._keep(path, self._place(digest))
        return digest

    def _keep(self, source: Path, target: Path) -> None:
        os.replace(source, target)
        _LOG.info("file %s, %d bytes", target.name, target.stat().st_size)
        self._make_room(target)

    def _make_room(self, newest: Path) -> None:
        found = [(path, path.stat()) for path in self._files.iterdir()]
        total = sum(stat.st_size for _, stat in found)
        for path, stat in sorted(found, key=lambda one: one[1].st_mtime_ns):
            if total <= self.quota_bytes:
                break
            if path != newest:
                path.unlink()
                total -= stat.st_size

    def _place(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise NotFound(f"{digest[:80]!r} is no file: expected 64 hexadecimal digits in lower case")
        return self._files / digest
