"""The way of a request to the connector whose turn it is, and of its answer back.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any, TypeVar

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ForwardRequest,
    ForwardResponse,
    StreamingInfo,
)
from revconn.core.deadline import shorten_timeouts
from revconn.core.routing import Wanted
from revconn.core.status import StatusCode
from revconn.gateway.absences import Absences
from revconn.gateway.backends import Backends
from revconn.gateway.joining import ChunkedAnswers
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.pending import Dial, PendingRequest, PendingRequests, Settle
from revconn.gateway.refusals import STOPPING, NobodyServes, Refused, failure, over_limit
from revconn.gateway.routes import Connection, Registry

__all__ = ["Forwarding"]

T = TypeVar("T")

_LONGEST_METHOD = 200  # characters, of those that are named in errors
_UNARY = StreamingInfo(stream_type=StreamingInfo.UNARY, is_stream_end=True)


class Forwarding:
    """Sends requests on, from callers of any kind, and settles each once.

    A request belongs to nobody until it is written to a connector's stream: up to then it may
    still go to another one, or wait for one. From then on it waits for its answer until its
    deadline, on whichever connection of that connector's key the answer comes.
    """

    def __init__(
        self,
        registry: Registry,
        backends: Backends,
        limits: Limits,
        counters: Counters,
        reconnect_grace: float,
    ) -> None:
        self._registry = registry
        self._backends = backends
        self._limits = limits
        self._counters = counters
        self._pending = PendingRequests(limits, counters)
        self._chunked = ChunkedAnswers(limits, counters)
        self._absences = Absences(reconnect_grace, limits, self._absence_ended)
        self._is_leaving = False
        registry.on_absence = self._absences.begin
        registry.on_change.append(self._resume)
        backends.on_change.append(self._resume)

    def __len__(self) -> int:
        """How many requests wait for an answer, or for somebody to answer them."""
        return len(self._pending)

    @property
    def waiting_callers(self) -> int:
        """How many of them do not come from a connector."""
        return sum(request.asker is None for request in self._pending.all())

    def expects(self, wanted: Wanted) -> bool:
        """Whether a connector of that has just left, and may come back any moment."""
        return self._absences.expects(wanted)

    def require_served(self, wanted: Wanted) -> None:
        """Raises :class:`NobodyServes` unless somebody takes calls of that, or soon may."""
        served = self._registry.serves(wanted) or self._backends.serves(wanted)
        if not served and not self.expects(wanted):
            self._counters.calls_unserved += 1
            raise NobodyServes(wanted.service)

    def admit(self, request_id: str, asker: Connection) -> None:
        """Raises :class:`Refused` unless ``asker`` may make a call of that id now."""
        if self._is_leaving:
            raise Refused(StatusCode.UNAVAILABLE, STOPPING)
        if request_id in asker.asked:
            raise _is_pending_already(request_id)
        if len(asker.asked) >= asker.max_pending:
            problem = f"the connector has {asker.max_pending:,} calls of its own under way"
            raise over_limit(self._counters, "max_pending_per_connection", problem)

    async def exchange(
        self, message: ConnectionMessage, wanted: Wanted, deadline: float
    ) -> ForwardResponse:
        """Send a request to a connector and wait for its answer; cancelling this gives it up.

        The message is used up. Raises :class:`Refused` as :meth:`submit` does.
        """
        answered: asyncio.Future[ForwardResponse] = asyncio.get_running_loop().create_future()
        return await self._await(message, wanted, deadline, answered)

    async def exchange_or_dial(
        self, message: ConnectionMessage, wanted: Wanted, deadline: float
    ) -> ForwardResponse | ForwardRequest:
        """As :meth:`exchange`, or the request itself, when it is a backend's to answer."""
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def dial(request: ForwardRequest) -> None:
            if not outcome.done():
                kept = ForwardRequest()
                kept.CopyFrom(request)
                outcome.set_result(kept)

        answer: ForwardResponse | ForwardRequest
        answer = await self._await(message, wanted, deadline, outcome, dial)
        return answer

    async def _await(
        self,
        message: ConnectionMessage,
        wanted: Wanted,
        deadline: float,
        answered: asyncio.Future[T],
        dial: Dial | None = None,
    ) -> T:
        def settle(response: Any) -> None:
            if not answered.done():  # a caller that gave up has cancelled it
                answered.set_result(response)

        request_id = message.request.request_id
        self.submit(message, wanted, deadline, settle, dial=dial)
        message.Clear()  # it may be large, and the answer may take a while
        try:
            return await answered
        finally:
            self.give_up(request_id, "the caller gave up")

    def submit(
        self,
        message: ConnectionMessage,
        wanted: Wanted,
        deadline: float,
        settle: Settle,
        *,
        dial: Dial | None = None,
        asker: Connection | None = None,
    ) -> None:
        """Send a request; ``settle`` gets the answer, or a failure, before long.

        It goes to a connector, else to a backend, which is what ``dial`` is called for; it waits
        for either where the last connector has just left. ``deadline`` is on the loop's clock,
        ``asker`` a connector that was admitted. Raises :class:`Refused` when it cannot be sent;
        :class:`NobodyServes` when nobody is there to take it.
        """
        if message.request.request_id in self._pending:
            raise _is_pending_already(message.request.request_id)
        self._pending.require_room(len(self._backends))
        connection = self._registry.take_turn(wanted, time.monotonic())
        if connection is None:
            if dial is not None and self._backends.serves(wanted):
                dial(message.request)
                return
            if not self.expects(wanted):
                self._counters.calls_unserved += 1
                raise NobodyServes(wanted.service, is_asked_by_connector=asker is not None)
            connection = self._absences.waiting_room
        message.request.streaming_info.CopyFrom(_UNARY)
        data = self._encode(message, connection)
        loop = asyncio.get_running_loop()
        request = PendingRequest(
            message.request.request_id,
            message.request.method_path[:_LONGEST_METHOD],
            wanted,
            connection,
            settle,
            dial=dial,
            asker=asker,
        )
        request.outgoing = connection.outbound.put(data)
        request.timer = loop.call_at(deadline, self._expire, request)
        self._pending.add(request)
        if connection is self._absences.waiting_room:
            request.held_since = loop.time()
            self._counters.calls_held += 1
        else:
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
                self._refuse_answer(request, refused)
                return
            if whole is None:
                return
            response = whole
        self._counters.calls_answered += 1
        self._settle(request, response)

    def refuse_too_large(self, response: ForwardResponse, sender: Connection, size: int) -> Refused:
        """For an answer in a message over the limit: settled so, as far as anybody waits for it."""
        limit = self._limits.max_message_bytes
        problem = f"a message of {size:,} bytes exceeds {limit:,}"
        request = self._pending.match(response, sender) if response.request_id else None
        if request is None:
            return over_limit(self._counters, "max_message_bytes", problem)
        refused = over_limit(self._counters, "max_message_bytes", f"{request.method}: {problem}")
        self._settle(request, refused.response(request.id))
        return refused

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
            if request.unsent is not None and not (
                self._reroute(request, to_stalled=True) or self._hold(request)
            ):
                self._lose(request)

    def leave(self) -> None:
        """Take no call of a connector any more; others are refused at the door.

        Nobody is let in any more, so that what waits for somebody to come waits in vain.
        """
        self._is_leaving = True
        self._absences.end_all()
        for request in self._held():
            self._settle(request, failure(StatusCode.UNAVAILABLE, STOPPING, request.id))

    def fail_all(self, code: StatusCode, message: str) -> None:
        """Settle everything that waits."""
        for request in self._pending.all():
            self._settle(request, failure(code, message, request.id))

    # Calls that wait for somebody to come

    def _held(self) -> Iterator[PendingRequest]:
        """What is in the waiting room, first come first."""
        room = self._absences.waiting_room
        if room.pending:
            yield from (each for each in self._pending.all() if each.connection is room)

    def _hold(self, request: PendingRequest) -> bool:
        """Have a request wait that was not written before its connection ended; whether it may."""
        room, data = self._absences.waiting_room, request.unsent
        if request.outgoing is None or data is None or self._registry.serves(request.wanted):
            return False
        if request.dial is not None and self._backends.serves(request.wanted):
            self._hand_over(request)
            return True
        if not (self.expects(request.wanted) and room.has_room):
            return False
        request.connection.outbound.withdraw(request.outgoing)
        request.outgoing = room.outbound.put(data)
        request.held_since = asyncio.get_running_loop().time()
        self._pending.move(request, room)
        self._counters.calls_held += 1
        return True

    def _resume(self) -> None:
        """Somebody has come or gone: what waited for that may have somewhere to go."""
        for request in self._held():
            connection = self._registry.take_turn(request.wanted, time.monotonic())
            if connection is not None:
                self._send_on(request, connection)
            elif request.dial is not None and self._backends.serves(request.wanted):
                self._hand_over(request)

    def _send_on(self, request: PendingRequest, connection: Connection) -> None:
        message = self._message(request)
        try:
            data = self._encode(message, connection)
        except Refused as refused:
            self._settle(request, refused.response(request.id))
            return
        assert request.outgoing is not None
        request.connection.outbound.withdraw(request.outgoing)
        request.outgoing = connection.outbound.put(data)
        self._pending.move(request, connection)
        if request.lost:
            self._counters.calls_rerouted += 1
        else:
            self._counters.calls += 1
        request.lost = ""

    def _hand_over(self, request: PendingRequest) -> None:
        message = self._message(request)
        self._pending.hand_over(request)
        assert request.dial is not None
        request.dial(message.request)

    def _message(self, request: PendingRequest) -> ConnectionMessage:
        """A request that was not written, with what is left of its time."""
        message = ConnectionMessage.FromString(request.unsent or b"")
        if request.held_since:
            waited = asyncio.get_running_loop().time() - request.held_since
            shorten_timeouts(message.request, waited)
        return message

    def _absence_ended(self) -> None:
        for request in self._held():
            if not self.expects(request.wanted):
                self._lose(request)

    def _lose(self, request: PendingRequest) -> None:
        """Nobody is there to answer a request that nobody has seen."""
        service = request.wanted.service
        if request.lost:
            self._counters.calls_lost += 1
            problem = f"{request.lost}; no other connector serves {service[:200]} now"
            refused = Refused(StatusCode.UNAVAILABLE, problem)
        else:
            self._counters.calls_unserved += 1
            refused = NobodyServes(service, is_asked_by_connector=request.asker is not None)
        self._settle(request, refused.response(request.id))

    def _encode(self, message: ConnectionMessage, connection: Connection) -> bytes:
        """A request's message for ``connection``. Raises :class:`Refused` if it cannot take it."""
        self._require_room_at(connection)
        data = message.SerializeToString()
        if len(data) > connection.max_message_bytes:
            limit = connection.max_message_bytes
            problem = f"a request of {len(data):,} bytes exceeds the connector's {limit:,}"
            raise over_limit(self._counters, "max_sent_message_bytes", problem)
        return data

    def _require_room_at(self, connection: Connection) -> None:
        if connection.has_room:
            return
        problem, count = "the connectors of the service do not keep up", "calls wait for each"
        if connection is self._absences.waiting_room:
            problem, count = "too much waits for services to come back", "calls"
        if connection.outbound.is_full:
            raise over_limit(self._counters, "max_queued_bytes", problem)
        problem = f"{problem}: {connection.max_pending:,} {count}"
        raise over_limit(self._counters, "max_pending_per_connection", problem)

    def _reroute(self, request: PendingRequest, *, to_stalled: bool) -> bool:
        """Send a request to another connector, unless it was written; whether that was done."""
        data = request.unsent
        if data is None or request.outgoing is None:
            return False
        now = time.monotonic()
        connection = self._registry.take_turn(request.wanted, now)
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
        if request.connection is self._absences.waiting_room:
            problem = "no connector of the service came back in time"
        elif request.id in self._chunked:
            problem = "the final chunk of the connector's answer did not come in time"
        if request.lost:
            problem = f"{problem}; {request.lost}"
        self._tell(request, "the deadline has passed")
        self._settle(request, failure(StatusCode.DEADLINE_EXCEEDED, problem, request.id))

    def _refuse_answer(self, request: PendingRequest, refused: Refused) -> None:
        self._tell(request, refused.message)
        problem = f"{request.method}: {refused.message}"
        self._settle(request, failure(refused.code, problem, request.id))

    def _settle(self, request: PendingRequest, response: ForwardResponse) -> None:
        self._chunked.forget(request.id)
        self._pending.settle(request, response)

    def _tell(self, request: PendingRequest, reason: str) -> None:
        """Tell the connector that need not answer any more, if it has the request and can hear."""
        connection = request.connection
        if request.unsent is None:
            cancel = connection.protocol.cancel(request.id, reason)
            if cancel is not None:
                connection.outbound.put(cancel)


def _is_pending_already(request_id: str) -> Refused:
    problem = f"a request with the id {request_id[:64]!r} is pending already"
    return Refused(StatusCode.ALREADY_EXISTS, problem)
