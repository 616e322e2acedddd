"""Any unary gRPC call from outside, as a call that a connector or a backend answers."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardRequest, ForwardResponse
from revconn.core.deadline import format_grpc_timeout
from revconn.core.errors import ProtocolError
from revconn.core.framing import is_framed, pack, unframe
from revconn.core.metadata import (
    application_metadata,
    headers_from_metadata,
    metadata_from_headers,
)
from revconn.core.routing import Wanted, split_method_path
from revconn.core.status import StatusCode, decode_message, response_code
from revconn.gateway.backends import Reply, Unreachable
from revconn.gateway.refusals import Refused, begin, fail, over_limit, require_small_headers
from revconn.gateway.shared import Shared
from revconn.gateway.watch import Watch
from revconn.logger import get_logger

__all__ = ["Proxy"]

# Its name is what applications configure: it stays, whatever the file is called.
logger = get_logger("revconn.gateway.proxy")

# Seconds from the first message of a call to its end. A unary call sends them together: for it
# this is no limit.
_END_TIMEOUT = 1.0

Context = grpc.aio.ServicerContext[Any, Any]


class Proxy(grpc.GenericRpcHandler):
    """Takes every call that nothing before it took.

    gRPC does not tell a server whether a call is unary. With its requests taken as a stream, a
    streaming one can be told apart by what it does.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._receiving = 0  # calls whose request has not come yet

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of any method."""
        path = handler_call_details.method

        async def call(messages: AsyncIterator[bytes], context: Context) -> bytes:
            return await self._call(path, messages, context)

        return grpc.stream_unary_rpc_method_handler(call)

    async def _call(self, path: str, messages: AsyncIterator[bytes], context: Context) -> bytes:
        try:
            answer = await self._answer(path, messages, context)
        except Refused as refused:
            answer = refused.response()
        if isinstance(answer, Reply):
            return await self._relay(path, answer, context)
        return await self._respond(path, answer, context)

    async def _answer(
        self, path: str, messages: AsyncIterator[bytes], context: Context
    ) -> ForwardResponse | Reply:
        """What a connector or a backend answers. Raises :class:`Refused`."""
        forwarding = self._shared.forwarding
        wanted = _wanted(path)
        forwarding.require_served(wanted)
        # The caller's own deadline is grpc's business: it cancels this when it passes.
        deadline = asyncio.get_running_loop().time() + self._shared.request_timeout
        message = await self._request(path, messages, context, deadline)
        answer = await forwarding.exchange_or_dial(message, wanted, deadline)
        if isinstance(answer, ForwardResponse):
            return answer
        try:
            return await self._dial(wanted, answer, context, deadline)
        except Unreachable as error:
            if not (error.is_unsent and forwarding.expects(wanted)):
                raise
        message = ConnectionMessage(request=answer)
        return await forwarding.exchange(message, wanted, deadline)

    async def _request(
        self, path: str, messages: AsyncIterator[bytes], context: Context, deadline: float
    ) -> ConnectionMessage:
        """The call as a request, once all of it has come. Raises :class:`Refused`."""
        shared = self._shared
        headers = headers_from_metadata(context.invocation_metadata() or ())
        require_small_headers(headers, shared.limits, shared.counters)
        headers["content-type"] = "application/grpc"
        message = ConnectionMessage()
        request = message.request
        request.payload = pack(await self._read(messages))
        remaining: float | None = context.time_remaining()
        if remaining is not None:
            headers["grpc-timeout"] = format_grpc_timeout(remaining)
        request.request_id = str(uuid.uuid4())
        request.method_path = path
        request.headers.update(headers)
        request.timeout_seconds = max(1, math.ceil(_timeout(context, deadline)))
        return message

    async def _dial(
        self, wanted: Wanted, request: ForwardRequest, context: Context, deadline: float
    ) -> Reply:
        """Call a backend with what the caller sent, as it is. Raises :class:`Refused`."""
        metadata = application_metadata(tuple(context.invocation_metadata() or ()))
        # The backend, too, wants to know the caller's own deadline.
        timeout = _timeout(context, deadline)
        payload = unframe(request.payload) if is_framed(request.payload) else request.payload
        return await self._shared.backends.call(
            wanted, request.method_path, payload, metadata, timeout
        )

    async def _relay(self, path: str, reply: Reply, context: Context) -> bytes:
        """Answer the caller with what the backend answered, as it is."""
        logger.debug("%.200r from %s: %s, from a backend", path, context.peer(), reply.code.name)
        initial = application_metadata(reply.initial)
        trailing = application_metadata(reply.trailing)
        if reply.code is StatusCode.OK:
            await begin(context, initial)
            context.set_trailing_metadata(trailing)
            return reply.payload
        return await _fail(context, reply.code, reply.message, trailing, initial)

    async def _respond(self, path: str, response: ForwardResponse, context: Context) -> bytes:
        """Answer the caller with what a connector, or the gateway itself, answered."""
        code = response_code(response.status_code, response.headers)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%.200r from %s: %s", path, context.peer(), code.name)
        metadata = metadata_from_headers(response.headers)
        if code is not StatusCode.OK:
            return await _fail(context, code, _message(response), metadata)
        try:
            payload = self._payload(path, response)
        except Refused as refused:
            code, problem = refused.code, refused.message
        else:
            context.set_trailing_metadata(metadata)
            return payload
        return await _fail(context, code, problem)

    async def _read(self, messages: AsyncIterator[bytes]) -> bytes:
        timeout, limit = self._shared.request_timeout, self._shared.limits.max_message_bytes
        self._require_room()
        watch = Watch(timeout)
        self._receiving += 1
        try:
            payload = await _only_message(messages, watch)
        except asyncio.CancelledError:
            if not watch.ran_out:
                raise
            problem = f"the request did not end within {timeout:g} seconds; only unary calls work"
            raise Refused(StatusCode.DEADLINE_EXCEEDED, problem) from None
        finally:
            self._receiving -= 1
            watch.stop()
        if payload is None:
            problem = "the request is not exactly one message; only unary calls are forwarded"
            raise Refused(StatusCode.UNIMPLEMENTED, problem)
        if len(payload) > limit:
            problem = f"a request of {len(payload):,} bytes exceeds {limit:,}"
            raise over_limit(self._shared.counters, "max_message_bytes", problem)
        return payload

    def _require_room(self) -> None:
        if self._receiving >= self._shared.limits.max_pending:
            problem = f"the requests of {self._receiving:,} calls are still on their way"
            raise over_limit(self._shared.counters, "max_pending", problem)

    def _payload(self, path: str, response: ForwardResponse) -> bytes:
        payload, limit = response.payload, self._shared.limits.max_sent_message_bytes
        if len(payload) > limit:
            problem = (
                f"{path[:200]}: a response of {len(payload):,} bytes exceeds the {limit:,} that may"
                " be sent"
            )
            raise over_limit(self._shared.counters, "max_sent_message_bytes", problem)
        if not is_framed(payload):
            return payload
        try:
            return unframe(payload, response.headers.get("grpc-encoding", ""), limit)
        except ProtocolError as error:
            problem = f"the connector's payload: {error}"
            raise Refused(StatusCode.INTERNAL, problem) from None


async def _fail(context: Context, *status: Any) -> bytes:
    await fail(context, *status)
    return b""  # which is not sent


def _wanted(path: str) -> Wanted:
    try:
        service, _ = split_method_path(path)
    except ValueError as error:
        raise Refused(StatusCode.UNIMPLEMENTED, str(error)) from None
    return Wanted.by_outsider(service)


def _timeout(context: Context, deadline: float) -> float:
    """Seconds until the gateway or the caller gives the call up, whoever is first."""
    remaining: float | None = context.time_remaining()
    own = deadline - asyncio.get_running_loop().time()
    return own if remaining is None else min(own, remaining)


async def _only_message(messages: AsyncIterator[bytes], watch: Watch) -> bytes | None:
    """The message of a unary call; ``None`` when the stream holds none, or more, or has no end."""
    only = None
    try:
        async for message in messages:
            if only is not None:
                return None
            only = message
            watch.restart(_END_TIMEOUT)
    except asyncio.CancelledError:
        if only is None or not watch.ran_out:
            raise
        return None
    return only


def _message(response: ForwardResponse) -> str:
    encoded = response.headers.get("grpc-message")
    if encoded is not None:
        return decode_message(encoded)
    return response.error_message or f"the connector answered with status {response.status_code}"
