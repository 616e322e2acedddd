"""Requests that were sent to a connector and wait for its answer.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Callable

from revconn._proto.registry_pb2 import ForwardRequest, ForwardResponse
from revconn.core.routing import Wanted
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import over_limit
from revconn.gateway.routes import Connection, Outgoing

__all__ = ["Dial", "PendingRequest", "PendingRequests", "Settle"]

Dial = Callable[[ForwardRequest], None]
Settle = Callable[[ForwardResponse], None]

_REMEMBERED = 10_000  # settled requests, by which a late answer is told from a made-up one


class PendingRequest:
    """One request: who is to answer it, who asked, and what is done with the answer.

    ``connection`` is the waiting room's as long as nobody is there to answer, ``held_since`` the
    instant on the loop's clock from which it waits there. ``dial`` takes the request when it goes
    to a backend; ``None``: it goes to connectors only. ``asker`` is the connector that asked;
    ``None`` for any other caller. ``lost`` says how the connection ended that it was sent on, or
    was to be, once it has.
    """

    __slots__ = (
        "asker",
        "connection",
        "dial",
        "held_since",
        "id",
        "lost",
        "method",
        "outgoing",
        "settle",
        "timer",
        "wanted",
    )

    def __init__(
        self,
        request_id: str,
        method: str,
        wanted: Wanted,
        connection: Connection,
        settle: Settle,
        *,
        dial: Dial | None = None,
        asker: Connection | None = None,
    ) -> None:
        self.id = request_id
        self.method = method
        self.wanted = wanted
        self.connection = connection
        self.settle = settle
        self.dial = dial
        self.asker = asker
        self.lost = ""
        self.held_since = 0.0
        self.outgoing: Outgoing | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def unsent(self) -> bytes | None:
        """The message, as long as nothing of it was written; ``None`` from then on."""
        return None if self.outgoing is None else self.outgoing.data


class PendingRequests:
    """Every request that waits for an answer, by its id.

    Each is settled at most once: by an answer, by a failure, or by being discarded because
    nobody waits any more. It does not end with the connection that it was sent on.
    """

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self._limit = limits.max_pending
        self._counters = counters
        self._requests: dict[str, PendingRequest] = {}
        self._settled: set[str] = set()
        self._settled_order: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def require_room(self, elsewhere: int = 0) -> None:
        """Raises :class:`Refused` unless one more may be added to these and those elsewhere."""
        if len(self._requests) + elsewhere >= self._limit:
            problem = f"{self._limit:,} calls wait for an answer"
            raise over_limit(self._counters, "max_pending", problem)

    def add(self, request: PendingRequest) -> None:
        """Expect an answer."""
        self._requests[request.id] = request
        request.connection.pending.add(request.id)
        if request.asker is not None:
            request.asker.asked.add(request.id)

    def move(self, request: PendingRequest, connection: Connection) -> None:
        """Expect the answer from ``connection`` from now on."""
        former = request.connection
        former.pending.discard(request.id)
        request.connection = connection
        connection.pending.add(request.id)
        former.end_if_drained()

    def get(self, request_id: str) -> PendingRequest | None:
        """The request, unless it is settled."""
        return self._requests.get(request_id)

    def all(self) -> tuple[PendingRequest, ...]:
        """All of them, oldest first."""
        return tuple(self._requests.values())

    def of(self, connection: Connection) -> list[PendingRequest]:
        """Those that were sent to ``connection``, or are to be."""
        return [self._requests[request_id] for request_id in connection.pending]

    def match(self, response: ForwardResponse, sender: Connection) -> PendingRequest | None:
        """The request that ``sender`` answers; ``None``, counted, when it may not or need not.

        The answer may come on another connection than the request went out on, as long as both
        showed the same API key: so a connector hands over from one connection to the next.
        """
        request = self._requests.get(response.request_id)
        if request is not None and request.connection.key == sender.key:
            return request
        sender.unmatched += 1
        said = f": {response.request_id[:64]!r}"
        if request is not None:
            self._counters.answers_foreign += 1
            sender.note("an answer to what another key was asked", said)
        elif response.request_id in self._settled:
            self._counters.answers_late += 1
        else:
            self._counters.answers_unknown += 1
            sender.note("an answer to what nobody asked", said)
        return None

    def settle(self, request: PendingRequest, response: ForwardResponse) -> None:
        """Give whoever asked the answer."""
        self._remove(request)
        request.settle(response)
        self._release(request)

    def discard(self, request: PendingRequest) -> None:
        """Forget a request whose caller no longer waits."""
        self._remove(request)
        self._release(request)

    def hand_over(self, request: PendingRequest) -> None:
        """Forget a request that somebody else answers; its asker still waits."""
        self._remove(request)
        request.connection.pending.discard(request.id)
        request.connection.end_if_drained()

    def _remove(self, request: PendingRequest) -> None:
        del self._requests[request.id]
        if request.timer is not None:
            request.timer.cancel()
        if request.outgoing is not None:
            request.connection.outbound.withdraw(request.outgoing)
        self._settled.add(request.id)
        self._settled_order.append(request.id)
        if len(self._settled_order) > _REMEMBERED:
            self._settled.discard(self._settled_order.popleft())

    def _release(self, request: PendingRequest) -> None:
        request.connection.pending.discard(request.id)
        request.connection.end_if_drained()
        if request.asker is not None:
            request.asker.asked.discard(request.id)
            request.asker.end_if_drained()
