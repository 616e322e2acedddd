"""EstablishConnection: one connector's stream, an asyncio task around a core connection."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from typing import Any, Callable, NamedTuple

import grpc.aio

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    EventMessage,
    ForwardRequest,
    ForwardResponse,
    SubscriptionRequest,
)
from revconn.core.chunks import split
from revconn.core.connection import CHUNKS, FEATURES_HEADER, SUPPORTED, Announcement, decode
from revconn.core.deadline import request_deadline
from revconn.core.framing import is_framed, unframe
from revconn.core.gateway_side import End, FromConnector, GatewayConnection, GatewayLiveness
from revconn.core.metadata import headers_size, metadata_from_headers
from revconn.core.routing import Wanted, split_method_path
from revconn.core.status import ProtocolError, StatusCode
from revconn.gateway.backends import BackendRequest, Reply
from revconn.gateway.calls import Call
from revconn.gateway.keys import ApiKeys
from revconn.gateway.refusals import Refused, fail, failure, over_limit
from revconn.gateway.routes import Connection
from revconn.gateway.shared import Shared
from revconn.logger import get_logger

__all__ = ["ConnectorCall", "ConnectorStreams", "Registration", "check_registration"]

logger = get_logger(__name__)

FLUSH_TIMEOUT = 5.0  # seconds a leaving connector has to read what is still queued for it

# What a peer that announced no limit takes: gRPC's own default, in every language.
_USUAL_LIMIT = 4 * 1024 * 1024
_LONGEST_METHOD = 200  # characters, of those that are named in errors

Context = grpc.aio.ServicerContext[Any, Any]


class Registration(NamedTuple):
    """Who registered what: the number of the API key, and the services' names, each once."""

    key: int
    services: tuple[str, ...]


def check_registration(register: ConnectionRegister, keys: ApiKeys) -> Registration:
    """Check a ``register``: its key, and what that may register. Raises :class:`Refused`."""
    key = keys.identify(register.api_key)
    if key is None:
        raise Refused(StatusCode.UNAUTHENTICATED, "Invalid token")
    return Registration(key, keys.check_services(key, register.services))


class ConnectorStreams:
    """Takes connectors' streams: registers each, serves it, and cleans up after it."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._open = 0

    async def establish(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        """The rpc; messages are encoded, so that garbage gets an answer of ours."""
        self._open += 1
        try:
            await self._establish(context)
        finally:
            self._open -= 1

    async def _establish(self, context: Context) -> None:
        protocol = self._new_protocol(context)
        try:
            # Before anything is read: a stream costs memory and a descriptor as soon as it is open,
            # long before its first message shows a key.
            self._require_room()
            registration = await self._receive_registration(context, protocol)
            # Once it has registered: before that nobody knows whose stream it is.
            self._require_room_for(registration.key)
            self._shared.hooks.admit()
        except Refused as error:
            code, problem = error.code, error.message
        else:
            return await _Stream(context, protocol, registration, self._shared).run()
        self._shared.counters.connections_refused += 1
        self._shared.journal.refused(context.peer(), code, problem)
        # A connector takes the word of who announces itself for the gateway's, not for a proxy's.
        announced = Announcement(SUPPORTED).metadata() if _announces(context) else ()
        return await fail(context, code, problem, initial=announced)

    def _new_protocol(self, context: Context) -> GatewayConnection:
        shared = self._shared
        # The monotonic clock, not the one that goes on while this machine sleeps: a gateway that
        # slept heard nothing meanwhile, which is no fault of its connectors.
        opened_at, handshake_timeout = time.monotonic(), shared.limits.handshake_timeout
        announced = Announcement.from_metadata(context.invocation_metadata() or ())
        return GatewayConnection(
            GatewayLiveness(opened_at, handshake_timeout, shared.heartbeat_timeout),
            features=announced.features & SUPPORTED,
            max_message_bytes=shared.limits.max_message_bytes,
        )

    async def _receive_registration(
        self, context: Context, protocol: GatewayConnection
    ) -> Registration:
        """Wait for a stream's first message and check it. Raises :class:`Refused`."""
        shared = self._shared
        timeout = shared.limits.handshake_timeout
        try:
            received = await asyncio.wait_for(context.read(), timeout)
        except asyncio.TimeoutError:
            shared.counters.refused["handshake_timeout"] += 1
            # The loop's clock and time.monotonic() may differ by a moment: it is time by both.
            end = protocol.tick(math.inf)
            assert end is not None
            raise Refused(*end) from None
        # Anything else is grpc.aio.EOF: the connector closed the stream without a word.
        if isinstance(received, bytes):
            inbound = protocol.receive((received,), time.monotonic())
        else:
            inbound = protocol.half_close(time.monotonic())
        if inbound.too_large is not None:
            problem = f"a message of {len(inbound.too_large):,} bytes exceeds"
            limit = f"{shared.limits.max_message_bytes:,}"
            raise over_limit(shared.counters, "max_message_bytes", f"{problem} {limit}")
        if inbound.registration is None:
            assert inbound.end is not None
            raise Refused(*inbound.end)
        return check_registration(inbound.registration, shared.keys)

    def _require_room(self) -> None:
        limit = self._shared.limits.max_connections
        if self._open > limit:
            problem = f"{limit:,} connections are open"
            raise over_limit(self._shared.counters, "max_connections", problem)

    def _require_room_for(self, key: int) -> None:
        limit = self._shared.limits.max_connections_per_key
        if self._shared.registry.count(key) >= limit:
            problem = f"{limit:,} connections with that API key are open"
            raise over_limit(self._shared.counters, "max_connections_per_key", problem)


