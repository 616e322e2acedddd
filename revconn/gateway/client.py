"""Unary calls out: a connection to a backend, and each call on a stream of its own.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from typing import Callable, NamedTuple

from revconn.core.deadline import format_grpc_timeout
from revconn.core.framing import GzipInflater, frame
from revconn.core.metadata import Metadata
from revconn.core.rope import Data
from revconn.core.status import ProtocolError, StatusCode, decode_message
from revconn.gateway.addresses import Address
from revconn.gateway.tls import TLSFilter
from revconn.gateway.wires import Turn, Wire
from revconn.http2.grpc import (
    MessageTooLong,
    decode_metadata,
    decode_pairs,
    encode_pairs,
    end_by_reset,
    end_by_trailers,
    error_name,
    refusal,
    request_headers,
)
from revconn.http2.headers import Field, FieldKind, encode_fields
from revconn.http2.streams import ErrorCode, Receiver, Stream
from revconn.http2.writing import Settings

__all__ = ["Answer", "Client", "ClientCall", "Lost"]

# Seconds of silence, while calls wait, before a sign of life is asked for; and for how long that is
# waited for. Servers end connections on which there are more pings than one in five minutes.
_SILENCE = 20.0
_PING_TIMEOUT = 20.0
_PING_INTERVAL = 300.0

_OF_THE_TRANSPORT = frozenset({b"grpc-status", b"grpc-message", b"grpc-accept-encoding"})


class Answer(NamedTuple):
    """How a call ended, in the backend's own words or for want of them."""

    code: StatusCode
    message: str
    payload: bytes = b""
    initial: Metadata = ()
    trailing: Metadata = ()


class Lost(Exception):
    """A call was not answered; ``is_unsent``: for sure, nobody has done anything for it."""

    def __init__(self, reason: str, *, is_unsent: bool) -> None:
        super().__init__(reason)
        self.is_unsent = is_unsent


