"""What a connector asks for beside answering: calls of its own, cancels, events, subscriptions.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from functools import lru_cache

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    EventMessage,
    ForwardRequest,
    ForwardResponse,
    SubscriptionRequest,
)
from revconn.core.chunks import split
from revconn.core.connection import CHUNKS
from revconn.core.deadline import request_deadline
from revconn.core.framing import is_framed, unframe
from revconn.core.metadata import headers_size, metadata_from_headers
from revconn.core.requests import forward_request
from revconn.core.rope import Data, Rope
from revconn.core.routing import Wanted, split_method_path
from revconn.core.status import ProtocolError, StatusCode
from revconn.gateway.backends import BackendRequest, Reply
from revconn.gateway.call import UNARY, Call
from revconn.gateway.refusals import Refused, failure, over_limit
from revconn.gateway.routes import Connection
from revconn.gateway.shared import Shared
from revconn.logger import get_logger

__all__ = ["ConnectorCall", "Wishes"]

# Its name is what applications configure: it stays, whatever the file is called.
logger = get_logger("revconn.gateway.connectors")

# What a peer that announced no limit takes: gRPC's own default, in every language.
USUAL_LIMIT = 4 * 1024 * 1024
_COUNTED = 6
_LONGEST_METHOD = 200  # characters, of those that are named in errors


# Connectors call the same methods again and again. Bounded, because it is they who name them.
@lru_cache(maxsize=256)
def _wanted(path: str) -> Wanted:
    try:
        service, _ = split_method_path(path)
    except ValueError as error:
        raise Refused(StatusCode.INVALID_ARGUMENT, str(error)) from None
    return Wanted.by_connector(service)


class ConnectorCall(Call):
    """A call that a connector makes; its ``wishes`` send it the answer."""

    _framed = False  # for_backend() looks: nobody else needs to know

    def __init__(
        self,
        request_id: str,
        path: str,
        wanted: Wanted,
        deadline: float,
        asker: Connection,
        wishes: Wishes,
    ) -> None:
        super().__init__(request_id, path, wanted, deadline, asker)
        self._wishes = wishes

    def respond(
        self,
        response: ForwardResponse,
        data: Data | None = None,
        payload: memoryview | Rope | None = None,
    ) -> None:
        """Send the asking connector what another one, or the gateway itself, answered."""
        if payload is not None:
            response.payload = bytes(payload)
        self._wishes.respond(response, self.method, data)

    def relay(self, reply: Reply) -> None:
        """Send the asking connector what a backend answered: prefixed if the request was."""
        self.respond(reply.response(self.id, framed=self._framed))

    def for_backend(self, request: ForwardRequest) -> BackendRequest:
        """The message alone, and what of the headers is metadata."""
        payload = request.payload
        self._framed = is_framed(payload)
        if self._framed:
            encoding = request.headers.get("grpc-encoding", "")
            try:
                payload = unframe(payload, encoding, self._wishes.largest)
            except ProtocolError as error:
                raise Refused(StatusCode.INVALID_ARGUMENT, f"the payload: {error}") from None
        timeout = self.deadline - asyncio.get_running_loop().time()
        return BackendRequest(payload, metadata_from_headers(request.headers), timeout)


def _whole_seconds(seconds: float) -> int:
    # Rounded up, and never 0, which means no limit: a connector that gave up early would fail a
    # call whose caller still waits.
    return max(1, math.ceil(seconds))


class Wishes:
    """What one connector asks for, and what it is answered.

    :ivar largest: bytes of a message that anybody may be sent.
    """

    __slots__ = (
        "_connection", "_largest_small", "_loop", "_protocol", "_seconds", "_shared", "_timeout",
        "_usual_limit", "largest",
    )  # fmt: skip

    def __init__(
        self, shared: Shared, connection: Connection, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._shared = shared
        self._connection = connection
        self._protocol = connection.protocol
        self._loop = loop
        self._usual_limit = min(connection.max_message_bytes, USUAL_LIMIT)
        self._seconds = shared.request_timeout
        self._timeout = _whole_seconds(self._seconds)
        self.largest = shared.limits.max_sent_message_bytes
        # As HTTP/2 counts them headers are at most so many times as large as they are encoded:
        # those of small requests are small.
        self._largest_small = shared.limits.max_metadata_bytes // _COUNTED

    def hear(self, kind: str, message: ConnectionMessage) -> None:
        """Do what a message asks for that is neither an answer nor a request."""
        if kind == "cancel":
            self._receive_cancel(message.cancel.request_id)
        elif kind == "event":
            self._receive_event(message.event)
        else:
            self._receive_subscription(message.subscription)

    def forward(self, message: ConnectionMessage, data: bytes) -> None:
        """Send a request on to whoever answers it, or say why not."""
        try:
            self._forward(message, data)
        except Refused as refused:
            request = message.request
            self.respond(refused.response(request.request_id), request.method_path, None)

    def _forward(self, message: ConnectionMessage, data: bytes) -> None:
        request, shared, connection = message.request, self._shared, self._connection
        request_id, path = request.request_id, request.method_path
        wanted = _wanted(path)
        if not shared.keys.allows(connection.key, wanted.service):
            problem = f"the API key may not call {wanted.service[:200]!r}"
            raise Refused(StatusCode.PERMISSION_DENIED, problem)
        headers = request.headers
        # To go through a map of protobuf's takes long.
        size = 0 if len(data) <= self._largest_small else headers_size(headers)
        shared.calls.admit(wanted, size, connection, request_id)
        given = request.timeout_seconds
        own = request_deadline(given, headers, 0.0) if headers else given if given > 0 else None
        # Not taken from two instants: these are rounded, and could make a second more of it.
        seconds, timeout = self._seconds, self._timeout
        if own is not None and own < seconds:
            seconds, timeout = own, _whole_seconds(own)
        deadline = self._loop.time() + seconds
        call = ConnectorCall(request_id, path, wanted, deadline, connection, self)
        forwarded = b""
        # Who calls is the gateway's to say.
        if request.peer or request.metadata:
            request.ClearField("peer")
            request.ClearField("metadata")
        elif not request.HasField("streaming_info"):
            forwarded = forward_request(data, timeout)
        if not forwarded:  # it is written in some other way than usual
            request.timeout_seconds = timeout
            request.streaming_info.CopyFrom(UNARY)
            forwarded = message.SerializeToString()
        shared.calls.submit(call, forwarded)

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

    def respond(self, response: ForwardResponse, method: str, data: Data | None) -> None:
        """Send the response to its call of ``method``, or why it cannot have it.

        ``data`` is the same, as it came from the connector that answered.
        """
        if not self._protocol.established:  # it was sent away just now
            return
        outbound = self._connection.outbound
        # As it came: to decode it was to see whose it is, and to encode it anew changes nothing.
        if data is not None and len(data) <= self._usual_limit and not outbound.is_full:
            outbound.put(data)
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
        if CHUNKS in protocol.features and len(data) > min(limit, USUAL_LIMIT):
            try:
                chunks = split(response, min(limit, USUAL_LIMIT))
            except ValueError as error:
                raise over_limit(counters, "max_sent_message_bytes", str(error)) from None
            yield from (protocol.respond(chunk) for chunk in chunks)
        elif len(data) > limit:
            problem = f"a response of {len(data):,} bytes exceeds the {limit:,} that may be sent"
            raise over_limit(counters, "max_sent_message_bytes", problem)
        else:
            yield data
