"""EstablishConnection: one connector's stream, from its registration to its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from typing import Any, NamedTuple

import grpc.aio

from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus, ForwardResponse
from revconn.core.decoding import decode
from revconn.core.errors import ProtocolError
from revconn.core.features import FEATURES_HEADER, SUPPORTED, Announcement
from revconn.core.status import StatusCode
from revconn.gateway.conversation import Conversation
from revconn.gateway.failures import Refused, over_limit
from revconn.gateway.handshake import Registration, receive_registration
from revconn.gateway.registry import Connection
from revconn.gateway.shared import Shared
from revconn.gateway.statuses import fail

__all__ = ["ConnectorStreams"]

FLUSH_TIMEOUT = 5.0  # seconds a leaving connector has to read what is still queued for it

Context = grpc.aio.ServicerContext[Any, Any]


class _Ending(NamedTuple):
    code: StatusCode
    reason: str


class _End:
    """The end of a stream, which may be brought about from outside.

    An object of its own: what a connection holds must not lead back to the stream that holds it.
    """

    def __init__(self) -> None:
        self.came: asyncio.Future[_Ending] = asyncio.get_running_loop().create_future()

    def bring(self, code: StatusCode, reason: str) -> None:
        if not self.came.done():
            self.came.set_result(_Ending(code, reason))


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
        try:
            self._require_room()
            registration = await self._receive_registration(context)
            self._require_room_for(registration.key)
            self._shared.hooks.admit()
        except Refused as error:
            code, problem = error.code, error.message
        else:
            return await _Stream(context, registration, self._shared).run()
        self._shared.counters.connections_refused += 1
        self._shared.journal.refused(context.peer(), code, problem)
        # A connector takes the word of who announces itself for the gateway's, not for a proxy's.
        announced = Announcement(SUPPORTED).metadata() if _announces(context) else ()
        return await fail(context, code, problem, initial=announced)

    async def _receive_registration(self, context: Context) -> Registration:
        shared = self._shared
        timeout = shared.limits.handshake_timeout
        return await receive_registration(context, shared.keys, timeout, shared.counters)

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


class _Stream:
    """The stream of a registered connector: a reader, a writer, and whatever ends them."""

    def __init__(self, context: Context, registration: Registration, shared: Shared) -> None:
        self._context = context
        self._shared = shared
        self._end = _End()
        metadata = tuple(context.invocation_metadata() or ())
        announced = Announcement.from_metadata(metadata)
        self._announces = _announces(context)
        limit = shared.limits.max_sent_message_bytes
        self._connection = Connection(
            id=str(uuid.uuid4()),
            key=registration.key,
            services=registration.services,
            peer=context.peer(),
            connected_at=time.monotonic(),
            outbound=shared.hooks.new_outbound(shared.limits),
            end=self._end.bring,
            max_pending=shared.limits.max_pending_per_connection,
            max_message_bytes=min(limit, announced.max_message_bytes or limit),
            features=announced.features & SUPPORTED,
            journal=shared.journal,
        )
        self._conversation = Conversation(self._connection, shared)

    async def run(self) -> None:
        """Serve until something ends the stream."""
        connection = self._connection
        # Queued before anybody can route a request to it: CONNECTED goes out first.
        connected = ConnectionMessage(status=ConnectionStatus(connection_id=connection.id))
        connection.outbound.put(connected.SerializeToString())
        self._shared.registry.add(connection)
        self._shared.counters.connections_opened += 1
        self._shared.journal.connected(connection)
        reader = asyncio.ensure_future(self._guard(self._read()))
        writer = asyncio.ensure_future(self._guard(self._write()))
        ending = _Ending(StatusCode.UNAVAILABLE, "the stream broke")
        try:
            try:
                ending = await self._end.came
            finally:
                reader.cancel()
                self._forget(ending)
            await self._flush(writer, ending)
        finally:
            writer.cancel()
        if ending.code is not StatusCode.OK:
            await fail(self._context, ending.code, ending.reason)

    async def _flush(self, writer: asyncio.Future[None], ending: _Ending) -> None:
        outbound = self._connection.outbound
        if ending.code is StatusCode.OK:
            outbound.close()
        if outbound.is_closed:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(writer), FLUSH_TIMEOUT)
        # Whatever the ending, a status cannot follow until the message on its way is out.
        outbound.discard()
        await asyncio.shield(writer)

    def _forget(self, ending: _Ending) -> None:
        shared, connection = self._shared, self._connection
        shared.registry.remove(connection)
        shared.events.forget(connection)
        if ending.code is not StatusCode.OK and not connection.outbound.is_closed:
            connection.outbound.discard()
        shared.forwarding.connection_ended(connection, ending.reason)
        self._conversation.end()
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
        if self._announces:
            announcement = Announcement(
                SUPPORTED, self._shared.heartbeat_timeout, self._shared.limits.max_message_bytes
            )
            await self._context.send_initial_metadata(announcement.metadata())
        outbound = self._connection.outbound
        while (message := await outbound.next()) is not None:
            await self._context.write(message)

    async def _read(self) -> None:
        limit = self._shared.limits.max_message_bytes
        while True:
            received = await self._context.read()
            if not isinstance(received, bytes):
                # A stream that breaks looks like this at first; grpc cancels run() soon after.
                self._close_half()
                return
            if len(received) > limit:
                self._refuse_large(received)
                return
            try:
                message = decode(ConnectionMessage, received)
            except ProtocolError as error:
                self._end.bring(StatusCode.INVALID_ARGUMENT, str(error))
                return
            await self._conversation.receive(message)

    def _refuse_large(self, received: bytes) -> None:
        response = ForwardResponse()
        with contextlib.suppress(ProtocolError):
            response = decode(ConnectionMessage, received).response
        forwarding = self._shared.forwarding
        refused = forwarding.refuse_too_large(response, self._connection, len(received))
        self._end.bring(refused.code, refused.message)

    def _close_half(self) -> None:
        departure = "it closed its side of the stream"
        if not self._connection.draining:
            self._shared.journal.draining(self._connection, departure)
        self._shared.forwarding.drain(self._connection, departure)


def _announces(context: Context) -> bool:
    """Whether the connector said what it supports: only then is it told what the gateway does."""
    return any(name == FEATURES_HEADER for name, _ in context.invocation_metadata() or ())