class ConnectorCall(Call):
    """A call that a connector makes; ``respond`` sends it the answer, and is told the method."""

    def __init__(
        self,
        request: ForwardRequest,
        wanted: Wanted,
        deadline: float,
        asker: Connection,
        respond: Callable[[ForwardResponse, str], None],
        limit: int,
    ) -> None:
        super().__init__(request.request_id, request.method_path, wanted, deadline, asker)
        self._respond = respond
        self._framed = is_framed(request.payload)
        self._limit = limit

    def respond(self, response: ForwardResponse) -> None:
        """Send the asking connector what another one, or the gateway itself, answered."""
        self._respond(response, self.method)

    def relay(self, reply: Reply) -> None:
        """Send the asking connector what a backend answered: prefixed if the request was."""
        self.respond(reply.response(self.id, framed=self._framed))

    def for_backend(self, request: ForwardRequest) -> BackendRequest:
        """The message alone, and what of the headers is metadata."""
        payload = request.payload
        if self._framed:
            encoding = request.headers.get("grpc-encoding", "")
            try:
                payload = unframe(payload, encoding, self._limit)
            except ProtocolError as error:
                raise Refused(StatusCode.INVALID_ARGUMENT, f"the payload: {error}") from None
        timeout = self.deadline - asyncio.get_running_loop().time()
        return BackendRequest(payload, metadata_from_headers(request.headers), timeout)


class _End:
    """The end of a stream, which may be brought about from outside.

    An object of its own: what a connection holds must not lead back to the stream that holds it.
    """

    def __init__(self) -> None:
        self.came: asyncio.Future[End] = asyncio.get_running_loop().create_future()

    def bring(self, code: StatusCode, reason: str) -> None:
        if not self.came.done():
            self.came.set_result(End(code, reason))


