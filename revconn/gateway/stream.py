"""EstablishConnection: one connector's stream, from its registration to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from typing import Any, NamedTuple

import grpc.aio

from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus, Heartbeat
from revconn.core.errors import ProtocolError
from revconn.core.status import StatusCode
from revconn.gateway.decoding import decode
from revconn.gateway.failures import failure
from revconn.gateway.handshake import Refused, Registration, receive_registration
from revconn.gateway.keys import ApiKeys
from revconn.gateway.pending import PendingRequests
from revconn.gateway.registry import Connection, Registry
from revconn.gateway.statuses import fail

__all__ = ["ConnectorStreams"]

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT = 5.0  # seconds a leaving connector has to read what is still queued for it


class _Ending(NamedTuple):
    code: StatusCode
    reason: str


class _Outbound:
    """What a stream's connection may ask of it: to send a message, or to end."""

    def __init__(self, size: int) -> None:
        # Bounded: a connector that does not read must not fill the gateway's memory.
        self.queue: asyncio.Queue[ConnectionMessage] = asyncio.Queue(size)
        self.ended: asyncio.Future[_Ending] = asyncio.get_running_loop().create_future()

    def send(self, message: ConnectionMessage) -> bool:
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            return False
        return True

    def end(self, code: StatusCode, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(_Ending(code, reason))


class ConnectorStreams:
    """Takes connectors' streams: registers each, serves it, and cleans up after it."""

    def __init__(
        self, keys: ApiKeys, registry: Registry, pending: PendingRequests, queue_size: int
    ) -> None:
        self._keys = keys
        self._registry = registry
        self._pending = pending
        self._queue_size = queue_size

    async def establish(
        self, _requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """The rpc; messages are encoded, so that garbage gets an answer of ours."""
        try:
            registration = await receive_registration(context, self._keys)
        except Refused as error:
            code, problem = error.code, error.message
        else:
            stream = _Stream(context, registration, self._registry, self._pending, self._queue_size)
            return await stream.run()
        logger.warning("refused a connector at %s: %s", context.peer(), problem)
        return await fail(context, code, problem)


class _Stream:
    """The stream of a registered connector: a reader, a writer, and whatever ends them."""

    def __init__(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        registration: Registration,
        registry: Registry,
        pending: PendingRequests,
        queue_size: int,
    ) -> None:
        self._context = context
        self._registry = registry
        self._pending = pending
        self._outbound = _Outbound(queue_size)
        self._writing = asyncio.Lock()
        self._noted: set[str] = set()
        self._connection = Connection(
            id=str(uuid.uuid4()),
            key=registration.key,
            services=registration.services,
            peer=context.peer(),
            connected_at=time.monotonic(),
            send=self._outbound.send,
            end=self._outbound.end,
        )

    async def run(self) -> None:
        """Serve until something ends the stream."""
        connection = self._connection
        # Queued before anybody can route a request to it: CONNECTED goes out first.
        self._outbound.send(ConnectionMessage(status=ConnectionStatus(connection_id=connection.id)))
        self._registry.add(connection)
        services = ", ".join(connection.services) or "no services"
        logger.info("connection %s from %s registered %s", connection.id, connection.peer, services)
        reader = asyncio.ensure_future(self._guard(self._read()))
        writer = asyncio.ensure_future(self._guard(self._write()))
        ending = _Ending(StatusCode.UNAVAILABLE, "the stream broke")
        try:
            try:
                ending = await self._outbound.ended
            finally:
                reader.cancel()
                self._forget(ending)
            await self._flush(ending)
        finally:
            writer.cancel()
        if ending.code is not StatusCode.OK:
            await fail(self._context, ending.code, ending.reason)

    async def _flush(self, ending: _Ending) -> None:
        if ending.code is StatusCode.OK:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._outbound.queue.join(), FLUSH_TIMEOUT)
        # Whatever the ending, a status cannot follow until the message on its way is out.
        await self._writing.acquire()

    def _forget(self, ending: _Ending) -> None:
        self._registry.remove(self._connection)
        problem = f"the connection to the connector ended: {ending.reason}"
        self._pending.fail_connection(self._connection, problem)
        logger.info("connection %s ended: %s", self._connection.id, ending.reason)

    async def _guard(self, work: Awaitable[None]) -> None:
        try:
            await work
        except grpc.aio.BaseError:
            self._outbound.end(StatusCode.UNAVAILABLE, "the stream broke")
        except Exception:
            logger.exception("connection %s: a bug in the gateway", self._connection.id)
            self._outbound.end(StatusCode.INTERNAL, "the gateway failed; its log says how")

    async def _write(self) -> None:
        while True:
            message = await self._outbound.queue.get()
            if self._is_wanted(message):
                async with self._writing:
                    await self._context.write(message.SerializeToString())
            self._outbound.queue.task_done()

    def _is_wanted(self, message: ConnectionMessage) -> bool:
        is_request = message.HasField("request")
        return not is_request or message.request.request_id in self._pending

    async def _read(self) -> None:
        while True:
            received = await self._context.read()
            if not isinstance(received, bytes):
                # A stream that breaks looks like this at first; grpc cancels run() soon after.
                self._registry.drain(self._connection, "it closed its side of the stream")
                return
            try:
                message = decode(received)
            except ProtocolError as error:
                self._outbound.end(StatusCode.INVALID_ARGUMENT, str(error))
                return
            await self._receive(message)

    async def _receive(self, message: ConnectionMessage) -> None:
        kind = message.WhichOneof("message_type")
        if kind == "response":
            self._pending.answer(message.response, self._connection)
        elif kind == "heartbeat":
            self._receive_heartbeat(message.heartbeat)
        elif kind == "status":
            self._receive_status(message.status)
        elif kind == "request":
            refusal = failure(
                StatusCode.UNIMPLEMENTED,
                "this gateway does not forward calls from connectors",
                message.request.request_id,
            )
            await self._outbound.queue.put(ConnectionMessage(response=refusal))
        else:
            self._note(kind or "a message of unknown type")

    def _receive_heartbeat(self, heartbeat: Heartbeat) -> None:
        if heartbeat.connection_id == self._connection.id:
            self._connection.last_heartbeat = time.monotonic()
            logger.debug("connection %s: heartbeat", self._connection.id)
        else:
            logger.warning(
                "connection %s: ignored a heartbeat for %.64r, which is not its id",
                self._connection.id,
                heartbeat.connection_id,
            )

    def _receive_status(self, status: ConnectionStatus) -> None:
        if status.status == ConnectionStatus.DISCONNECTED:
            reason = f": {status.message[:200]!r}" if status.message else ""
            logger.info("connection %s is leaving%s", self._connection.id, reason)
            self._registry.drain(self._connection, "it left")
        else:
            self._note(f"status {status.status}", f": {status.message[:200]!r}")

    def _note(self, kind: str, detail: str = "") -> None:
        if kind not in self._noted:
            self._noted.add(kind)
            connection_id = self._connection.id
            logger.warning("connection %s: ignored %s%s", connection_id, kind, detail)
