"""The transparent proxy: any unary gRPC call, forwarded to a connector that serves it."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardResponse
from revconn.core.deadline import format_grpc_timeout
from revconn.core.errors import ProtocolError
from revconn.core.framing import is_framed, pack, unframe
from revconn.core.routing import split_method_path
from revconn.core.status import StatusCode, decode_message, response_code
from revconn.gateway.backends import Reply
from revconn.gateway.failures import NobodyServes, Refused, over_limit
from revconn.gateway.metadata import (
    application_metadata,
    headers_from_metadata,
    metadata_from_headers,
    require_small_headers,
)
from revconn.gateway.shared import Shared
from revconn.gateway.statuses import begin, fail
from revconn.logger import get_logger

__all__ = ["Proxy"]

logger = get_logger(__name__)

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
            service = self._service(path)
            if not self._shared.registry.serves(service):
                reply = await self._dial(path, service, messages, context)
                return await self._relay(path, reply, context)
            response = await self._forward(path, service, messages, context)
        except Refused as refused:
            response = refused.response()
        code = response_code(response.status_code, response.headers)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%.200r from %s: %s", path, context.peer(), code.name)
        metadata = metadata_from_headers(response.headers)
        if code is not StatusCode.OK:
            return await _fail(context, code, _message(response), metadata)
        try:
            payload = self._payload(response)
        except Refused as refused:
            code, problem = refused.code, refused.message
        else:
            context.set_trailing_metadata(metadata)
            return payload
        return await _fail(context, code, problem)

    def _service(self, path: str) -> str:
        try:
            service, _ = split_method_path(path)
        except ValueError as error:
            raise Refused(StatusCode.UNIMPLEMENTED, str(error)) from None
        if not (self._shared.registry.serves(service) or self._shared.backends.serves(service)):
            self._shared.counters.calls_unserved += 1
            raise NobodyServes(service)
        return service

    async def _dial(
        self, path: str, service: str, messages: AsyncIterator[bytes], context: Context
    ) -> Reply:
        """Call a backend with what the caller sent, as it is."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._shared.request_timeout
        metadata = tuple(context.invocation_metadata() or ())
        headers = headers_from_metadata(metadata)
        require_small_headers(headers, self._shared.limits, self._shared.counters)
        payload = await self._read(messages)
        # The caller's own deadline is grpc's business here too, but the backend wants to know it.
        remaining: float | None = context.time_remaining()
        timeout = min(deadline - loop.time(), math.inf if remaining is None else remaining)
        metadata = application_metadata(metadata)
        return await self._shared.backends.call(service, path, payload, metadata, timeout)

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

    async def _forward(
        self, path: str, service: str, messages: AsyncIterator[bytes], context: Context
    ) -> ForwardResponse:
        shared = self._shared
        loop = asyncio.get_running_loop()
        deadline = loop.time() + shared.request_timeout
        headers = headers_from_metadata(context.invocation_metadata() or ())
        require_small_headers(headers, shared.limits, shared.counters)
        headers["content-type"] = "application/grpc"
        message = ConnectionMessage()
        request = message.request
        request.payload = pack(await self._read(messages))
        remaining: float | None = context.time_remaining()
        if remaining is not None:
            headers["grpc-timeout"] = format_grpc_timeout(remaining)
        timeout = min(deadline - loop.time(), math.inf if remaining is None else remaining)
        request.request_id = str(uuid.uuid4())
        request.method_path = path
        request.headers.update(headers)
        request.timeout_seconds = max(1, math.ceil(timeout))
        # The caller's own deadline is grpc's business: it cancels this when it passes.
        return await self._exchange(message, service, deadline)

    async def _read(self, messages: AsyncIterator[bytes]) -> bytes:
        timeout, limit = self._shared.request_timeout, self._shared.limits.max_message_bytes
        self._require_room()
        watch = _Watch(timeout)
        self._receiving += 1
        try:
            payload = await _only_message(messages)
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

    async def _exchange(
        self, message: ConnectionMessage, service: str, deadline: float
    ) -> ForwardResponse:
        """Send the request and wait for its answer, until ``deadline`` on the loop's clock."""
        answered: asyncio.Future[ForwardResponse] = asyncio.get_running_loop().create_future()

        def settle(response: ForwardResponse) -> None:
            if not answered.done():  # a caller that gave up has cancelled it
                answered.set_result(response)

        forwarding, request_id = self._shared.forwarding, message.request.request_id
        forwarding.submit(message, service, deadline, settle)
        message.Clear()  # it may be large, and the answer may take a while
        try:
            return await answered
        finally:
            forwarding.give_up(request_id, "the caller gave up")

    def _payload(self, response: ForwardResponse) -> bytes:
        payload, limit = response.payload, self._shared.limits.max_sent_message_bytes
        if len(payload) > limit:
            problem = f"a response of {len(payload):,} bytes exceeds the {limit:,} that may be sent"
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


class _Watch:
    """Cancels the task that made it when time runs out; wait_for() would cost a task of its own."""

    def __init__(self, timeout: float) -> None:
        self.ran_out = False
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(timeout, self._run_out)

    def stop(self) -> None:
        self._timer.cancel()

    def _run_out(self) -> None:
        self.ran_out = True
        if self._task is not None:
            self._task.cancel()


async def _only_message(messages: AsyncIterator[bytes]) -> bytes | None:
    """The message of a unary call; ``None`` when the stream holds none, or a second one."""
    only = None
    async for message in messages:
        if only is not None:
            return None
        only = message
    return only


def _message(response: ForwardResponse) -> str:
    encoded = response.headers.get("grpc-message")
    if encoded is not None:
        return decode_message(encoded)
    return response.error_message or f"the connector answered with status {response.status_code}"
