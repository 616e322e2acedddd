"""Requests that were sent to a connector and wait for its answer.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Callable

from revconn._proto.registry_pb2 import ForwardResponse
from revconn.core.status import StatusCode
from revconn.exceptions import Overloaded
from revconn.gateway.failures import failure
from revconn.gateway.registry import Connection

__all__ = ["PendingRequests"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Pending:
    connection: Connection
    settle: Callable[[ForwardResponse], None]


class PendingRequests:
    """Every request that waits for an answer, at most ``limit`` of them, by its id.

    Each is settled at most once: by an answer, by a failure, or by being discarded because
    nobody waits any more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._requests: dict[str, _Pending] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def add(
        self,
        request_id: str,
        connection: Connection,
        settle: Callable[[ForwardResponse], None],
    ) -> None:
        """Expect an answer; ``settle`` is called with it. Raises :class:`Overloaded`."""
        if len(self._requests) >= self._limit:
            raise Overloaded(self._limit)
        self._requests[request_id] = _Pending(connection, settle)
        connection.pending.add(request_id)

    def answer(self, response: ForwardResponse, sender: Connection) -> None:
        """Settle the request that ``response`` answers.

        The answer may come on another connection than the request went out on, as long as both
        showed the same API key: so a connector hands over from one connection to the next.
        """
        pending = self._requests.get(response.request_id)
        if pending is None or pending.connection.key != sender.key:
            sender.unmatched += 1
            logger.debug(
                "connection %s answered %.64r, which is not pending", sender.id, response.request_id
            )
        elif response.response_stream_info.is_streamed:
            self.fail(
                response.request_id,
                StatusCode.INTERNAL,
                "the connector answered in chunks, which this gateway did not announce",
            )
        else:
            self._pop(response.request_id).settle(response)

    def fail(self, request_id: str, code: StatusCode, message: str) -> None:
        """Settle a request with a failure of the gateway's own, unless it is settled already."""
        if request_id in self._requests:
            self._pop(request_id).settle(failure(code, message, request_id))

    def fail_connection(self, connection: Connection, message: str) -> None:
        """Fail all that waits for ``connection`` with UNAVAILABLE."""
        for request_id in tuple(connection.pending):
            self.fail(request_id, StatusCode.UNAVAILABLE, message)

    def discard(self, request_id: str) -> None:
        """Forget a request whose caller no longer waits; settled ones are forgotten already."""
        if request_id in self._requests:
            self._pop(request_id)

    def _pop(self, request_id: str) -> _Pending:
        pending = self._requests.pop(request_id)
        pending.connection.pending.discard(request_id)
        pending.connection.end_if_drained()
        return pending
