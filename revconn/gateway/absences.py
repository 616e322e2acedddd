"""Services whose last connector has just left, and where calls of them wait for the next one.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Callable

from revconn.core.gateway_side import GatewayConnection
from revconn.core.liveness import GatewayLiveness
from revconn.core.routing import Wanted
from revconn.gateway.limits import Limits
from revconn.gateway.routes import Connection, Outbound

__all__ = ["Absences"]

_MOST_NAMES = 10_000  # that are expected back at once: as many as one connector may register
_NOBODYS_KEY = -1


class Absences:
    """Which services are expected back.

    ``waiting_room`` stands in for their connectors: a connection that nobody reads. What waits is
    limited as if it waited for one connector, and moves on as from one that stalls.

    :param grace: seconds that a service is expected back, once its last connector has left.
    :param on_end: called when some are not expected any more.
    """

    def __init__(self, grace: float, limits: Limits, on_end: Callable[[], None]) -> None:
        self._grace = grace
        self._on_end = on_end
        self._ends: dict[str, float] = {}  # by name, on the loop's clock; the next one comes first
        self.waiting_room = Connection(
            id="",
            key=_NOBODYS_KEY,
            services=(),
            peer="",
            connected_at=0.0,
            protocol=GatewayConnection(
                GatewayLiveness(0.0, math.inf, math.inf), features=frozenset(), max_message_bytes=0
            ),
            outbound=Outbound(limits),
            end=lambda code, reason: None,
            max_pending=limits.max_pending_per_connection,
            max_message_bytes=limits.max_sent_message_bytes,
        )

    def begin(self, names: Iterable[str]) -> None:
        """The last connectors of these have left."""
        if not self._grace:
            return
        loop = asyncio.get_running_loop()
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
        self._on_end()
