"""Calls of one connector that go to a backend, not to another connector.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardRequest, ForwardResponse
from revconn.core.errors import ProtocolError
from revconn.core.framing import is_framed, pack, unframe
from revconn.core.metadata import headers_from_metadata, metadata_from_headers
from revconn.core.routing import Wanted
from revconn.core.status import StatusCode, encode_message, http_status
from revconn.gateway.backends import Reply, Unreachable
from revconn.gateway.pending import Settle
from revconn.gateway.refusals import Refused
from revconn.gateway.routes import Connection
from revconn.gateway.shared import Shared
from revconn.logger import get_logger

__all__ = ["DialledCalls"]

logger = get_logger(__name__)


class DialledCalls:
    """The calls of ``connection`` that wait for a backend, each a task, by their ids."""

    def __init__(self, connection: Connection, shared: Shared) -> None:
        self._connection = connection
        self._shared = shared
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(
        self, request: ForwardRequest, wanted: Wanted, deadline: float, settle: Settle
    ) -> None:
        """Make a call that was admitted, until ``deadline`` on the loop's clock.

        ``settle`` gets the answer, unless the call is given up before.
        """
        request_id = request.request_id
        task = asyncio.ensure_future(self._call(request, wanted, deadline, settle))
        self._tasks[request_id] = task
        self._connection.asked.add(request_id)
        task.add_done_callback(lambda _: self._done(request_id))

    def cancel(self, request_id: str) -> bool:
        """Give a call up; whether there is one with that id."""
        task = self._tasks.get(request_id)
        return task is not None and task.cancel()

    def cancel_all(self) -> None:
        """Give up every call: nobody is there to be answered."""
        for task in self._tasks.values():
            task.cancel()

    def _done(self, request_id: str) -> None:
        del self._tasks[request_id]
        self._connection.asked.discard(request_id)
        self._connection.end_if_drained()

    async def _call(
        self, request: ForwardRequest, wanted: Wanted, deadline: float, settle: Settle
    ) -> None:
        try:
            response = await self._response(request, wanted, deadline)
        except Refused as refused:
            response = refused.response(request.request_id)
        except asyncio.CancelledError:
            raise
        except BaseException:
            logger.exception("%.200r for a backend: a bug in the gateway", request.method_path)
            problem = "the gateway failed; its log says how"
            response = Refused(StatusCode.INTERNAL, problem).response(request.request_id)
        settle(response)

    async def _response(
        self, request: ForwardRequest, wanted: Wanted, deadline: float
    ) -> ForwardResponse:
        forwarding = self._shared.forwarding
        try:
            return await self._dial(request, wanted, deadline)
        except Unreachable as error:
            if not (error.is_unsent and forwarding.expects(wanted)):
                raise
        message = ConnectionMessage(request=request)
        return await forwarding.exchange(message, wanted, deadline)

    async def _dial(
        self, request: ForwardRequest, wanted: Wanted, deadline: float
    ) -> ForwardResponse:
        payload, framed = request.payload, is_framed(request.payload)
        if framed:
            limit = self._shared.limits.max_sent_message_bytes
            try:
                payload = unframe(payload, request.headers.get("grpc-encoding", ""), limit)
            except ProtocolError as error:
                raise Refused(StatusCode.INVALID_ARGUMENT, f"the payload: {error}") from None
        reply = await self._shared.backends.call(
            wanted,
            request.method_path,
            payload,
            metadata_from_headers(request.headers),
            deadline - asyncio.get_running_loop().time(),
        )
        return ForwardResponse(
            request_id=request.request_id,
            status_code=http_status(reply.code),
            headers=_headers(reply),
            payload=pack(reply.payload, framed=framed and not reply.code),
            error_message=reply.message,
        )


def _headers(reply: Reply) -> dict[str, str]:
    headers = headers_from_metadata((*reply.initial, *reply.trailing))
    headers.update({"content-type": "application/grpc", "grpc-status": str(int(reply.code))})
    if reply.message:
        headers["grpc-message"] = encode_message(reply.message)
    return headers
