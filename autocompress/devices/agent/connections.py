"""HTTP connections that do not wait forever for their client."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from autocompress.devices.agent.bodies import Patience


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, dropping clients that take too long over a request's head or do not read what they asked for.

    uvicorn limits only the pause between requests. Bodies have limits of their own, in `bodies`.
    """

    patience: ClassVar[Patience] = Patience()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come; more of a head that is not whole does not win time."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        else:
            self._stop_waiting()

    def pause_writing(self) -> None:
        """The client does not read: wait a while."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.patience.grace_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self.patience.grace_s, self._drop)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _drop(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()


def impatient(patience: Patience) -> type[ImpatientProtocol]:
    """The protocol with a patience of one's own."""
    return type("ImpatientProtocol", (ImpatientProtocol,), {"patience": patience})
