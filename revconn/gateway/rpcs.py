"""A call of a method, whoever serves it: its head, its messages, and how it is answered.

One object for each stream, told of what comes on it as it comes: no task waits for anything.
Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, NamedTuple

from revconn.core.framing import GzipInflater
from revconn.core.metadata import (
    Metadata,
    metadata_size,
    truncate_message,
    usable_header_list,
)
from revconn.core.rope import Data
from revconn.core.status import ProtocolError, StatusCode
from revconn.gateway.refusals import Refused
from revconn.http2.grpc import MessageRefused, MessageTooLong
from revconn.http2.requests import (
    RequestHead,
    closing_block,
    opening_block,
    refusal_block,
)
from revconn.http2.streams import Receiver, Sendable, Stream

__all__ = ["COST_OF_RESET", "NO_HASTE", "Method", "Rpc", "UnaryRpc", "code_of"]


# Seconds, after which whoever gives up a call is none who opens and resets streams to keep the
# gateway busy: at most a thousand a second are, on one connection.
NO_HASTE = 0.25
COST_OF_RESET = 6  # frames, with the headers that opened the stream

# Bytes of a header list: for what is neither metadata nor the message, and for that one always.
_OWN_TRAILERS = 1 << 10
_SHORTEST_ROOM = 3 << 10


def code_of(error: ProtocolError) -> StatusCode:
    """With which a call ends whose message cannot be taken."""
    is_too_much = isinstance(error, (MessageRefused, MessageTooLong))
    return StatusCode.RESOURCE_EXHAUSTED if is_too_much else StatusCode.INTERNAL


class Rpc(Receiver):
    """One call. Subclasses say what is to become of its messages.

    :ivar peer: who calls, as gRPC writes addresses.
    """

    __slots__ = ("head", "inflater", "is_over", "peer", "stream")

    def __init__(self, stream: Stream, head: RequestHead, peer: str) -> None:
        self.stream = stream
        self.head = head
        self.peer = peer
        self.is_over = False
        self.inflater: GzipInflater | None = None
        stream.receiver = self

    def start(self) -> None:
        """The call has come; its messages have not. Raises :class:`Refused`."""
        encoding = self.head.encoding
        if encoding in (b"gzip", b"deflate"):
            self.inflater = GzipInflater(self.stream.limit, encoding.decode())
            self.stream.inflate = self.inflater
        elif encoding not in (b"", b"identity"):
            problem = f"grpc-encoding {encoding[:40]!r} is not known here; use gzip"
            raise Refused(StatusCode.UNIMPLEMENTED, problem)

    # What is answered

    @property
    def header_list(self) -> int:
        """Bytes that the caller takes of headers, and of trailers."""
        return usable_header_list(self.stream.owner.endpoint.peer_header_list)

    def begin(self, metadata: Metadata = ()) -> None:
        """Send the metadata that goes before all else, once."""
        if not self.stream.is_open:
            self.stream.open(opening_block(metadata))

    def send(self, messages: Sequence[Sendable]) -> None:
        """Send messages of a streaming answer."""
        self.begin()
        self.stream.send(messages)

    def finish(
        self,
        code: StatusCode = StatusCode.OK,
        message: str = "",
        trailing: Metadata = (),
        initial: Metadata = (),
    ) -> None:
        """End the call, behind all that was sent."""
        if self.is_over:
            return
        stream = self.stream
        if message:
            room = self.header_list - metadata_size(trailing) - _OWN_TRAILERS
            message = truncate_message(message, max(room, _SHORTEST_ROOM))
        if stream.is_open or initial or code is StatusCode.OK:
            block = closing_block(code, message, trailing)
            self.begin(initial)
        else:
            block = refusal_block(code, message, trailing)
            stream.is_open = True
        self.is_over = True
        stream.finish(block)

    def turn_away(self, refused: Refused) -> None:
        """It cannot go on: the caller is told why."""
        self.abandon()
        self.finish(refused.code, refused.message)

    def refuse(self, error: ProtocolError) -> None:
        """A message cannot be taken: the caller is told why."""
        self.abandon()
        self.finish(code_of(error), str(error))

    def abandon(self) -> None:
        """Nothing more comes of the call: what was begun for it is given up."""

    def break_off(self, reason: str) -> None:
        """The caller has gone."""
        self.is_over = True
        self.abandon()


class UnaryRpc(Rpc):
    """A call that is one message, and then the end of what the caller sends.

    gRPC does not tell a server whether a call is unary. A streaming one can be told apart by what
    it does.
    """

    __slots__ = ("_message",)

    def __init__(self, stream: Stream, head: RequestHead, peer: str) -> None:
        super().__init__(stream, head, peer)
        self._message: Data | None = None

    def receive(self, message: Data) -> None:
        """The whole request has come. Raises :class:`Refused`."""
        raise NotImplementedError

    def receive_stream(self, messages: list[Data], *, ended: bool) -> None:
        """The call is not unary: this has come of it. Raises :class:`Refused`."""
        self.stream.owner.endpoint.charge(len(messages))  # which are nothing to anybody
        raise self.not_unary()

    def await_end(self) -> None:
        """The message has come, and nothing behind it."""

    @property
    def has_message(self) -> bool:
        """Whether the message is there, and the end is not."""
        return self._message is not None

    def take_back(self) -> list[Data]:
        """The message that has come, if it has, for somebody else to take."""
        message, self._message = self._message, None
        return [] if message is None else [message]

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """A message has come, or the end, or both, as nearly always."""
        if self.is_over:
            return
        try:
            if messages:
                if len(messages) > 1 or self._message is not None:
                    self.receive_stream([*self.take_back(), *messages], ended=ended)
                    return
                (self._message,) = messages
            if not ended:
                self.await_end()
            elif self._message is None:
                self.receive_stream([], ended=True)
            else:
                message, self._message = self._message, None
                self.receive(message)
        except Refused as refused:
            self.abandon()
            self.finish(refused.code, refused.message)

    @staticmethod
    def not_unary() -> Refused:
        """Why a streaming call is refused."""
        problem = "the request is not exactly one message, and the method does not stream"
        return Refused(StatusCode.UNIMPLEMENTED, problem)

    def reply(self, message: Sendable, trailing: Metadata = (), initial: Metadata = ()) -> None:
        """Answer with one message, and OK."""
        if self.is_over:
            return
        self.is_over = True
        trailers = closing_block(StatusCode.OK, "", trailing)
        self.stream.respond(opening_block(initial), message, trailers)


class Method(NamedTuple):
    """What a path of the gateway's own leads to: who takes a call of it."""

    path: bytes
    serve: Callable[[Stream, RequestHead, str], Rpc]
