"""What a registered connector says, and what becomes of it."""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionStatus,
    ForwardResponse,
    Heartbeat,
    SubscriptionRequest,
)
from revconn.core.deadline import request_deadline
from revconn.core.features import CANCEL
from revconn.core.routing import Wanted, split_method_path
from revconn.core.status import StatusCode
from revconn.gateway.dialling import DialledCalls
from revconn.gateway.failures import Refused
from revconn.gateway.metadata import require_small_headers
from revconn.gateway.registry import Connection
from revconn.gateway.responding import LONGEST_METHOD, respond
from revconn.gateway.shared import Shared
from revconn.logger import get_logger

__all__ = ["Conversation"]

logger = get_logger(__name__)

_LONGEST_ID = 256
_STATUSES = {number: name for name, number in ConnectionStatus.StatusType.items()}


class Conversation:
    """Takes the messages of one connection, in order."""

    def __init__(self, connection: Connection, shared: Shared) -> None:
        self._connection = connection
        self._shared = shared
        self._dialled = DialledCalls(connection, shared)

    async def receive(self, message: ConnectionMessage) -> None:
        """Do what a message asks for; the next one is not read before that is done."""
        kind = message.WhichOneof("message_type")
        if kind == "response":
            self._shared.forwarding.answer(message.response, self._connection)
        elif kind == "heartbeat":
            self._receive_heartbeat(message.heartbeat)
        elif kind == "request":
            self._receive_request(message)
            # Who calls and does not read the answers is not read either.
            await self._connection.outbound.room()
        elif kind == "status":
            self._receive_status(message.status)
        elif kind == "event":
            self._shared.events.publish(message.event)
        elif kind == "subscription":
            self._receive_subscription(message.subscription)
        elif kind == "cancel" and CANCEL in self._connection.features:
            self._receive_cancel(message.cancel)
        else:
            self._connection.note(kind or "a message of unknown type")

    def end(self) -> None:
        """Nothing more will be received, nor sent."""
        self._dialled.cancel_all()

    def _receive_heartbeat(self, heartbeat: Heartbeat) -> None:
        if heartbeat.connection_id == self._connection.id:
            self._connection.last_heartbeat = time.monotonic()
            logger.debug("connection %s: heartbeat", self._connection.id)
        else:
            foreign = self._connection.foreign_heartbeat = heartbeat.connection_id[:64]
            self._connection.note("a heartbeat whose id is not its own", f" but {foreign!r}")

    def _receive_status(self, status: ConnectionStatus) -> None:
        if status.status == ConnectionStatus.DISCONNECTED:
            if not self._connection.draining:
                reason = repr(status.message[:200]) if status.message else ""
                self._shared.journal.draining(self._connection, reason)
            self._shared.forwarding.drain(self._connection, "it left")
        else:
            name = _STATUSES.get(status.status, "of unknown type")
            self._connection.note(f"status {name}", f": {status.message[:200]!r}")

    def _receive_request(self, message: ConnectionMessage) -> None:
        request_id = message.request.request_id
        if not 0 < len(request_id) <= _LONGEST_ID:
            self._connection.note("a request with no id or an endless one")
            return
        try:
            self._forward(message)
        except Refused as refused:
            self._respond(refused.response(request_id), message.request.method_path)

    def _forward(self, message: ConnectionMessage) -> None:
        request, shared, connection = message.request, self._shared, self._connection
        wanted = Wanted.by_connector(self._service(request.method_path))
        shared.forwarding.admit(request.request_id, connection)
        require_small_headers(request.headers, shared.limits, shared.counters)
        longest = shared.request_timeout
        own = request_deadline(request.timeout_seconds, request.headers, 0.0)
        # Not taken from two instants: these are rounded, and could make a second more of it.
        seconds = longest if own is None else min(longest, own)
        request.timeout_seconds = max(1, math.ceil(seconds))
        deadline = asyncio.get_running_loop().time() + seconds
        settle = partial(self._respond, method=request.method_path[:LONGEST_METHOD])
        dial = partial(self._dialled.start, wanted=wanted, deadline=deadline)
        shared.forwarding.submit(message, wanted, deadline, settle, dial=dial, asker=connection)

    def _respond(self, response: ForwardResponse, method: str) -> None:
        respond(self._connection, response, self._shared.counters, method)

    def _service(self, method_path: str) -> str:
        try:
            service, _ = split_method_path(method_path)
        except ValueError as error:
            raise Refused(StatusCode.INVALID_ARGUMENT, str(error)) from None
        if not self._shared.keys.allows(self._connection.key, service):
            problem = f"the API key may not call {service[:200]!r}"
            raise Refused(StatusCode.PERMISSION_DENIED, problem)
        return service

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
                self._refuse_subscription(refused)

    def _receive_cancel(self, cancel: CancelRequest) -> None:
        if self._dialled.cancel(cancel.request_id):
            return
        if not self._shared.forwarding.cancel(cancel.request_id, self._connection):
            # The answer and the cancel met on the way, as they may.
            logger.debug(
                "connection %s cancelled %.64r, which is not a pending call of its own",
                self._connection.id,
                cancel.request_id,
            )

    def _refuse_subscription(self, refused: Refused) -> None:
        """Tell the connector, once: there is no answer to a subscription to be told in."""
        what = f"a subscription ({refused.code.name})"
        if self._connection.note(what, f": {refused.message}"):
            error = ConnectionStatus(
                connection_id=self._connection.id,
                status=ConnectionStatus.ERROR,
                message=refused.message,
            )
            self._connection.outbound.put(ConnectionMessage(status=error).SerializeToString())
