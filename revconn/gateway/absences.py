"""Services whose last connector has just left, and how much waits for the next one.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Callable

from revconn.core.routing import Wanted
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import over_limit

__all__ = ["Absences"]

_MOST_NAMES = 10_000  # that are expected back at once: as many as one connector may register


class Absences:
    """Which services are expected back, because their last connector has just left.

    :param grace: seconds that a service is expected back, once its last connector has left.
    Calls of them wait for whoever comes first with that service, ``held`` by their ids with the
    bytes of each; they are limited as if they waited for one connector.

    :param get_loop: whose clock and timers they go by.
    """

    def __init__(
        self,
        grace: float,
        limits: Limits,
        counters: Counters,
        get_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.get_running_loop,
    ) -> None:
        self._grace = grace
        self._limits = limits
        self._counters = counters
        self.on_end: list[Callable[[], None]] = []  # called when some are not expected any more
        self._get_loop = get_loop
        self._ends: dict[str, float] = {}  # by name, on the loop's clock; the next one comes first
        self.held: dict[str, int] = {}
        self._held_bytes = 0

    def begin(self, names: Iterable[str]) -> None:
        """The last connectors of these have left."""
        if not self._grace:
            return
        loop = self._get_loop()
        end = loop.time() + self._grace
        for name in names:
            self._ends.pop(name, None)
            self._ends[name] = end
        while len(self._ends) > _MOST_NAMES:
            del self._ends[next(iter(self._ends))]
        loop.call_at(end, self._end, end)

    def expects(self, wanted: Wanted) -> bool:
        """Whether a service by one of those names may come back any moment."""
        return any(name in self._ends for name in wanted.names)

    @property
    def has_room(self) -> bool:
        """Whether one more call may wait."""
        return (
            len(self.held) < self._limits.max_pending_per_connection
            and self._held_bytes < self._limits.max_queued_bytes
        )

    def require_room(self) -> None:
        """Raises :class:`Refused` unless one more call may wait."""
        if self.has_room:
            return
        problem = "too much waits for services to come back"
        if self._held_bytes >= self._limits.max_queued_bytes:
            raise over_limit(self._counters, "max_queued_bytes", problem)
        problem = f"{problem}: {self._limits.max_pending_per_connection:,} calls"
        raise over_limit(self._counters, "max_pending_per_connection", problem)

    def hold(self, request_id: str, size: int) -> None:
        """A call waits."""
        self.held[request_id] = size
        self._held_bytes += size

    def release(self, request_id: str) -> None:
        """It does not wait any more, if it did."""
        self._held_bytes -= self.held.pop(request_id, 0)

    def end_all(self) -> None:
        """Expect nobody any more."""
        self._grace = 0.0
        self._ends.clear()

    def _end(self, end: float) -> None:
        while self._ends:
            name = next(iter(self._ends))
            if self._ends[name] > end:
                break
            del self._ends[name]
        for listener in self.on_end:
            listener()
