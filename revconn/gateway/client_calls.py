"""One call to a backend: a stream of HTTP/2, and who is told what is answered on it.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from revconn.core.deadline import format_grpc_timeout
from revconn.core.framing import GzipInflater, frame
from revconn.core.metadata import Metadata
from revconn.core.rope import Data
from revconn.core.status import ProtocolError, StatusCode, decode_message
from revconn.core.stream import OVERHEAD
from revconn.http2.endpoint import Endpoint
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

__all__ = ["Answer", "Asker", "ClientCall", "Lost", "UnaryAsker"]

_OF_THE_TRANSPORT = frozenset({b"grpc-status", b"grpc-message", b"grpc-accept-encoding"})
_LOOKS = 5  # from the beginning of an answer to when it is taken for one that streams


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


class Carrier(Protocol):
    """The connection, as its calls need it.

    :ivar most_metadata: bytes of an answer's headers, and of its trailers.
    """

    endpoint: Endpoint
    most_metadata: int

    def make(self, call: ClientCall) -> None:
        """Make a call as soon as the backend takes one more."""

    def discard(self, call: ClientCall) -> None:
        """A call does not wait for a stream any more."""


class Asker:
    """Who makes a call, and is told what comes of it. None of this may raise."""

    __slots__ = ()

    def opened(self) -> None:
        """There is a stream for it: what is asked may be sent."""
        raise NotImplementedError

    def take_initial(self, metadata: Metadata) -> None:
        """The answer's initial metadata has come."""
        raise NotImplementedError

    def take(self, messages: list[Data]) -> None:
        """Messages have come. Each is to be consumed, or no more come."""
        raise NotImplementedError

    def resume(self) -> None:
        """There is room for more of what is asked."""

    def end(self, outcome: Answer | Lost) -> None:
        """The call is over. Of an :class:`Answer` this is the end: what came before was told."""
        raise NotImplementedError


