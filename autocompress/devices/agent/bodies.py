"""Request bodies, read within limits of size and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from autocompress.devices.agent.refusals import TooLarge, TooSlow

LINGER_S = 5.0
"""How long the rest of a body that is refused is still read."""


@dataclass(frozen=True)
class Patience:
    """How slow a client may be.

    Args:
        grace_s: Seconds that any request may take, and that a connection may stand still.
        bytes_per_s: What a body must bring on average after that.
    """

    grace_s: float = 20.0
    bytes_per_s: float = 32 * 2**10


async def limited(chunks: AsyncIterator[bytes], most_bytes: int, patience: Patience) -> AsyncIterator[bytes]:
    """The chunks of a body, as they come.

    Raises:
        TooLarge: As soon as more than `most_bytes` have come.
        TooSlow: As soon as the client is behind.
    """
    start, received = time.monotonic(), 0
    while True:
        left_s = patience.grace_s + received / patience.bytes_per_s - (time.monotonic() - start)
        try:
            async with asyncio.timeout(left_s):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise TooSlow(
                f"{received} bytes in {time.monotonic() - start:.1f} s; expected {patience.bytes_per_s:g} bytes a "
                f"second after {patience.grace_s:g} s"
            ) from error
        if chunk is None:
            return
        received += len(chunk)
        if received > most_bytes:
            await discard(chunks)
            raise TooLarge(f"more than {most_bytes} bytes, which this agent takes at most")
        yield chunk


async def discard(chunks: AsyncIterator[bytes]) -> None:
    """Read the rest of a body that is refused, for a while: a client that is cut off as it sends may never see why."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            async for _ in chunks:
                pass


async def whole(chunks: AsyncIterator[bytes], most_bytes: int, patience: Patience) -> bytes:
    """A small body at once; see `limited`."""
    return b"".join([chunk async for chunk in limited(chunks, most_bytes, patience)])
