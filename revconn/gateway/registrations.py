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
from revconn.gateway.addresses import Address
from revconn.gateway.failures import Refused
from revconn.gateway.shared import Shared
from revconn.gateway.statuses import answer, fail

__all__ = ["Registrations"]

Context = grpc.aio.ServicerContext[Any, Any]


class Registrations:
    """Takes backends' registrations; each has to be repeated within the heartbeat timeout."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def register(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        """The rpc; its message is encoded, so that garbage gets an answer of ours."""
        peer = context.peer()
        try:
            address = self._shared.backends.register(await self._receive(context), peer)
        except Refused as error:
            code, problem = error.code, error.message
        else:
            registered = RegisterResponse(success=True, message=self._message(address))
            return await answer(context, registered.SerializeToString())
        self._shared.journal.refused_backend(peer, code, problem)
        return await fail(context, code, problem)

    def _message(self, address: Address | None) -> str:
        if address is None:
            return "registered, and not dialled: open EstablishConnection to be called"
        timeout = self._shared.heartbeat_timeout
        return f"{address} is registered; repeat this within {timeout:g} seconds"

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
