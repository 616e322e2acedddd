"""The way of a request to the connector whose turn it is, and of its answer back.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import time

from revconn._proto.registry_pb2 import CancelRequest, ConnectionMessage, ForwardResponse
from revconn.core.features import CANCEL
from revconn.core.status import StatusCode
from revconn.gateway.counters import Counters
from revconn.gateway.door import STOPPING
from revconn.gateway.failures import NobodyServes, Refused, failure, over_limit
from revconn.gateway.joining import ChunkedAnswers
from revconn.gateway.limits import Limits
from revconn.gateway.pending import PendingRequest, PendingRequests, Settle
from revconn.gateway.registry import Connection, Registry

__all__ = ["Forwarding"]


class Forwarding:
    """Sends requests on, from callers of any kind, and settles each once.

    A request belongs to nobody until it is written to a connector's stream: up to then it may
    still go to another one. From then on it waits for its answer until its deadline, on whichever
    connection of that connector's key the answer comes.
    """

    def __init__(self, registry: Registry, limits: Limits, counters: Counters) -> None:
        self._registry = registry
        self._limits = limits
        self._counters = counters
        self._pending = PendingRequests(limits, counters)
        self._chunked = ChunkedAnswers(limits, counters)
        self._is_leaving = False

    def __len__(self) -> int:
        """How many requests wait for an answer."""
        return len(self._pending)

    @property
    def waiting_callers(self) -> int:
        """How many of them do not come from a connector."""
        return sum(request.asker is None for request in self._pending.all())

    def admit(self, request_id: str, asker: Connection) -> None:
        """Raises :class:`Refused` unless ``asker`` may make a call of that id now."""
        if self._is_leaving:
            raise Refused(StatusCode.UNAVAILABLE, STOPPING)
        if request_id in self._pending or request_id in asker.asked:
            problem = f"a request with the id {request_id[:64]!r} is pending already"
            raise Refused(StatusCode.ALREADY_EXISTS, problem)
        if len(asker.asked) >= asker.max_pending:
            problem = f"the connector has {asker.max_pending:,} calls of its own under way"
            raise over_limit(self._counters, "max_pending_per_connection", problem)

    def submit(
        self,
        message: ConnectionMessage,
        service: str,
        deadline: float,
        settle: Settle,
        asker: Connection | None = None,
    ) -> None:
        """Send a request; ``settle`` gets the answer, or a failure, before long.

        ``deadline`` is on the loop's clock, ``asker`` a connector that was admitted. Raises
        :class:`Refused` when it cannot be sent; :class:`NobodyServes` when nobody is there to
        take it.
        """
        self._pending.require_room()
        connection = self._registry.take_turn(service, time.monotonic())
        if connection is None:
            self._counters.calls_unserved += 1
            raise NobodyServes(service)
        self._require_room_at(connection)
        data = message.SerializeToString()
        if len(data) > connection.max_message_bytes:
            limit = connection.max_message_bytes
            problem = f"a request of {len(data):,} bytes exceeds the connector's {limit:,}"
            raise over_limit(self._counters, "max_sent_message_bytes", problem)
        request = PendingRequest(message.request.request_id, service, connection, settle, asker)
        request.outgoing = connection.outbound.put(data)
        request.timer = asyncio.get_running_loop().call_at(deadline, self._expire, request)
        self._pending.add(request)
        self._counters.calls += 1

    def answer(self, response: ForwardResponse, sender: Connection) -> None:
        """Take an answer, or a chunk of one, that came on ``sender``."""
        request = self._pending.match(response, sender)
        if request is None:
            return
        if response.HasField("response_stream_info") and response.response_stream_info.is_streamed:
            try:
                whole = self._chunked.add(response, sender)
            except Refused as refused:
                self._tell(request, refused.message)
                self._settle(request, refused.response(request.id))
                return
            if whole is None:
                return
            response = whole
        self._counters.calls_answered += 1
        self._settle(request, response)

    def give_up(self, request_id: str, reason: str) -> None:
        """Nobody waits for that answer any more; one that has come is none of its business."""
        request = self._pending.get(request_id)
        if request is not None:
            self._counters.calls_given_up += 1
            self._tell(request, reason)
            self._chunked.forget(request_id)
            self._pending.discard(request)

    def cancel(self, request_id: str, asker: Connection) -> bool:
        """Give up a call of ``asker``'s own, as it wishes; whether there is one."""
        if request_id not in asker.asked:
            return False
        self.give_up(request_id, "the caller cancelled the call")
        return True

    def drain(self, connection: Connection, departure: str) -> None:
        """Send ``connection`` nothing new, and what it has not been sent to others that can."""
        self._registry.drain(connection, departure)
        self.relieve(connection)

    def relieve(self, connection: Connection) -> None:
        """Send to others what ``connection`` has not been sent, as far as there are any."""
        for request in self._pending.of(connection):
            self._reroute(request, to_stalled=False)

    def relieve_stalled(self) -> None:
        """Send to others what waits for a connector that does not read."""
        now = time.monotonic()
        for connection in self._registry.connections:
            if connection.pending and connection.outbound.is_stalled(now):
                self.relieve(connection)

    def connection_ended(self, connection: Connection, reason: str) -> None:
        """``connection`` is out of the registry: nothing is written to it or read from it."""
        for request_id in tuple(connection.asked):
            self.give_up(request_id, "the caller's connection ended")
        self._chunked.forget_from(connection)
        for request in self._pending.of(connection):
            request.lost = f"its connection ended: {reason}"
            if request.unsent is not None and not self._reroute(request, to_stalled=True):
                self._counters.calls_lost += 1
                problem = f"{request.lost}; no other connector serves {request.service} now"
                self._settle(request, failure(StatusCode.UNAVAILABLE, problem, request.id))

    def leave(self) -> None:
        """Take no call of a connector any more; others are refused at the door."""
        self._is_leaving = True

    def fail_all(self, code: StatusCode, message: str) -> None:
        """Settle everything that waits."""
        for request in self._pending.all():
            self._settle(request, failure(code, message, request.id))

    def _require_room_at(self, connection: Connection) -> None:
        if connection.has_room:
            return
        problem = "the connectors of the service do not keep up"
        if connection.outbound.is_full:
            raise over_limit(self._counters, "max_queued_bytes", problem)
        problem = f"{problem}: {connection.max_pending:,} calls wait for each"
        raise over_limit(self._counters, "max_pending_per_connection", problem)

    def _reroute(self, request: PendingRequest, *, to_stalled: bool) -> bool:
        """Send a request to another connector, unless it was written; whether that was done."""
        data = request.unsent
        if data is None or request.outgoing is None:
            return False
        now = time.monotonic()
        connection = self._registry.take_turn(request.service, now)
        if connection is None or connection is request.connection:
            return False
        if not (connection.is_ready(now) or (to_stalled and connection.has_room)):
            return False
        if len(data) > connection.max_message_bytes:
            return False
        request.connection.outbound.withdraw(request.outgoing)
        request.outgoing = connection.outbound.put(data)
        request.lost = ""
        self._pending.move(request, connection)
        self._counters.calls_rerouted += 1
        return True

    def _expire(self, request: PendingRequest) -> None:
        self._counters.calls_expired += 1
        problem = "the connector did not answer in time"
        if request.id in self._chunked:
            problem = "the final chunk of the connector's answer did not come in time"
        if request.lost:
            problem = f"{problem}; {request.lost}"
        self._tell(request, "the deadline has passed")
        self._settle(request, failure(StatusCode.DEADLINE_EXCEEDED, problem, request.id))

    def _settle(self, request: PendingRequest, response: ForwardResponse) -> None:
        self._chunked.forget(request.id)
        self._pending.settle(request, response)

    def _tell(self, request: PendingRequest, reason: str) -> None:
        """Tell the connector that need not answer any more, if it has the request and can hear."""
        connection = request.connection
        if request.unsent is None and CANCEL in connection.features:
            cancel = CancelRequest(request_id=request.id, reason=reason)
            connection.outbound.put(ConnectionMessage(cancel=cancel).SerializeToString())
