"""Register: the rpc by which a backend says where it listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from revconn._proto.registry_pb2 import RegisterRequest, RegisterResponse
from revconn.core.decoding import decode
from revconn.core.errors import ProtocolError
from revconn.core.status import StatusCode
from revconn.gateway.failures import Refused
from revconn.gateway.shared import Shared
from revconn.gateway.statuses import answer, fail
from revconn.logger import get_logger

__all__ = ["Registrations", "refuse_register"]

logger = get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class Registrations:
    """Takes backends' registrations; each has to be repeated within the heartbeat timeout."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def register(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        """The rpc; its message is encoded, so that garbage gets an answer of ours."""
        try:
            address = self._shared.backends.register(await self._receive(context))
        except Refused as error:
            code, problem = error.code, error.message
        else:
            timeout = self._shared.heartbeat_timeout
            message = f"{address} is registered; repeat this within {timeout:g} seconds"
            registered = RegisterResponse(success=True, message=message)
            return await answer(context, registered.SerializeToString())
        logger.warning("refused a backend at %s: %s", context.peer(), problem)
        return await fail(context, code, problem)

    async def _receive(self, context: Context) -> RegisterRequest:
        timeout = self._shared.limits.handshake_timeout
        try:
            received = await asyncio.wait_for(context.read(), timeout)
        except asyncio.TimeoutError:
            self._shared.counters.refused["handshake_timeout"] += 1
            problem = f"no request came within {timeout:g} seconds"
            raise Refused(StatusCode.DEADLINE_EXCEEDED, problem) from None
        if not isinstance(received, bytes):
            raise Refused(StatusCode.INVALID_ARGUMENT, "the stream ended without a RegisterRequest")
        try:
            return decode(RegisterRequest, received)
        except ProtocolError as error:
            raise Refused(StatusCode.INVALID_ARGUMENT, str(error)) from None


async def refuse_register(_requests: AsyncIterator[bytes], context: Context) -> None:
    """The rpc where the gateway does not dial."""
    problem = "this gateway dials no backends; open EstablishConnection instead"
    await fail(context, StatusCode.UNIMPLEMENTED, problem)