class _Stream:
    """The stream of a registered connector: a reader, a writer, and whatever ends them."""

    def __init__(
        self,
        context: Context,
        protocol: GatewayConnection,
        registration: Registration,
        shared: Shared,
    ) -> None:
        self._context = context
        self._protocol = protocol
        self._shared = shared
        self._end = _End()
        announced = Announcement.from_metadata(context.invocation_metadata() or ())
        limit = shared.limits.max_sent_message_bytes
        self._connection = Connection(
            # A new one for every stream. The reference gateway takes the id that a connector
            # offers, and removes the routes of the wrong stream when two have the same.
            id=str(uuid.uuid4()),
            key=registration.key,
            services=registration.services,
            peer=context.peer(),
            connected_at=time.monotonic(),
            protocol=protocol,
            outbound=shared.hooks.new_outbound(shared.limits),
            end=self._end.bring,
            max_pending=shared.limits.max_pending_per_connection,
            max_message_bytes=min(limit, announced.max_message_bytes or limit),
            journal=shared.journal,
        )

    async def run(self) -> None:
        """Serve until something ends the stream."""
        connection = self._connection
        # CONNECTED is queued before anybody can route a request to it, and so goes out first.
        connection.outbound.put(self._protocol.accept(connection.id, connection.connected_at))
        self._shared.registry.add(connection)
        self._shared.counters.connections_opened += 1
        self._shared.journal.connected(connection)
        # Two tasks: a connector that does not read blocks whoever writes to it, and is heard all
        # the same, its heartbeats and goodbye above all.
        reader = asyncio.ensure_future(self._guard(self._read()))
        writer = asyncio.ensure_future(self._guard(self._write()))
        ending = End(StatusCode.UNAVAILABLE, "the stream broke")
        try:
            try:
                ending = await self._end.came
            finally:  # grpc cancels this task when the stream breaks
                # Nothing of a stream that is over is read: a request in it would be routed to
                # others, and its answer come back to nobody.
                reader.cancel()
                self._forget(ending)
            await self._flush(writer, ending)
        finally:
            writer.cancel()
        if ending.code is not StatusCode.OK:
            await fail(self._context, ending.code, ending.reason)

    async def _flush(self, writer: asyncio.Future[None], ending: End) -> None:
        outbound = self._connection.outbound
        if ending.code is StatusCode.OK:
            # A connector that left in peace is still written its last answers, as one is that was
            # dismissed, whose queue is closed already. One that expired or broke is not.
            outbound.close()
        if outbound.is_closed:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(writer), FLUSH_TIMEOUT)
        # Whatever the ending, a status cannot follow until the message on its way is out.
        outbound.discard()
        await asyncio.shield(writer)

    def _forget(self, ending: End) -> None:
        shared, connection = self._shared, self._connection
        # Out of the routes first: calls that have to find another place must not find this one.
        shared.registry.remove(connection)
        shared.events.forget(connection)
        if ending.code is not StatusCode.OK and not connection.outbound.is_closed:
            connection.outbound.discard()
        shared.rerouting.connection_ended(connection, ending.reason)
        # Last: the calls that were failed just now are still answered, and sent if there is time.
        self._protocol.end()
        shared.journal.ended(connection, ending.reason)

    async def _guard(self, work: Awaitable[None]) -> None:
        try:
            await work
        except grpc.aio.BaseError:
            self._end.bring(StatusCode.UNAVAILABLE, "the stream broke")
        except asyncio.CancelledError:
            raise
        except BaseException:  # noqa: BLE001 - whatever it is, it ends one stream, and is logged
            self._shared.journal.failed(self._connection)
            self._end.bring(StatusCode.INTERNAL, "the gateway failed; its log says how")

    async def _write(self) -> None:
        if _announces(self._context):
            announcement = Announcement(
                SUPPORTED, self._shared.heartbeat_timeout, self._shared.limits.max_message_bytes
            )
            # Ahead of CONNECTED: the connector adapts its heartbeat to what is stated here. A
            # connector that said nothing of features is sent nothing, as the published protocol has
            # it.
            await self._context.send_initial_metadata(announcement.metadata())
        outbound = self._connection.outbound
        while (message := await outbound.next()) is not None:
            await self._context.write(message)

    # What the connector says

    async def _read(self) -> None:
        batch: Sequence[bytes] = ()  # at first what came behind the registration, if anything did
        while not await self._take_in(self._protocol.receive(batch, time.monotonic())):
            received = await self._context.read()
            if not isinstance(received, bytes):
                # A stream that breaks looks like this at first; grpc cancels run() soon after.
                await self._take_in(self._protocol.half_close(time.monotonic()))
                return
            # Message by message: grpc.aio hands over one at a time.
            batch = (received,)

    async def _take_in(self, inbound: FromConnector) -> bool:
        """Do what it asks for; no more is read before that is done. Whether that was the end."""
        shared, connection = self._shared, self._connection
        # By far the most of what comes; nothing here awaits anything, so that no other task runs
        # between a batch's answers.
        for response in inbound.responses:
            shared.calls.answer(response, connection)
        for kind, message in inbound.rest:
            if kind == "request":
                self._receive_request(message)
                # Who calls and does not read the answers is not read either.
                await connection.outbound.room()
            elif kind == "cancel":
                self._receive_cancel(message.cancel.request_id)
            elif kind == "event":
                self._receive_event(message.event)
            else:
                self._receive_subscription(message.subscription)
        for what, detail in inbound.ignored:
            connection.note(what, detail)
        if inbound.goodbye is not None:
            departure, reason = inbound.goodbye
            shared.journal.draining(connection, reason)
            shared.rerouting.drain(connection, departure)
        if inbound.too_large is not None:
            self._refuse_large(inbound.too_large)
        if inbound.end is not None:
            self._end.bring(*inbound.end)
        return inbound.end is not None or inbound.too_large is not None

    def _refuse_large(self, received: bytes) -> None:
        response = ForwardResponse()
        with contextlib.suppress(ProtocolError):
            response = decode(ConnectionMessage, received).response
        calls = self._shared.calls
        refused = calls.refuse_too_large(response, self._connection, len(received))
        self._end.bring(refused.code, refused.message)

    def _receive_request(self, message: ConnectionMessage) -> None:
        try:
            self._forward(message)
        except Refused as refused:
            request = message.request
            self._respond(refused.response(request.request_id), request.method_path)

    def _forward(self, message: ConnectionMessage) -> None:
        request, shared, connection = message.request, self._shared, self._connection
        wanted = Wanted.by_connector(self._service(request))
        size = headers_size(request.headers)
        shared.calls.admit(wanted, size, connection, request.request_id)
        longest = shared.request_timeout
        own = request_deadline(request.timeout_seconds, request.headers, 0.0)
        # Not taken from two instants: these are rounded, and could make a second more of it.
        seconds = longest if own is None else min(longest, own)
        deadline = asyncio.get_running_loop().time() + seconds
        limit = shared.limits.max_sent_message_bytes
        call = ConnectorCall(request, wanted, deadline, connection, self._respond, limit)
        # Rounded up, and never 0, which means no limit: a connector that gave up early would fail a
        # call whose caller still waits.
        request.timeout_seconds = max(1, math.ceil(seconds))
        shared.calls.submit(call, message)

    def _service(self, request: ForwardRequest) -> str:
        try:
            service, _ = split_method_path(request.method_path)
        except ValueError as error:
            raise Refused(StatusCode.INVALID_ARGUMENT, str(error)) from None
        if not self._shared.keys.allows(self._connection.key, service):
            problem = f"the API key may not call {service[:200]!r}"
            raise Refused(StatusCode.PERMISSION_DENIED, problem)
        return service

    def _receive_cancel(self, request_id: str) -> None:
        if not self._shared.calls.cancel(request_id, self._connection):
            # The answer and the cancel met on the way, as they may.
            logger.debug(
                "connection %s cancelled %.64r, which is not a pending call of its own",
                self._connection.id,
                request_id,
            )

    def _receive_event(self, event: EventMessage) -> None:
        try:
            self._shared.events.publish(event, self._connection)
        except Refused as refused:
            self._refuse("an event", refused)

    def _receive_subscription(self, subscription: SubscriptionRequest) -> None:
        events = self._shared.events
        if subscription.action == SubscriptionRequest.UNSUBSCRIBE:
            events.unsubscribe(self._connection, subscription.event_types)
        elif subscription.action != SubscriptionRequest.SUBSCRIBE:
            self._connection.note("a subscription of unknown action")
        else:
            try:
                events.subscribe(self._connection, subscription.event_types)
            except Refused as refused:
                self._refuse("a subscription", refused)

    def _refuse(self, what: str, refused: Refused) -> None:
        """Tell the connector, once, by a status: nothing answers an event or a subscription."""
        is_first = self._connection.note(f"{what} ({refused.code.name})", f": {refused.message}")
        if is_first and self._protocol.established:
            self._connection.outbound.put(self._protocol.report_error(refused.message))

    # What it is answered

    def _respond(self, response: ForwardResponse, method: str) -> None:
        """Send the response to its call of ``method``, or why it cannot have it."""
        if not self._protocol.established:  # it was sent away just now
            return
        try:
            messages = list(self._messages(response))
        except Refused as refused:
            problem = f"{method[:_LONGEST_METHOD]}: {refused.message}"
            told = failure(refused.code, problem, response.request_id)
            messages = [self._protocol.respond(told)]
        for message in messages:
            self._connection.outbound.put(message)

    def _messages(self, response: ForwardResponse) -> Iterator[bytes]:
        protocol, connection = self._protocol, self._connection
        counters, limit = self._shared.counters, connection.max_message_bytes
        data = protocol.respond(response)
        if connection.outbound.is_full and response.payload:
            problem = "the response cannot be delivered: what was sent before it is not being read"
            raise over_limit(counters, "max_queued_bytes", problem)
        # Only to a connector that announced them: any other would take the first chunk for the
        # whole answer.
        if CHUNKS in protocol.features and len(data) > min(limit, _USUAL_LIMIT):
            try:
                chunks = split(response, min(limit, _USUAL_LIMIT))
            except ValueError as error:
                raise over_limit(counters, "max_sent_message_bytes", str(error)) from None
            yield from (protocol.respond(chunk) for chunk in chunks)
        elif len(data) > limit:
            problem = f"a response of {len(data):,} bytes exceeds the {limit:,} that may be sent"
            raise over_limit(counters, "max_sent_message_bytes", problem)
        else:
            yield data


def _announces(context: Context) -> bool:
    """Whether the connector said what it supports: only then is it told what the gateway does."""
    return any(name == FEATURES_HEADER for name, _ in context.invocation_metadata() or ())