class ClientCall(Receiver):
    """One call, from when it waits for a stream to its end.

    :param deadline: that the backend is told, on the loop's clock.
    :ivar asker: who is told of it.
    """

    __slots__ = (
        "_client", "_deadline", "_is_over", "_metadata", "_path", "_stream", "_unread", "asker",
        "has_initial",
    )  # fmt: skip

    def __init__(
        self, client: Carrier, path: str, metadata: Metadata, deadline: float | None, asker: Asker
    ) -> None:
        self.asker = asker
        self._client = client
        self._path = path
        self._metadata = metadata
        self._deadline = deadline
        self._stream: Stream | None = None
        self.has_initial = False
        self._unread = 0  # what the messages cost that were not consumed
        self._is_over = False

    def open(self, stream: Stream, scheme: str, authority: str) -> None:
        """There is a stream for it: send what every request begins with."""
        self._stream = stream
        stream.receiver = self
        fields = request_headers(scheme, authority, f"/{self._path.removeprefix('/')}", {})
        if self._deadline is not None:
            left = self._deadline - asyncio.get_running_loop().time()
            fields.append((b"grpc-timeout", format_grpc_timeout(max(0.0, left)).encode()))
        # What HTTP/2 cannot carry as text is left out, as it is for a connector.
        fields += encode_pairs(
            (name, value)
            for name, value in self._metadata
            if isinstance(value, bytes) or value.isascii()
        )
        stream.open(encode_fields(fields))
        self.asker.opened()

    # What is asked

    def send(self, messages: Sequence[Data]) -> None:
        """Send messages, as far as the backend's window allows; the rest follows when it does."""
        if self._stream is not None:
            self._stream.send(messages)

    def end_data(self, data: bytes = b"") -> None:
        """Send framed messages, and with them the end of the request."""
        if self._stream is not None:
            self._stream.end_data(data)

    @property
    def room(self) -> int:
        """How many bytes would leave at once."""
        return 0 if self._stream is None else self._stream.room

    def await_room(self) -> None:
        """Have the asker told when there is room again."""
        if self._stream is not None and not self._is_over:
            self._stream.await_room()

    # What the backend answers

    @property
    def is_mid_message(self) -> bool:
        """Whether a message has come in part."""
        return self._stream is not None and self._stream.is_mid_message

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
        elif not self.has_initial:
            self._take_opening(fields, ended)
        elif ended:
            self._take_trailers(fields)
        else:
            self._break("the backend sent headers in the middle of an answer")

    def _take_opening(self, fields: Sequence[Field], ended: bool) -> None:
        headers = decode_metadata((each.name, each.value) for each in fields)
        if str(headers.get(":status")).startswith("1") and not ended:
            return  # there is more to come
        if "grpc-status" in headers:
            # In headers that are not the end OK ends nothing: messages may follow. A failure does.
            if ended or end_by_trailers(headers).code:
                self._take_trailers(fields)
                return
            del headers["grpc-status"]
        end = refusal(headers)
        if end is not None:
            self._end(Lost(end.details, is_unsent=False))
            return
        if headers.get("grpc-encoding") == "gzip" and self._stream is not None:
            self._stream.inflate = GzipInflater(self._stream.limit)
        self.has_initial = True
        self.asker.take_initial(_metadata(fields))
        if ended:
            self._take_trailers(())

    def _take_trailers(self, fields: Sequence[Field]) -> None:
        trailers = decode_metadata((each.name, each.value) for each in fields)
        code, problem = end_by_trailers(trailers, silent="the backend ended the call")
        if code is StatusCode.OK and self.is_mid_message:  # nobody may take a part for all
            code, message = (
                StatusCode.INTERNAL,
                "the backend's answer ended in the middle of a message",
            )
        elif code is StatusCode.OK:
            message = ""
        elif "grpc-message" in trailers:
            message = decode_message(str(trailers["grpc-message"]))
        else:
            message = problem if code is StatusCode.UNKNOWN else ""
        self._end(Answer(code, message, trailing=_metadata(fields)))

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """Messages have come; or, which is wrong, an end without trailers."""
        if self._is_over:
            return
        if not self.has_initial:
            self._break("the backend sent an answer without headers")
            return
        stream = self._stream
        assert stream is not None
        if messages:
            if stream.inflate is not None:
                stream.inflate.renew()
            # Small messages are no flood here: how many come is bounded by who reads them.
            self._client.endpoint.charge(-len(messages))
            self._unread += sum(map(len, messages)) + OVERHEAD * len(messages)
            self.asker.take(messages)
            if self._unread and not self._is_over:
                stream.hold()
        if ended:
            self._take_trailers(())

    def consume(self, cost: int) -> None:
        """So much of what came was dealt with, each message as its bytes and ``OVERHEAD``."""
        self._unread -= cost
        stream = self._stream
        if self._unread or self._is_over or stream is None or not stream.is_held:
            return
        stream.release()
        if stream.wanted:
            self._client.endpoint.grant(stream)

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
            self._end(Answer(end_by_reset(code).code, reason))

    def break_off(self, reason: str) -> None:
        """The connection is gone. The backend may have acted upon the call."""
        self._end(Lost(reason, is_unsent=False))

    def resume(self) -> None:
        """There is room for more."""
        self.asker.resume()

    # Its end

    def lose(self, reason: str) -> None:
        """There was no stream for it, and will be none."""
        self._end(Lost(reason, is_unsent=True))

    def cancel(self) -> None:
        """Nobody waits for its answer any more, or wants to be told."""
        if not self._is_over:
            self._close(ErrorCode.CANCEL)

    def _break(self, problem: str) -> None:
        self._end(Answer(StatusCode.INTERNAL, problem), ErrorCode.PROTOCOL_ERROR)

    def _end(self, outcome: Answer | Lost, code: int = ErrorCode.CANCEL) -> None:
        if not self._is_over:
            self._close(code)
            self.asker.end(outcome)

    def _close(self, code: int) -> None:
        self._is_over = True
        if self._stream is None:
            self._client.discard(self)
        else:
            self._stream.reset(code)  # unless it is over in both directions


