"""Agents of equal machines: which of them does a job, and what happens when one is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from autocompress.devices._client import AgentBusy, AgentClient, AgentForgot, AgentLost, AgentRefuses
from autocompress.duration import format_duration
from autocompress.errors import DeviceUnavailable, MeasurementError
from autocompress.profile import HardwareProfile

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Between two rounds of asking all machines; the pause doubles."""

SILENT_S = 2.0
"""How long machines are waited for until it is told."""

LEFT_ALONE_S = 30.0
"""How long a machine that was lost is not asked again, where there are others."""

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """A machine's turn to do a job.

    Args:
        client: Of its agent.
        only_if_free: True not to wait in its queue.
        left_s: Seconds that may still be waited.
    """

    client: AgentClient
    only_if_free: bool
    left_s: float


@dataclass
class _Notes:
    """What machines said in one search for a free one, by address, and which of them want nothing of this client."""

    said: dict[str, str] = field(default_factory=dict)
    refusing: set[str] = field(default_factory=set)


class Pool:
    """Machines of one kind.

    Args:
        profile: With their addresses, and how long to wait for one that is there and has time.
        tell: Told when a machine is lost, refuses, or is back.
    """

    def __init__(self, profile: HardwareProfile, *, tell: Callable[[str], None]) -> None:
        self._name, self._addresses, self._certificate = profile.name, profile.addresses, profile.certificate
        self._wait_s, self._tell = profile.wait_s, tell
        self._left_alone_until: dict[str, float] = {}
        self._missing: set[str] = set()
        """Those that did not answer, or refused, when they were asked last."""

    def somewhere(self, work: Callable[[Turn], T]) -> T:
        """Do something on the first machine that can, until one has done it or the wait is over.

        Args:
            work: Raises AgentLost or AgentRefuses where another machine may do it.

        Raises:
            DeviceUnavailable: If none can; names the addresses and what each said.
        """
        start, pause_s, notes, is_told = time.monotonic(), FIRST_PAUSE_S, _Notes(), False
        with ExitStack() as stack:
            clients = [
                stack.enter_context(AgentClient(address, certificate=self._certificate)) for address in self._addresses
            ]
            while True:
                for client, only_if_free in self._by_queue(clients, notes):
                    left_s = max(0.0, self._wait_s - (time.monotonic() - start))
                    with self._noted(client, notes):
                        return self._done(work, Turn(client, only_if_free, left_s))
                waited_s = time.monotonic() - start
                if len(notes.refusing) == len(clients) or waited_s >= self._wait_s:
                    raise DeviceUnavailable(self._none_left(notes, waited_s))
                if waited_s >= SILENT_S and not is_told:
                    is_told = True
                    self._tell(f"machines of {self._name!r} are waited for, up to {format_duration(self._wait_s)}")
                time.sleep(min(pause_s, self._wait_s - waited_s))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _done(self, work: Callable[[Turn], T], turn: Turn) -> T:
        """What comes of a turn; a machine is there, too, that says why the work can't be done."""
        try:
            done = work(turn)
        except MeasurementError:
            self._note_there(turn.client.address)
            raise
        self._note_there(turn.client.address)
        return done

    def _by_queue(self, clients: Sequence[AgentClient], notes: _Notes) -> Iterator[tuple[AgentClient, bool]]:
        """Those that answer, the least busy first, and whether to go there only if it is free; the rest is noted.

        Of several, first each that is free is tried, then the queue of each: others may have taken what was free a
        moment ago. Those that were lost a moment ago are asked last, and only if the others did not help: asking takes
        seconds where a machine is off.
        """
        until = dict(self._left_alone_until)
        lost = [client for client in clients if until.get(client.address, 0.0) > time.monotonic()]
        for group in ([client for client in clients if client not in lost], lost):
            jobs: dict[str, int] = {}
            for client in group:
                if client.address not in notes.refusing:
                    with self._noted(client, notes):
                        jobs[client.address] = client.health().jobs
            there = sorted((client for client in group if client.address in jobs), key=lambda one: jobs[one.address])
            if len(clients) > 1:
                yield from ((client, True) for client in there if not jobs[client.address])
            for client in there:
                is_lost_since = self._left_alone_until.get(client.address) != until.get(client.address)
                if not is_lost_since and client.address not in notes.refusing:
                    yield client, False

    @contextmanager
    def _noted(self, client: AgentClient, notes: _Notes) -> Iterator[None]:
        """Write down that an agent was lost or refuses, and go on; one that was started anew is not left alone."""
        try:
            yield
        except AgentLost as error:
            notes.said[client.address] = str(error)
            if not isinstance(error, AgentBusy | AgentForgot):
                self._left_alone_until[client.address] = time.monotonic() + LEFT_ALONE_S
            if not isinstance(error, AgentBusy):
                self._note_missing(client.address, f"is lost: {error}")
        except AgentRefuses as error:
            notes.said[client.address] = str(error)
            notes.refusing.add(client.address)
            self._note_missing(client.address, f"refuses: {error}")

    def _note_missing(self, address: str, why: str) -> None:
        if address not in self._missing:
            self._missing.add(address)
            self._tell(f"machine {address} {why}")

    def _note_there(self, address: str) -> None:
        if address in self._missing:
            self._missing.remove(address)
            self._tell(f"machine {address} is back")

    def _none_left(self, notes: _Notes, waited_s: float) -> str:
        each = "; ".join(f"{address}: {notes.said.get(address, 'busy')}" for address in self._addresses)
        is_any_lost = any(address not in notes.refusing for address in self._addresses)
        advice = "; start the agent there: autocompress device serve" if is_any_lost else ""
        return (
            f"device {self._name!r}: no machine of it could be used in {waited_s:.1f} s of at most {self._wait_s:g} s "
            f"({each}){advice}"
        )
