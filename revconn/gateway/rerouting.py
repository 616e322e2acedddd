"""Where calls go whose connector leaves, stalls or ends, and those that wait for one to come.

It decides where; :class:`revconn.gateway.calls.Calls` keeps the calls. Everything here belongs to
the gateway's thread.
"""

from __future__ import annotations

import asyncio
import time
from typing import Callable

from revconn._proto.registry_pb2 import ConnectionMessage
from revconn.core.deadline import shorten_timeouts
from revconn.core.rope import Data
from revconn.core.status import StatusCode
from revconn.gateway.backends import Backends
from revconn.gateway.call import Call
from revconn.gateway.calls import Calls
from revconn.gateway.limits import Counters
from revconn.gateway.refusals import Refused
from revconn.gateway.routes import Connection, Registry

__all__ = ["Rerouting"]


class Rerouting:
    """Moves calls that nobody has been sent yet; what was sent stays where it is.

    :param get_loop: by whose clock calls were held.
    """

    def __init__(
        self,
        calls: Calls,
        registry: Registry,
        backends: Backends,
        counters: Counters,
        get_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.get_running_loop,
    ) -> None:
        self._calls = calls
        self._registry = registry
        self._backends = backends
        self._counters = counters
        self._get_loop = get_loop
        # Both: a call that waits takes whoever comes first, a connector or a backend.
        registry.on_change.append(self._resume)
        backends.on_change.append(self._resume)
        registry.on_absence_end.append(self._absence_ended)

    def drain(self, connection: Connection, departure: str) -> None:
        """Send ``connection`` nothing new, and what it has not been sent to others that can."""
        self._registry.drain(connection, departure)
        self.relieve(connection)

    def relieve(self, connection: Connection) -> None:
        """Send to others what ``connection`` has not been sent, as far as there are any."""
        for call in self._calls.at(connection):
            self._reroute(call, to_stalled=False)

    def relieve_stalled(self) -> None:
        """Send to others what waits for a connector that does not read."""
        if not len(self._calls):
            return  # of thousands of connections a look at each of them costs
        now = time.monotonic()
        for connection in self._registry.connections:
            if connection.pending and connection.outbound.is_stalled(now):
                self.relieve(connection)

    def connection_ended(self, connection: Connection, reason: str) -> None:
        """``connection`` is out of the registry: nothing is written to it or read from it."""
        # First what the connector itself asked: answers to those calls have nowhere to go, and none
        # of them must be found another place below.
        self._calls.disconnected(connection)
        for call in self._calls.at(connection):
            call.connection_ended(reason)
            data = call.unsent
            if data is not None and not self._rescue(call, data):
                self._lose(call)

    def _reroute(self, call: Call, *, to_stalled: bool) -> bool:
        """Send a call to another connector, unless it was written; whether that was done."""
        data = call.unsent
        if data is None:
            return False
        now = time.monotonic()
        connection = self._registry.take_turn(call.wanted, now)
        # Its own turn again: a connector that leaves is out of the rings, but one that stalls is
        # not.
        if connection is None or connection is call.connection:
            return False
        # To a stalled one only what would be lost otherwise.
        if not (to_stalled or connection.is_ready(now)):
            return False
        # Already encoded, for another connector; one that announced less cannot take it.
        if len(data) > connection.max_message_bytes:
            return False
        call.leave()
        call.queue(connection, data)
        self._counters.calls_rerouted += 1
        return True

    def _rescue(self, call: Call, data: Data) -> bool:
        """Find another place for a call that was not written before its connection ended."""
        if self._reroute(call, to_stalled=True):
            return True
        if self._registry.serves(call.wanted):  # by somebody who can take no more, or not that much
            return False
        # As submit() decides, for a call that is in the table already.
        if call.may_dial and self._backends.serves(call.wanted):
            self._calls.dial(call, self._message(call).request)
            return True
        if not self._registry.expects(call.wanted):
            return False
        if not self._calls.held_requests.make_room(self._calls.holding_owners(call)):
            return False
        call.leave()
        self._calls.hold(call, data)
        return True

    def _lose(self, call: Call) -> None:
        """Fail a call that was written to no connector, and that none is there to be written to."""
        if call.lost:
            self._counters.calls_lost += 1
            service = call.wanted.service[:200]
            problem = f"{call.lost}; no other connector serves {service} now"
            refused = Refused(StatusCode.UNAVAILABLE, problem)
        else:
            refused = self._calls.nobody_serves(call)
        self._calls.settle(call, refused.response(call.id))

    # Calls that wait for somebody to come

    def _resume(self) -> None:
        """A connector or backend has come or gone: send on what was held for it."""
        # A copy of what waits, in its order: sending one on takes it out.
        for call in self._calls.held():
            connection = self._registry.take_turn(call.wanted, time.monotonic())
            if connection is not None:
                self._send_on(call, connection)
            elif self._registry.serves(call.wanted):
                self._calls.settle(
                    call, self._registry.no_room(call.wanted, self._counters).response(call.id)
                )
            elif call.may_dial and self._backends.serves(call.wanted):
                self._calls.dial(call, self._message(call).request)

    def _send_on(self, call: Call, connection: Connection) -> None:
        try:
            data = call.encode_anew(self._message(call))
            connection.require_size(data, self._counters)
        except Refused as refused:
            self._calls.settle(call, refused.response(call.id))
            return
        self._calls.held_requests.discard(call.id)
        if call.lost:  # it was counted when it was first sent on
            self._counters.calls_rerouted += 1
        else:
            self._counters.calls += 1
        call.queue(connection, data)

    def _message(self, call: Call) -> ConnectionMessage:
        """A request that was not written, with what is left of its time."""
        # Decoded only here: most calls are never moved.
        message = ConnectionMessage.FromString(bytes(call.unsent or b""))
        if call.held_since:
            shorten_timeouts(message.request, self._get_loop().time() - call.held_since)
        return message

    def _absence_ended(self) -> None:
        for call in self._calls.held():
            if not self._registry.expects(call.wanted):
                self._lose(call)
