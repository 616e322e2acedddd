"""The gateway's server, on asyncio: what listens, who may come in, and what ends it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any, Callable

import grpc
import grpc.aio

from revconn._proto.registry_pb2 import RegisterRequest, RegisterResponse
from revconn.core.connection import decode
from revconn.core.gateway_side import End
from revconn.core.status import ProtocolError, StatusCode
from revconn.gateway.addresses import Address
from revconn.gateway.backends import Backends
from revconn.gateway.callers import Callers
from revconn.gateway.connectors import ConnectorStreams
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import STOPPING, Refused, answer, fail
from revconn.gateway.report import Journal
from revconn.gateway.routes import Connection
from revconn.gateway.shared import Settings, Shared
from revconn.gateway.tls import Arrivals, ServerTLS, server_credentials
from revconn.logger import Reminder, get_logger

if TYPE_CHECKING:
    from revconn.gateway.introspection import Health

__all__ = ["Door", "Serving"]

# Its name is what applications configure: it stays, whatever the file is called.
logger = get_logger("revconn.gateway.serving")

_SERVICE = "registry.RegistryService"
_POLL_INTERVAL = 0.02  # seconds
_FAREWELL_TIMEOUT = 1.0  # seconds that streams and the calls they fail have to end by themselves
_UNWIND_TIMEOUT = 2.0  # seconds
LONGEST_EXPIRY_INTERVAL = 1.0  # seconds
_LONGEST_BACKLOG = 20_000  # calls


class Serving:
    """One server and its state, from the start to the stop.

    It belongs to the thread whose loop made it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.shared = shared = Shared(settings)
        self.registry = shared.registry
        self._server = grpc.aio.server(
            options=_options(settings), maximum_concurrent_rpcs=_most_calls(settings.limits)
        )
        streams = ConnectorStreams(shared)
        registrations = Registrations(
            shared.backends,
            shared.limits,
            shared.counters,
            shared.journal,
            shared.heartbeat_timeout,
        )
        self._registry_door = Door(shared.arrivals)
        registry_service = grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                "EstablishConnection": self._registry_door.before(streams.establish),
                "Register": self._registry_door.before(registrations.register),
            },
        )
        self._callers = Callers(shared)
        self._deadline = math.inf  # on the loop's clock
        self._health, about = _introspection(shared)
        # Asked in this order: callers take what nobody before it took.
        self._server.add_generic_rpc_handlers((*about, registry_service, self._callers))

    async def start(self) -> str:
        """Listen; the address, with the real port. Raises :class:`OSError` when that fails."""
        wanted = f"{self._settings.host}:{self._settings.port}"
        port = self._bind(wanted)
        if port is None:
            raise OSError(
                f"cannot listen on {wanted}: the port is taken, or the host is not this machine's"
            )
        await self._server.start()
        return f"{self._settings.host}:{port}"

    def _bind(self, address: str) -> int | None:
        tls = self._settings.tls
        # Kept: grpc calls back into them without holding them.
        self._credentials = self._follow(tls) if isinstance(tls, ServerTLS) else tls
        try:
            if self._credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, self._credentials)
        except RuntimeError:  # which says no more than that it failed
            return None

    def _follow(self, tls: ServerTLS) -> grpc.ServerCredentials:
        return server_credentials(tls, self.shared.arrivals)

    async def stop(self, grace: float) -> None:
        """Take nothing new, give calls ``grace`` seconds to be answered, end everything."""
        loop = asyncio.get_running_loop()
        self.hurry(grace)
        # In this order, and without an await in between: nobody is let in who would be forgotten.
        self._registry_door.close()
        self._callers.close()
        self.shared.calls.leave()
        if self._health is not None:
            self._health.leave()
        while self._is_busy() and loop.time() < self._deadline:
            self._dismiss_idle()
            await asyncio.sleep(_POLL_INTERVAL)
        self.shared.calls.fail_all(StatusCode.UNAVAILABLE, STOPPING)
        for connection in self.registry.connections:
            connection.dismiss(STOPPING)
        if self._health is not None:
            self._health.end()
        # Goodbyes are queued and failed calls told: they have a moment to be written.
        await self._server.stop(_FAREWELL_TIMEOUT)
        await self.shared.backends.close()
        # Handlers that grpc cancelled just now still have to notice.
        handlers = asyncio.all_tasks() - {asyncio.current_task()}
        if handlers:
            await asyncio.wait(handlers, timeout=_UNWIND_TIMEOUT)
        self.shared.journal.close()

    def hurry(self, grace: float) -> None:
        """Give calls at most ``grace`` seconds from now on, if this stops."""
        self._deadline = min(self._deadline, asyncio.get_running_loop().time() + grace)

    def _is_busy(self) -> bool:
        return self._callers.inside > 0 or len(self.shared.calls) > 0

    def _dismiss_idle(self) -> None:
        """Send away the connectors that have nothing left to do, and will get nothing more."""
        if self._callers.inside > self.shared.calls.waiting_callers:
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
        """End the streams of connectors that fell silent, until cancelled.

        What waits for one that does not read is sent to others meanwhile.
        """
        timeout = self._settings.heartbeat_timeout
        steps: dict[Callable[[], None], Reminder] = {
            step: Reminder()
            for step in (
                self._expire_connections,
                lambda: self.shared.backends.expire(time.monotonic(), timeout),
                lambda: self.shared.arrivals.look(time.monotonic()),
                lambda: self.shared.journal.tick(time.monotonic()),
                self.shared.rerouting.relieve_stalled,
                self.end_withdrawn,  # of those, too, that registered just when the keys changed
            )
        }
        while True:
            for step, reminder in steps.items():
                try:
                    step()
                except BaseException:  # the others, and the next round, are not its fault
                    if reminder.is_due(time.monotonic()):
                        logger.exception("expiry: a bug in the gateway")
            await asyncio.sleep(min(LONGEST_EXPIRY_INTERVAL, timeout / 4))

    def _expire_connections(self) -> None:
        now = time.monotonic()
        for connection in self.registry.connections:
            end = connection.protocol.tick(now)
            if end is not None:
                self._end_silent(connection, end)

    def _end_silent(self, connection: Connection, end: End) -> None:
        self.shared.counters.connections_expired += 1
        said, foreign = end.reason, connection.protocol.foreign_heartbeat
        if foreign is not None:
            said = f"{said} with its id; the last one named {foreign!r}"
        self.shared.journal.expired(connection, said)
        connection.end(*end)