class ClientCall(Receiver):
    """One call, from when it waits for a stream to its answer.

    :ivar begun: is done when the first message has come, or the call is over.
    :ivar ended: is done when the call is over; its result is an :class:`Answer`, or :class:`Lost`,
        or ``None`` for what is no unary answer.
    """

    def __init__(self, client: Client, path: str, payload: bytes, metadata: Metadata) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[Answer | Lost | None] = loop.create_future()
        self._client = client
        self._path = path
        self._metadata = metadata
        self._request = payload
        self._stream: Stream | None = None
        self._initial: Metadata | None = None  # once headers have come
        self._message: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Of its own: who gives up waiting for a future cancels it.
        self._is_over = False

    def expire_at(self, deadline: float) -> None:
        """Give the call until then, on the loop's clock."""
        self._timer = asyncio.get_running_loop().call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._end(Answer(StatusCode.DEADLINE_EXCEEDED, "the backend did not answer in time"))

    def open(self, stream: Stream, scheme: str, authority: str) -> None:
        """There is a stream for it: send all of the request."""
        self._stream = stream
        stream.receiver = self
        fields = request_headers(scheme, authority, f"/{self._path.removeprefix('/')}", {})
        if self._timer is not None:
            left = self._timer.when() - asyncio.get_running_loop().time()
            fields.append((b"grpc-timeout", format_grpc_timeout(left).encode()))
        # What HTTP/2 cannot carry as text is left out, as it is for a connector.
        fields += encode_pairs(
            (name, value)
            for name, value in self._metadata
            if isinstance(value, bytes) or value.isascii()
        )
        stream.open(encode_fields(fields))
        stream.end_data(frame(self._request))
        self._request = b""

    # What the backend answers

    def take_head(self, fields: Sequence[Field], *, ended: bool) -> None:
        """Headers have come, or trailers, or both in one."""
        if self._is_over:
            return
        most = self._client.most_metadata
        if self._client.endpoint.list_size > most:
            problem = f"{self._path[:200]}: the answer's metadata exceeds {most:,} bytes"
            self._end(Answer(StatusCode.RESOURCE_EXHAUSTED, problem))
        elif any(each.kind == FieldKind.MALFORMED for each in fields):
            self._break("the backend sent headers that HTTP/2 does not allow")
        elif self._initial is None:
            self._take_opening(fields, ended)
        elif ended:
            self._take_trailers(fields)
        else:
            self._break("the backend sent headers in the middle of an answer")

    def _take_opening(self, fields: Sequence[Field], ended: bool) -> None:
        headers = decode_metadata((each.name, each.value) for each in fields)
        if str(headers.get(":status")).startswith("1") and not ended:
            return  # there is more to come
        if ended and "grpc-status" in headers:
            self._take_trailers(fields)
            return
        end = refusal(headers)
        if end is not None:
            self._end(Lost(end.details, is_unsent=False))
            return
        self._initial = _metadata(fields)
        if headers.get("grpc-encoding") == "gzip" and self._stream is not None:
            self._stream.inflate = GzipInflater(self._stream.limit)
        if ended:
            self._take_trailers(())

    def _take_trailers(self, fields: Sequence[Field]) -> None:
        trailers = decode_metadata((each.name, each.value) for each in fields)
        code, problem = end_by_trailers(trailers, silent="the backend ended the call")
        if code is StatusCode.OK:
            if self._message is None:
                self._end(None)
                return
            message = ""
        elif "grpc-message" in trailers:
            message = decode_message(str(trailers["grpc-message"]))
        else:
            message = problem if code is StatusCode.UNKNOWN else ""
        payload = b"" if code or self._message is None else self._message
        self._end(Answer(code, message, payload, self._initial or (), _metadata(fields)))

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """A message has come; or, which is wrong, an end without trailers."""
        if self._is_over:
            return
        if self._initial is None:
            self._break("the backend sent an answer without headers")
        elif len(messages) + (self._message is not None) > 1:
            self._end(None)
        else:
            if messages:
                self._message = bytes(messages[0])
                if not self.begun.done():
                    self.begun.set_result(None)
            if ended:
                self._take_trailers(())

    def refuse(self, error: ProtocolError) -> None:
        """The answer is too large, or broken."""
        code, problem = StatusCode.INTERNAL, f"the backend's answer: {error}"
        if isinstance(error, MessageTooLong):
            code = StatusCode.RESOURCE_EXHAUSTED
            problem = f"a response of {error.size:,} bytes exceeds the {self._limit:,}"
            problem = f"{problem} that may be sent (the gateway's max_sent_message_bytes)"
        self._end(Answer(code, f"{self._path[:200]}: {problem}"))

    @property
    def _limit(self) -> int:
        return self._client.endpoint.settings.message_limit

    def reset(self, code: int) -> None:
        """The backend does not go on with it, or never began."""
        reason = f"the backend reset the stream ({error_name(code)})"
        if code == ErrorCode.REFUSED_STREAM:
            self._end(Lost(reason, is_unsent=True))
        else:
            self._end(Answer(end_by_reset(code).code, reason, b"", self._initial or ()))

    def break_off(self, reason: str) -> None:
        """The connection is gone. The backend may have acted upon the call."""
        self._end(Lost(reason, is_unsent=False))

    # Its end

    def lose(self, reason: str) -> None:
        """There was no stream for it, and will be none."""
        self._end(Lost(reason, is_unsent=True))

    def cancel(self) -> None:
        """Nobody waits for its answer any more."""
        self._end(None)

    def _break(self, problem: str) -> None:
        self._end(Answer(StatusCode.INTERNAL, problem), ErrorCode.PROTOCOL_ERROR)

    def _end(self, outcome: Answer | Lost | None, code: int = ErrorCode.CANCEL) -> None:
        if self._is_over:
            return
        self._is_over = True
        if not self.ended.done():
            self.ended.set_result(outcome)
        if not self.begun.done():
            self.begun.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is None:
            self._client.discard(self)
        else:
            self._stream.reset(code)  # unless it is over in both directions