class UnaryAsker(Asker):
    """Asks with one message, and keeps what is answered until it is known what it is.

    :param patience: seconds from the beginning of an answer to its end. A unary method sends them
        together: for it this is no limit.
    :ivar answer: its result is an :class:`Answer`, or :class:`Lost`, or ``None`` for what is not
        one message and the end.
    """

    def __init__(
        self, payload: bytes, deadline: float, patience: float, *, may_stream: bool
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Answer | Lost | None] = self._loop.create_future()
        self._payload = payload
        self._may_stream = may_stream
        self._interval = patience / _LOOKS
        self._looks = 0
        self._initial: Metadata | None = None
        self._messages: list[Data] = []
        self._end: Answer | Lost | None = None
        self._expiry = self._loop.call_at(deadline, self._expire)
        self._look: asyncio.TimerHandle | None = None
        self.call: ClientCall | None = None

    def ask(
        self, client: Carrier, path: str, metadata: Metadata, deadline: float | None
    ) -> ClientCall:
        """Make the call; ``deadline``: what the backend is told."""
        self.call = ClientCall(client, path, metadata, deadline, self)
        client.make(self.call)
        return self.call

    def opened(self) -> None:
        """Send all of the request."""
        assert self.call is not None
        payload, self._payload = self._payload, b""
        self.call.end_data(frame(payload))

    def take_initial(self, metadata: Metadata) -> None:
        """The answer has begun."""
        self._initial = metadata
        self._look = self._loop.call_later(self._interval, self._see)

    def take(self, messages: list[Data]) -> None:
        """One message, as a rule."""
        self._messages += messages
        if len(self._messages) > 1:
            self._settle(None)

    def end(self, outcome: Answer | Lost) -> None:
        """The answer has ended."""
        self._end = outcome
        if isinstance(outcome, Answer):
            # A unary answer is a message or a failure. Both are one that streams; where nothing may
            # stream, a failure.
            has_both = bool(outcome.code and self._messages)
            if (has_both and self._may_stream) or not (outcome.code or self._messages):
                self._settle(None)
                return
            payload = b"" if outcome.code or not self._messages else bytes(self._messages[0])
            outcome = outcome._replace(payload=payload, initial=self._initial or ())
        self._settle(outcome)

    def _see(self) -> None:
        # In several looks: after a stall of the process what has come meanwhile is seen to first.
        assert self.call is not None
        is_coming = self.call.is_mid_message
        self._looks += not is_coming
        # A second message that comes in part shows it, too: the rest is not asked for before.
        if self._looks >= _LOOKS or (is_coming and self._messages):
            self._settle(None)
        else:
            self._look = self._loop.call_later(self._interval, self._see)

    def _expire(self) -> None:
        self._settle(Answer(StatusCode.DEADLINE_EXCEEDED, "the backend did not answer in time"))

    def _settle(self, outcome: Answer | Lost | None) -> None:
        self.stop()
        if not self.answer.done():  # who gives up waiting for it cancels it
            self.answer.set_result(outcome)

    def stop(self) -> None:
        """Look at no clock any more."""
        self._expiry.cancel()
        if self._look is not None:
            self._look.cancel()

    def hand_over(self, asker: Asker) -> None:
        """Tell another one what has come, and all that comes."""
        self.stop()
        call = self.call
        assert call is not None
        call.asker = asker
        if self._initial is not None:
            asker.take_initial(self._initial)
        if self._messages:
            asker.take(self._messages)
        if self._end is not None:
            asker.end(self._end)


def _metadata(fields: Sequence[Field]) -> Metadata:
    """What an application set, or a proxy, of headers or trailers."""
    return tuple(
        decode_pairs(
            (each.name, each.value)
            for each in fields
            if each.kind == FieldKind.ORDINARY and each.name not in _OF_THE_TRANSPORT
        )
    )