def _introspection(
    shared: Shared,
) -> tuple[Health | None, tuple[grpc.GenericRpcHandler, ...]]:
    """Health checks and reflection, where the libraries for them are installed."""
    try:
        from revconn.gateway.introspection import Health, reflection_handlers
    except Exception as error:  # noqa: BLE001 - protobuf and grpc refuse one of the wrong age
        logger.info("no health checks and no reflection: %s; pip install 'revconn[gateway]'", error)
        return None, ()
    health = Health(shared)
    return health, (health.handler(), *reflection_handlers(shared.arrivals))


def _most_calls(limits: Limits) -> int:
    """How many rpcs of any kind grpc lets in at once.

    For those that have no limit of their own; far above what the others' limits allow.
    """
    return limits.max_connections + 3 * limits.max_pending + _LONGEST_BACKLOG


def _options(settings: Settings) -> list[tuple[str, int]]:
    limits = settings.limits
    return [
        # Two gateways on one port would each get half of the connections, and say nothing.
        ("grpc.so_reuseport", 0),
        # What is over the limit, but not by far, is refused by us: with words, and counted.
        ("grpc.max_receive_message_length", min(2 * limits.max_message_bytes, 2**31 - 1)),
        ("grpc.max_metadata_size", min(2 * limits.max_metadata_bytes, 2**31 - 1)),
        ("grpc.absolute_max_metadata_size", min(2 * limits.max_metadata_bytes, 2**31 - 1)),
        ("grpc.max_send_message_length", -1),
        # Calls that arrive faster than they are taken: grpc would fail some beyond 1,000, as if
        # their callers had cancelled them.
        ("grpc.server.max_pending_requests", _LONGEST_BACKLOG),
        ("grpc.server.max_pending_requests_hard_limit", _LONGEST_BACKLOG),
        # Connectors may keep their link warm as often as they like.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # A peer that vanished without a word also blocks whoever writes to it: find out.
        ("grpc.keepalive_time_ms", max(10_000, int(settings.heartbeat_timeout * 500))),
        ("grpc.http2.max_pings_without_data", 0),
    ]


Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[AsyncIterator[bytes], Context], Awaitable[None]]


class Door:
    """Stands before methods that are stream to stream: closed, it lets nobody in.

    It belongs to the gateway's thread.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._is_closed = False

    def close(self) -> None:
        """Refuse every call from now on. Those inside go on."""
        self._is_closed = True

    def before(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler of a method behind the door."""

        async def enter(messages: AsyncIterator[bytes], context: Context) -> None:
            self._arrivals.called(context.peer)
            if self._is_closed:
                await fail(context, StatusCode.UNAVAILABLE, STOPPING)
            else:
                await method(messages, context)

        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(enter)
        return handler


class Registrations:
    """Takes backends' registrations; each has to be repeated within the heartbeat timeout."""

    def __init__(
        self,
        backends: Backends,
        limits: Limits,
        counters: Counters,
        journal: Journal,
        heartbeat_timeout: float,
    ) -> None:
        self._backends = backends
        self._limits = limits
        self._counters = counters
        self._journal = journal
        self._heartbeat_timeout = heartbeat_timeout

    async def register(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        """The rpc; its message is encoded, so that garbage gets an answer of ours."""
        peer = context.peer()
        try:
            address = self._backends.register(await self._receive(context), peer)
        except Refused as error:
            code, problem = error.code, error.message
        else:
            registered = RegisterResponse(success=True, message=self._message(address))
            return await answer(context, registered.SerializeToString())
        self._journal.refused_backend(peer, code, problem)
        return await fail(context, code, problem)

    def _message(self, address: Address | None) -> str:
        if address is None:
            return "registered, and not dialled: open EstablishConnection to be called"
        timeout = self._heartbeat_timeout
        return f"{address} is registered; repeat this within {timeout:g} seconds"

    async def _receive(self, context: Context) -> RegisterRequest:
        timeout = self._limits.handshake_timeout
        try:
            received = await asyncio.wait_for(context.read(), timeout)
        # The stream was opened and nothing said: it would hold a place for ever.
        except asyncio.TimeoutError:
            self._counters.refused["handshake_timeout"] += 1
            problem = f"no request came within {timeout:g} seconds"
            raise Refused(StatusCode.DEADLINE_EXCEEDED, problem) from None
        if not isinstance(received, bytes):
            raise Refused(StatusCode.INVALID_ARGUMENT, "the stream ended without a RegisterRequest")
        try:
            return decode(RegisterRequest, received)
        except ProtocolError as error:
            raise Refused(StatusCode.INVALID_ARGUMENT, str(error)) from None
