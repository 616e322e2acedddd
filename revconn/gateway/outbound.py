"""What waits to be sent to one connector. Everything here belongs to the gateway's thread."""

from __future__ import annotations

from collections import deque
from typing import Callable

from revconn.core.rope import Data
from revconn.gateway.limits import Limits

__all__ = ["Outbound", "Outgoing"]

STALL_AFTER = 1.0  # seconds that a write may take before others are sent what comes next

_FEW = 64  # withdrawn messages that are not worth tidying up


class Outgoing:
    """A request on its way to the writer. ``data`` is ``None`` once it was written or withdrawn."""

    __slots__ = ("data",)

    def __init__(self, data: Data) -> None:
        self.data: Data | None = data


class Outbound:
    """Bounded, because a connector that does not read must not fill the gateway's memory.

    Its stream takes from it, as there is room (:meth:`take`), anybody on the gateway's thread puts.
    Events that find no room push out the oldest events; everything else asks :attr:`is_full` first.

    :ivar on_put: called when there is something to take; not for more behind it, since whoever
        takes comes until all is taken.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.on_put: Callable[[], None] = _nothing
        self._messages: deque[Outgoing | Data] | None = None  # an empty deque takes 600 bytes
        self._events: deque[bytes] | None = None
        self._bytes = 0
        self._event_bytes = 0
        self._withdrawn = 0
        self._writing_since: float | None = None
        self._is_closed = False
        self.is_discarded = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._is_closed

    @property
    def has_more(self) -> bool:
        """Whether there is something to write."""
        return bool(self._messages or self._events) and not self.is_discarded

    @property
    def is_full(self) -> bool:
        """Whether more would be more than the connector may leave unread."""
        return self._bytes >= self._limits.max_queued_bytes

    @property
    def is_crowded(self) -> bool:
        """Whether more waits than the calls to and from the connector account for."""
        if self._messages is None:
            return False
        return len(self._messages) > 2 * self._limits.max_pending_per_connection

    @property
    def slack(self) -> int:
        """How many messages more, at least one, make it crowded."""
        waiting = 0 if self._messages is None else len(self._messages)
        return max(1, 2 * self._limits.max_pending_per_connection - waiting + 1)

    def is_stalled(self, now: float) -> bool:
        """Whether the connector has not taken what is being written to it for a while."""
        return self._writing_since is not None and now - self._writing_since > STALL_AFTER

    def is_ready(self, now: float) -> bool:
        """Whether more would be written without delay."""
        since = self._writing_since
        is_stalled = since is not None and now - since > STALL_AFTER
        return self._bytes < self._limits.max_queued_bytes and not is_stalled

    def put(self, data: Data) -> None:
        """Queue a response or a word of the gateway's own."""
        self._put(data, len(data))

    def put_request(self, data: Data) -> Outgoing:
        """Queue a request, which may be withdrawn before it was written."""
        outgoing = Outgoing(data)
        self._put(outgoing, len(data))
        return outgoing

    def _put(self, message: Outgoing | Data, size: int) -> None:
        if self._is_closed:
            return
        if self._messages:
            self._messages.append(message)
        else:
            if self._messages is None:
                self._messages = deque()
            self._messages.append(message)
            self.on_put()
        self._bytes += size

    def withdraw(self, outgoing: Outgoing) -> None:
        """Take back a request that was put here and has not been written."""
        if outgoing.data is None or self._messages is None:
            return
        self._bytes -= len(outgoing.data)
        outgoing.data = None
        self._withdrawn += 1
        # A deque cannot drop from its middle: what is withdrawn stays, without its data, until it
        # would be written. Callers who give up by the thousand on a connector that does not read
        # would fill it, so it is rebuilt when half of it is empty: a constant time for each of
        # them, on average.
        if self._withdrawn > _FEW and self._withdrawn > len(self._messages) // 2:
            left = (each for each in self._messages if _data_of(each) is not None)
            self._messages = deque(left)
            self._withdrawn = 0
            self.on_put()  # it may not be crowded any more

    def put_event(self, data: bytes) -> int:
        """Queue an event behind all else; how many older ones had to make room for it."""
        if self._is_closed:
            return 0
        if self._events is None:
            self._events = deque()
        # Events are delivered at most once and go behind all else: they delay no request, and the
        # newest are worth more than the oldest.
        self._events.append(data)
        self._event_bytes += len(data)
        dropped = 0
        while (
            len(self._events) > self._limits.max_queued_events
            or self._event_bytes > self._limits.max_queued_bytes
        ):
            self._event_bytes -= len(self._events.popleft())
            dropped += 1
        self.on_put()
        return dropped

    def take(self, room: int) -> list[Data]:
        """The messages to write next: one, and as many more as go into ``room`` bytes."""
        # From here on they are written: whether they arrived cannot be known, and so nobody else is
        # sent them.
        taken: list[Data] = []
        if self.is_discarded:
            return taken
        waiting = self._messages
        while waiting and room > 0:
            message = waiting.popleft()
            if not isinstance(message, Outgoing):
                data = message
            elif message.data is not None:
                data, message.data = message.data, None
            else:
                self._withdrawn -= 1
                continue
            taken.append(data)
            size = len(data)
            self._bytes -= size
            room -= size
        while self._events and room > 0:
            event = self._events.popleft()
            self._event_bytes -= len(event)
            taken.append(event)
            room -= len(event)
        return taken

    def note_progress(self, waiting_since: float | None, *, moved: bool) -> None:
        """Some was ``moved`` to the network just now, or none; since when the rest waits."""
        if waiting_since is None or moved or self._writing_since is None:
            self._writing_since = waiting_since

    def close(self) -> None:
        """Take nothing more; what waits is still written."""
        self._is_closed = True
        self.on_put()

    def discard(self) -> None:
        """Write nothing more, either."""
        self.is_discarded = True
        self.close()


def _data_of(message: Outgoing | Data) -> Data | None:
    return message.data if isinstance(message, Outgoing) else message


def _nothing() -> None:
    pass
