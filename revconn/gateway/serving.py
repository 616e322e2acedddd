"""One run of a gateway: what serves which path, what is looked at now and then, and the end.

It belongs to the thread whose loop made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Callable

from revconn.core.gateway_side import End
from revconn.core.status import StatusCode
from revconn.gateway.callers import Callers
from revconn.gateway.connectors import ConnectorStreams
from revconn.gateway.listening import Listener
from revconn.gateway.peers import Peer
from revconn.gateway.refusals import STOPPING, Refused
from revconn.gateway.registrations import Registrations
from revconn.gateway.routes import Connection
from revconn.gateway.shared import Settings, Shared
from revconn.gateway.streaming import StreamingCalls
from revconn.http2.requests import RequestHead
from revconn.http2.streams import Stream
from revconn.logger import Reminder, get_logger

if TYPE_CHECKING:
    from revconn.gateway.introspection import Introspection
    from revconn.gateway.web import Unread

__all__ = ["Serving"]

logger = get_logger(__name__)

_FAREWELL_TIMEOUT = 1.0  # seconds that connections have to end by themselves
LONGEST_EXPIRY_INTERVAL = 1.0  # seconds
_SHORT_INTERVAL = 0.25  # seconds
_SHORTEST_INTERVAL = 0.01  # seconds


class Serving:
    """All that serves, from the start to the stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.shared = shared = Shared(settings)
        self.registry = shared.registry
        streaming = StreamingCalls(shared)
        serve_http = None
        self._unread: Unread | None = None
        if settings.http:
            from revconn.gateway.web import WebCalls

            send_timeout = settings.http_send_timeout or math.inf
            web = WebCalls(shared, streaming, settings.http, send_timeout)
            serve_http, self._unread = web.serve, web.unread
        self.listener = Listener(settings, shared, self._serve, serve_http)
        self._callers = Callers(shared, self.listener.turn, streaming)
        self._connectors = ConnectorStreams(shared, self.listener.turn)
        self._registrations = Registrations(shared)
        self._introspection = _introspection(shared, streaming)
        methods = [*self._connectors.methods(), *self._registrations.methods()]
        if self._introspection is not None:
            methods += self._introspection.methods()
        self._methods = {method.path: method.serve for method in methods}
        self._deadline = math.inf  # on the loop's clock
        self._nobody_is_silent_before = 0.0  # monotonic seconds
        self._changed = asyncio.Event()  # while it stops: something was settled

    async def start(self) -> str:
        """Listen; the address, with the real port. Raises :class:`OSError` when that fails."""
        settings = self._settings
        if settings.path is not None:
            self.listener.listen_unix(settings.path)
            address = f"unix:{settings.path}"
        else:
            port = self.listener.listen(settings.host, settings.port)
            address = f"{settings.host}:{port}"
        self.listener.begin()
        return address

    def _serve(self, stream: Stream, head: RequestHead, peer: Peer) -> None:
        serve = self._methods.get(head.path, self._callers.serve)
        rpc = serve(stream, head, peer.address)
        try:
            if head.size > self.shared.limits.max_metadata_bytes:
                raise self.shared.too_much_metadata(head.size)
            rpc.start()
        except Refused as refused:
            peer.endpoint.charge(2)
            rpc.abandon()
            rpc.finish(refused.code, refused.message)

    async def stop(self, grace: float) -> None:
        """Take nothing new, give calls ``grace`` seconds to be answered, end everything."""
        self.hurry(grace)
        shared = self.shared
        # In this order, and without an await in between: nobody is let in who would be forgotten.
        self._connectors.leave()
        self._registrations.leave()
        self._callers.leave()
        shared.calls.leave()
        if self._introspection is not None:
            self._introspection.leave()
        self.listener.leave()
        shared.calls.on_settled = self._changed.set
        await self._drain()
        shared.calls.fail_all(StatusCode.UNAVAILABLE, STOPPING)
        self._callers.streaming.end(StatusCode.UNAVAILABLE, STOPPING)
        for connection in self.registry.connections:
            connection.dismiss(STOPPING)
        if self._introspection is not None:
            self._introspection.end()
        # Goodbyes are queued and failed calls told: they have a moment to be written.
        await self._connectors.end(_FAREWELL_TIMEOUT)
        await self.listener.end(_FAREWELL_TIMEOUT)
        shared.backends.close()
        shared.journal.close()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._is_busy() and loop.time() < self._deadline:
            self._changed.clear()
            self._dismiss_idle()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._deadline - loop.time())

    def hurry(self, grace: float) -> None:
        """Give calls at most ``grace`` seconds from now on, if this stops."""
        self._deadline = min(self._deadline, asyncio.get_running_loop().time() + grace)
        self._changed.set()

    def _is_busy(self) -> bool:
        callers = self._callers
        return bool(callers.receiving or len(callers.streaming) or len(self.shared.calls))

    def _dismiss_idle(self) -> None:
        """Send away the connectors that have nothing left to do, and will get nothing more."""
        if self._callers.receiving or len(self._callers.streaming):
            return  # a call is still being received, and anybody's turn it may be
        for connection in self.registry.connections:
            if not connection.pending and not connection.asked:
                connection.dismiss(STOPPING)

    def end_withdrawn(self) -> None:
        """End the streams of connectors whose key is not accepted any more."""
        for connection in self.registry.connections:
            if not self._settings.keys.accepts(connection.key):
                connection.end(StatusCode.UNAUTHENTICATED, "the API key was withdrawn")

    async def expire(self) -> None:
        """End what fell silent, until cancelled.

        What waits for a connector that does not read is sent to others meanwhile.
        """
        timeout = self._settings.heartbeat_timeout
        shared = self.shared
        # Most of the time there is nothing to do yet, which costs a look at the clock.
        connections = (
            self._expire_connections,
            lambda: self.listener.look(time.monotonic()),
        )
        steps = (
            lambda: shared.backends.expire(time.monotonic(), timeout),
            lambda: shared.journal.tick(time.monotonic()),
            self._expire_unread,
            self.listener.expire_answers,
            shared.rerouting.relieve_stalled,
        )
        interval = max(_SHORTEST_INTERVAL, min(LONGEST_EXPIRY_INTERVAL, timeout / 4))
        await asyncio.gather(
            _repeat(min(interval, _SHORT_INTERVAL), connections),
            _repeat(interval, steps),
            _repeat(_SHORT_INTERVAL, (self._callers.expire, self.listener.receiving.relieve_line)),
        )

    def _expire_unread(self) -> None:
        if self._unread is not None:
            self._unread.expire(time.monotonic())

    def _expire_connections(self) -> None:
        now = time.monotonic()
        if now < self._nobody_is_silent_before:
            return
        # Later heartbeats move it further away, and so do connectors that come.
        first = now + self._settings.heartbeat_timeout
        for connection in self.registry.connections:
            end = connection.protocol.tick(now)
            if end is not None:
                self._end_silent(connection, end)
            first = min(first, connection.protocol.due() or first)
        self._nobody_is_silent_before = first

    def _end_silent(self, connection: Connection, end: End) -> None:
        self.shared.counters.connections_expired += 1
        said, foreign = end.reason, connection.protocol.foreign_heartbeat
        if foreign is not None:
            said = f"{said} with its id; the last one named {foreign!r}"
        self.shared.journal.expired(connection, said)
        connection.end(*end)


async def _repeat(interval: float, steps: Iterable[Callable[[], None]]) -> None:
    reminders = {step: Reminder() for step in steps}
    while True:
        for step, reminder in reminders.items():
            try:
                step()
            except BaseException:  # the others, and the next round, are not its fault
                if reminder.is_due(time.monotonic()):
                    logger.exception("expiry: a bug in the gateway")
        await asyncio.sleep(interval)


def _introspection(shared: Shared, streaming: StreamingCalls) -> Introspection | None:
    """Health checks and reflection, where the libraries for them are installed."""
    try:
        from revconn.gateway.introspection import Introspection
    except Exception as error:  # noqa: BLE001 - protobuf refuses one of the wrong age
        logger.info("no health checks and no reflection: %s; pip install 'revconn[gateway]'", error)
        return None
    return Introspection(shared, streaming)
