"""What waits to be written to one connector: requests and responses first, then events."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from revconn.gateway.limits import Limits

__all__ = ["Outbound", "Outgoing"]

STALL_AFTER = 1.0  # seconds that a write may take before others are sent what comes next

_FEW = 64  # withdrawn messages that are not worth tidying up


class Outgoing:
    """A message on its way to the writer. ``data`` is ``None`` once it was written or withdrawn."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data: bytes | None = data


class Outbound:
    """Bounded, because a connector that does not read must not fill the gateway's memory.

    One task takes from it (:meth:`next`), anybody on the gateway's thread puts. Events that find
    no room push out the oldest events; everything else asks :attr:`is_full` first.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._messages: deque[Outgoing] = deque()
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._event_bytes = 0
        self._withdrawn = 0
        self._writing_since: float | None = None
        self._is_closed = False
        self._is_discarded = False
        self._awaited: asyncio.Future[None] | None = None
        self._relief: asyncio.Future[None] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._is_closed

    @property
    def is_full(self) -> bool:
        """Whether more would be more than the connector may leave unread."""
        return self._bytes >= self._limits.max_queued_bytes

    @property
    def is_crowded(self) -> bool:
        """Whether more waits than the calls to and from the connector account for."""
        return len(self._messages) > 2 * self._limits.max_pending_per_connection

    def is_stalled(self, now: float) -> bool:
        """Whether the connector has not taken what is being written to it for a while."""
        return self._writing_since is not None and now - self._writing_since > STALL_AFTER

    def put(self, data: bytes) -> Outgoing:
        """Queue a request, a response or a word of the gateway's own."""
        outgoing = Outgoing(data)
        if not self._is_closed:
            self._messages.append(outgoing)
            self._bytes += len(data)
            self._wake()
        return outgoing

    def withdraw(self, outgoing: Outgoing) -> None:
        """Take back a message that was put here and has not been written."""
        if outgoing.data is None:
            return
        self._bytes -= len(outgoing.data)
        outgoing.data = None
        self._withdrawn += 1
        if self._withdrawn > _FEW and self._withdrawn > len(self._messages) // 2:
            self._messages = deque(each for each in self._messages if each.data is not None)
            self._withdrawn = 0
            self._relieve()

    def put_event(self, data: bytes) -> int:
        """Queue an event behind all else; how many older ones had to make room for it."""
        if self._is_closed:
            return 0
        self._events.append(data)
        self._event_bytes += len(data)
        dropped = 0
        while (
            len(self._events) > self._limits.max_queued_events
            or self._event_bytes > self._limits.max_queued_bytes
        ):
            self._event_bytes -= len(self._events.popleft())
            dropped += 1
        self._wake()
        return dropped

    async def next(self) -> bytes | None:
        """Wait for a message to write; ``None`` when there will be none.

        The message before it is taken to be written by then.
        """
        self._writing_since = None
        while not self._is_discarded:
            data = self._take()
            if data is not None:
                self._writing_since = time.monotonic()
                return data
            if self._is_closed:
                break
            self._awaited = asyncio.get_running_loop().create_future()
            await self._awaited
        return None

    async def room(self) -> None:
        """Wait until it is not crowded any more."""
        while self.is_crowded and not self._is_closed:
            if self._relief is None or self._relief.done():
                self._relief = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._relief)

    def close(self) -> None:
        """Take nothing more; what waits is still written."""
        self._is_closed = True
        self._wake()
        self._relieve()

    def discard(self) -> None:
        """Write nothing more, either."""
        self._is_discarded = True
        self.close()

    def _take(self) -> bytes | None:
        while self._messages:
            outgoing = self._messages.popleft()
            if self._relief is not None and not self.is_crowded:
                self._relieve()
            data = outgoing.data
            if data is None:
                self._withdrawn -= 1
                continue
            outgoing.data = None
            self._bytes -= len(data)
            return data
        if self._events:
            event = self._events.popleft()
            self._event_bytes -= len(event)
            return event
        return None

    def _wake(self) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)

    def _relieve(self) -> None:
        if self._relief is not None and not self._relief.done():
            self._relief.set_result(None)
