"""One table of calls: each is admitted, routed, its messages moved, and settled once.

What a call is, and its way, is told in :mod:`revconn.gateway.call`. All of this belongs to the
gateway's thread.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Callable

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ForwardRequest,
    ForwardResponse,
)
from revconn.core.rope import Data, Rope
from revconn.core.routing import Wanted
from revconn.core.status import StatusCode
from revconn.gateway.backends import Backends, Outcome, Reply, Unreachable
from revconn.gateway.budgets import Owners
from revconn.gateway.call import UNARY, Call, State
from revconn.gateway.deadlines import Deadlines
from revconn.gateway.holding import HeldRequests, Joining
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import (
    STOPPING,
    NobodyServes,
    Refused,
    failure,
    is_pending_already,
    over_limit,
    require_size,
)
from revconn.gateway.routes import Connection, Registry

__all__ = ["Calls"]

# Settled calls, twice as many at most, by which a late answer is told from a made-up one.
_REMEMBERED = 10_000


_NEW, _SENT, _HELD, _DIALLED, _SETTLED = (
    State.NEW,
    State.SENT,
    State.HELD,
    State.DIALLED,
    State.SETTLED,
)


class Calls:
    """The calls of one gateway; ``get_loop`` says whose clock and timers they go by."""

    def __init__(
        self,
        registry: Registry,
        backends: Backends,
        limits: Limits,
        counters: Counters,
        get_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.get_running_loop,
    ) -> None:
        self._registry = registry
        self._backends = backends
        self._limits = limits
        self._counters = counters
        self._get_loop = get_loop
        self._is_leaving = False  # from leave() on
        self.on_settled: Callable[[], None] | None = None  # set while the gateway stops
        self._deadlines = Deadlines(get_loop, self._expire)
        self._calls: dict[str, Call] = {}  # QUEUED, SENT and HELD, by the id that answers name
        # By asker, too: a backend is not told the id, so that those of two askers may be the same.
        self._dialled: dict[tuple[Connection | None, str], Call] = {}
        self._kept = limits.max_pending // 8  # places, for connectors that have few calls
        self.held_requests = HeldRequests(limits, counters, self._lose_place)
        self.joining = Joining(limits, counters, self._lose_answer)
        self._settled: set[str] = set()  # ids
        self._settled_before: set[str] = set()  # the generation before: forgotten all at once

    def __len__(self) -> int:
        """How many calls wait for an answer, or for somebody to answer them."""
        return len(self._calls) + len(self._dialled)

    # Admission

    def admit(
        self, wanted: Wanted, headers_bytes: int, asker: Connection | None = None, own_id: str = ""
    ) -> None:
        """Raises :class:`Refused` unless a call of that may be made now.

        :param headers_bytes: the size of its metadata, as HTTP/2 counts it.
        :param own_id: which a connector that asks gave it.
        """
        if asker is not None:
            if self._is_leaving:  # callers from outside are refused before they get here
                raise Refused(StatusCode.UNAVAILABLE, STOPPING)
            asker.require_room_to_ask(own_id, self._counters)
        elif not (
            self._registry.serves(wanted)
            or self._backends.serves(wanted)
            or self._registry.expects(wanted)
        ):
            self._counters.calls_unserved += 1
            raise NobodyServes(wanted.service)
        if headers_bytes > (most := self._limits.max_metadata_bytes):
            problem = f"{headers_bytes:,} bytes of metadata exceed {most:,}"
            raise over_limit(self._counters, "max_metadata_bytes", problem)

    # The way there

    def submit(self, call: Call, data: Data) -> None:
        """Send an admitted call on: to a connector, else to a backend, else to whoever comes.

        :param data: the message with the request.

        Raises :class:`Refused` when it cannot be sent; :class:`NobodyServes` when nobody is there.
        """
        if call.id in self._calls:
            raise is_pending_already(call.id)
        left = self._limits.max_pending - len(self._calls) - len(self._dialled)
        if not call.may_dial:
            left += 1  # it could not be sent to a backend, and is counted already
        if left <= 0:
            problem = f"{self._limits.max_pending:,} calls wait for an answer"
            raise over_limit(self._counters, "max_pending", problem)
        connection = self._registry.take_turn(call.wanted, time.monotonic())
        if connection is not None:
            if len(data) > connection.max_message_bytes:
                require_size(data, connection.max_message_bytes, self._counters)
            # Few connectors that answer nothing would take all the places otherwise.
            if not self._registry.shares(connection, left, self._kept):
                raise self._must_share()
            self._add(call)
            call.queue(connection, data)
            self._counters.calls += 1
        elif self._registry.serves(call.wanted):
            raise self._registry.no_room(call.wanted, self._counters)
        elif call.may_dial and self._backends.serves(call.wanted):
            self._require_unkept(left)
            self.dial(call, ConnectionMessage.FromString(bytes(data)).request)
        elif self._registry.expects(call.wanted):
            self._require_unkept(left)
            require_size(data, self._limits.max_sent_message_bytes, self._counters)
            if not self.held_requests.make_room(self.holding_owners(call)):
                raise self.held_requests.no_room()
            self._add(call)
            self.hold(call, data)
        else:
            raise self.nobody_serves(call)

    def _require_unkept(self, left: int) -> None:
        if left <= self._kept and len(self._registry):
            raise self._must_share()

    def _must_share(self) -> Refused:
        problem = "most of the calls that may wait do so for the same connectors"
        return over_limit(self._counters, "max_pending", problem)

    def _add(self, call: Call) -> None:
        if not call.may_dial:
            del self._dialled[call.asker, call.id]  # which no backend was sent
        self._calls[call.id] = call
        if call.asker is not None:
            call.asker.asked.add(call.id)
        self._deadlines.add(call)

    def nobody_serves(self, call: Call) -> Refused:
        """Why a call is refused that nobody is there to take."""
        self._counters.calls_unserved += 1
        # A service whose backend was out of reach is there: that is no 404 for connectors, either.
        is_missing = call.asker is not None and call.may_dial
        return NobodyServes(call.wanted.service, is_asked_by_connector=is_missing)

    def hold(self, call: Call, data: Data) -> None:
        """Have a call of the table wait for somebody to come."""
        call.hold(data, self._get_loop().time())
        self.held_requests.add(call.id, self.holding_owners(call), len(data))

    def holding_owners(self, call: Call) -> Owners:
        """On whose account a call waits: for which service, and where its caller is."""
        return self._registry.expected(call.wanted), call.origin

    def _lose_place(self, request_id: str, refused: Refused) -> None:
        """A call waits no longer for somebody to come: others need its place."""
        call = self._calls.get(request_id)
        if call is not None:
            self.settle(call, refused.response(request_id))

    # The way back

    def answer(
        self,
        response: ForwardResponse,
        sender: Connection,
        data: Data | None = None,
        payload: memoryview | Rope | None = None,
    ) -> None:
        """Take an answer, or a chunk of one, that came on ``sender`` in the message ``data``.

        A large payload may be beside the response, and not in it.
        """
        call = self._calls.get(response.request_id)
        # On any connection with the same API key: a connector that hands over to its next one, or
        # lost the one before, answers there what came on the other.
        if call is None or call.connection is None or call.connection.key != sender.key:
            self._ignore(response, sender)
            return
        if response.HasField("response_stream_info") and response.response_stream_info.is_streamed:
            if call.joiners is None:
                call.joiners = {}
            try:
                whole = self.joining.add(call.joiners, response, sender)
            except Refused as refused:
                sender.note("an answer", f" to {call.method}: {refused.message}")
                self._lose_answer(call.id, refused)
                return
            if whole is None:
                return
            response, data = whole, None
        self._counters.calls_answered += 1
        self.settle(call, response, data, payload)

    def _lose_answer(self, request_id: str, refused: Refused) -> None:
        """The answer to a call, which came in part, cannot be taken."""
        call = self._calls.get(request_id)
        if call is None:  # it had to make room on one connection for what came on another
            return
        self._tell(call, refused.message)
        problem = f"{call.method}: {refused.message}"
        self.settle(call, failure(refused.code, problem, call.id))

    def refuse_too_large(self, response: ForwardResponse, sender: Connection, size: int) -> Refused:
        """Fail the call, if one waits, whose answer came in a message over the limit."""
        problem = f"a message of {size:,} bytes exceeds {self._limits.max_message_bytes:,}"
        call = self._calls.get(response.request_id)
        if call is None or call.connection is None or call.connection.key != sender.key:
            if response.request_id:
                self._ignore(response, sender)
            return over_limit(self._counters, "max_message_bytes", problem)
        refused = over_limit(self._counters, "max_message_bytes", f"{call.method}: {problem}")
        self.settle(call, refused.response(call.id))
        return refused

    def _ignore(self, response: ForwardResponse, sender: Connection) -> None:
        """Count an answer that ``sender`` may not give, or need not."""
        sender.count_unmatched()
        request_id = response.request_id
        if request_id in self._calls:
            self._counters.answers_foreign += 1
            sender.note("an answer to what another key was asked", f": {request_id[:64]!r}")
        elif request_id in self._settled or request_id in self._settled_before:
            # A second one, or it met the deadline on its way.
            self._counters.answers_late += 1
        else:
            self._counters.answers_unknown += 1
            sender.note("an answer to what nobody asked", f": {request_id[:64]!r}")

    def give_up(self, call: Call, reason: str) -> None:
        """The asker waits no more. A call that was settled meanwhile is left as it is."""
        if call.state is _SETTLED:
            return
        if call.state is not _DIALLED:  # of those the backends' own count says so, as they end
            self._counters.calls_given_up += 1
            self._tell(call, reason)
        self._remove(call)
        call.release_asker()

    def cancel(self, request_id: str, asker: Connection) -> bool:
        """Give up the call that ``asker`` made by that id; whether there is one."""
        call = self._asked(request_id, asker)
        if call is not None:
            self.give_up(call, "the caller cancelled the call")
        return call is not None

    def _asked(self, request_id: str, asker: Connection) -> Call | None:
        call = self._calls.get(request_id)
        if call is not None and call.asker is asker:
            return call
        return self._dialled.get((asker, request_id))  # ids of other askers may be the same

    def _expire(self, call: Call) -> None:
        self._counters.calls_expired += 1
        problem = "the connector did not answer in time"
        if call.state is _HELD:
            problem = "no connector of the service came back in time"
        elif call.joiners:
            problem = "the final chunk of the connector's answer did not come in time"
        if call.lost:  # and no later connection of that connector has answered
            problem = f"{problem}; {call.lost}"
        self._tell(call, "the deadline has passed")
        self.settle(call, failure(StatusCode.DEADLINE_EXCEEDED, problem, call.id))

    def _tell(self, call: Call, reason: str) -> None:
        """Tell the connector that need not answer any more, if it has the request and can hear."""
        if call.state is _SENT and call.connection is not None:
            cancel = call.connection.protocol.cancel(call.id, reason)
            if cancel is not None:
                call.connection.outbound.put(cancel)

    def settle(
        self,
        call: Call,
        response: ForwardResponse,
        data: Data | None = None,
        payload: memoryview | Rope | None = None,
    ) -> None:
        """Give the asker the answer: once, since the call is out of the table before."""
        self._remove(call)  # first: what the asker does now may lead back here
        call.respond(response, data, payload)
        if call.asker is not None:  # it makes calls of its own: one that is leaving may then go
            call.asker.settle_asked(call.id)

    def _remove(self, call: Call) -> None:
        """Take a call out of the table, before anybody hears of it: so that happens once."""
        if call.outgoing is None:  # it is DIALLED
            del self._dialled[call.asker, call.id]
        else:
            self._take_out(call)
        call.end()  # withdraws it from a connector that has not been sent it
        settled = self._settled
        settled.add(call.id)
        if len(settled) >= _REMEMBERED:
            self._settled_before, self._settled = settled, set()
        if self.on_settled is not None:
            self.on_settled()

    def _take_out(self, call: Call) -> None:
        del self._calls[call.id]
        self._deadlines.discard(call)
        if call.joiners:
            self.joining.drop(call.id, call.joiners, tuple(call.joiners))
        if call.held_since:
            self.held_requests.discard(call.id)

    # Connectors that end

    def at(self, connection: Connection) -> list[Call]:
        """The calls that ``connection`` is to answer."""
        return [self._calls[request_id] for request_id in connection.pending]

    def held(self) -> list[Call]:
        """The calls that wait for somebody to come, first come first."""
        return [self._calls[request_id] for request_id in self.held_requests.sizes]

    def disconnected(self, connection: Connection) -> None:
        """Give up the calls that ``connection`` made, and drop the chunks that came on it."""
        for request_id in tuple(connection.asked):  # a copy: giving up takes each out of it
            call = self._asked(request_id, connection)
            if call is not None:
                self.give_up(call, "the caller's connection ended")
        for call in self._calls.values():
            if call.joiners:
                self.joining.drop(call.id, call.joiners, (connection,))

    # Backends

    def dial(self, call: Call, request: ForwardRequest) -> None:
        """Have a backend answer; the exchange has a deadline, which replaces the call's timer."""
        if call.state is not _NEW:
            self._take_out(call)
            call.withdraw()
        if call.asker is not None:
            call.asker.asked.add(call.id)
        self._dialled[call.asker, call.id] = call
        tell = partial(self._take_outcome, call, request)
        exchange = self._backends.exchange(call.wanted, request, call.for_backend, tell)
        call.dial(self._get_loop().create_task(exchange))

    def _take_outcome(self, call: Call, request: ForwardRequest, outcome: Outcome) -> None:
        if call.state is _SETTLED:  # given up in the turn in which the time to connect ran out
            return
        # What may have been sent goes nowhere else: a backend may have acted upon it.
        is_unsent = isinstance(outcome, Unreachable) and outcome.is_unsent
        is_for_connectors = is_unsent and self._registry.expects(call.wanted)
        call.exchange_ended(is_for_connectors=is_for_connectors)
        try:
            if is_for_connectors:
                message = ConnectionMessage(request=request)
                message.request.streaming_info.CopyFrom(UNARY)
                self.submit(call, call.encode_anew(message))
            elif isinstance(outcome, Refused):
                self.settle(call, outcome.response(call.id))
            else:
                self._remove(call)
                if isinstance(outcome, Reply):
                    call.relay(outcome)
                else:
                    call.stream(outcome)
                call.release_asker()
        except Refused as refused:  # by submit()
            self.settle(call, refused.response(call.id))

    # The end of the gateway

    def leave(self) -> None:
        """Take no call of a connector any more; the server's doors refuse other callers."""
        self._is_leaving = True
        # No connector is let in any more: what waits for one to come waits in vain.
        self._registry.expect_nobody()
        for call in self.held():
            self.settle(call, failure(StatusCode.UNAVAILABLE, STOPPING, call.id))

    def fail_all(self, code: StatusCode, message: str) -> None:
        """Settle everything that waits."""
        for call in (*self._calls.values(), *self._dialled.values()):
            self.settle(call, failure(code, message, call.id))