class Client(Wire):
    """A connection to a backend.

    :param forget: told when it is over.
    :param most_metadata: bytes of an answer's headers, and of its trailers.
    :ivar ready: is done once calls may be made: its result is nothing; or why none will be.
    """

    __slots__ = (
        "_authority",
        "_forget",
        "_is_admitting",
        "_is_going",
        "_pinged_last",
        "_scheme",
        "_waiting",
        "most_metadata",
        "ready",
    )

    def __init__(
        self,
        sock: socket.socket,
        address: Address,
        settings: Settings,
        turn: Turn,
        tls: TLSFilter | None,
        forget: Callable[[Client], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[str] = loop.create_future()
        self.most_metadata = settings.header_list
        self._authority = address.host_port
        self._scheme = "https" if address.is_tls else "http"
        self._forget = forget
        self._waiting: dict[ClientCall, None] = {}  # for a stream, the first first
        self._is_going = self._is_admitting = False
        self._pinged_last = float("-inf")
        super().__init__(sock, str(address), settings, turn, loop, tls, is_server=False)
        if tls is not None:
            self._send(tls.begin())

    @property
    def is_usable(self) -> bool:
        """Whether calls can still be made."""
        endpoint = self.endpoint
        return not (self.is_closed or endpoint.is_ended or self._is_going) and endpoint.has_ids

    def call(self, path: str, payload: bytes, metadata: Metadata, deadline: float) -> ClientCall:
        """Make a call as soon as the backend takes one more."""
        call = ClientCall(self, path, payload, metadata)
        call.expire_at(deadline)
        self._waiting[call] = None
        self._admit()
        return call

    def discard(self, call: ClientCall) -> None:
        """A call does not wait for a stream any more."""
        self._waiting.pop(call, None)

    def _admit(self) -> None:
        self._is_admitting = False
        endpoint = self.endpoint
        while self._waiting:
            if not self.is_usable:
                for call in tuple(self._waiting):
                    call.lose("the backend takes no more calls on this connection")
            elif len(endpoint.streams) < endpoint.peer_max_streams:
                call = next(iter(self._waiting))
                del self._waiting[call]
                call.open(endpoint.open_stream(), self._scheme, self._authority)
            else:
                break
        if self._is_going and not endpoint.streams:
            self.end()

    def _admit_soon(self) -> None:
        if not self._is_admitting:
            self._is_admitting = True
            self._turn.at_end(self._admit)

    # What the backend says of the connection

    def _receive(self, data: bytes) -> None:
        super()._receive(data)
        endpoint = self.endpoint
        if not self.ready.done():
            if endpoint.is_ended:
                self.ready.set_result(f"it does not speak HTTP/2 ({endpoint.end_reason})")
            elif endpoint.is_settled:
                self.ready.set_result("")
        if self._waiting:  # there may be room for more streams, or none for any
            self._admit_soon()

    def accept(self, stream: Stream, fields: list[Field], size: int, *, ended: bool) -> None:
        """Servers open no streams."""
        raise AssertionError

    def close_stream(self, stream: Stream) -> None:
        """A stream is over: there is room for another one."""
        if self._waiting or self._is_going:
            self._admit_soon()

    def want_credit(self, stream: Stream) -> None:
        """An answer needs more than the usual window, and is no larger than is allowed."""
        self.endpoint.grant(stream)

    def go(self, last_id: int, code: int, debug: bytes) -> None:
        """The backend takes no more calls here; those that it took are answered."""
        self._is_going = True
        self._admit_soon()

    # Time, and the end

    def look(self) -> None:
        """See whether the backend is still there, while calls wait for it."""
        now = time.monotonic()
        if self.pinged_at is not None:
            if now - self.pinged_at > _PING_TIMEOUT:
                self.close("the backend does not answer a ping")
            return
        is_silent = self.endpoint.streams and now - self.heard_at > _SILENCE
        if is_silent and now - self._pinged_last > _PING_INTERVAL:
            self._pinged_last = self.pinged_at = now
            self.endpoint.ping()

    def ask_to_go(self) -> None:
        """Have it end once what was asked on it is answered."""
        self._is_going = True
        self._admit_soon()

    def over(self, reason: str) -> None:
        """The connection is over."""
        if not self.ready.done():
            self.ready.set_result(reason or "the connection ended")
        for call in tuple(self._waiting):
            call.lose(reason or "the connection ended")
        self._forget(self)


def _metadata(fields: Sequence[Field]) -> Metadata:
    """What an application set, or a proxy, of headers or trailers."""
    return tuple(
        decode_pairs(
            (each.name, each.value)
            for each in fields
            if each.kind == FieldKind.ORDINARY and each.name not in _OF_THE_TRANSPORT
        )
    )
