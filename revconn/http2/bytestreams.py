"""A stream whose DATA is a body of HTTP's, with no messages in it."""

from __future__ import annotations

from collections.abc import Iterable

from revconn.core.rope import Piece
from revconn.http2.headers import encode_fields
from revconn.http2.streams import ErrorCode, Stream
from revconn.http2.writing import Writer

__all__ = ["ByteStream"]


_CONTINUE = encode_fields([(b":status", b"100")])


class ByteStream(Stream):
    """One exchange of HTTP: its receiver takes the pieces of the request's body as messages."""

    __slots__ = ()

    version = "2"

    @classmethod
    def in_place_of(cls, stream: Stream, endpoint: Writer) -> ByteStream:
        """What was just opened is no call: take what comes as bytes."""
        new = endpoint.streams[stream.id] = cls(endpoint, stream.id)
        new.is_remote_closed = stream.is_remote_closed
        new.content_left = stream.content_left
        return new

    # What comes

    @property
    def is_between_messages(self) -> bool:
        """Never: nothing is to be taken for a message."""
        return False

    def receive(self, data: bytes, start: int, end: int, ended: bool) -> int:
        """Take the payload of a DATA frame."""
        if end > start or ended:
            self.receiver.take([data[start:end]] if end > start else [], ended=ended)
        return int(end > start)  # a frame of nothing is worth nothing

    def end_of(self, data: bytes, start: int, end: int, most: int) -> int:
        """All of it at once: it is one piece, however long."""
        return end

    # What is sent

    def go_ahead(self) -> None:
        """Tell the peer to send its body: it waits for that."""
        self._send_headers(_CONTINUE, 0)

    def answer(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send the head of the response."""
        self.open(encode_fields([(b":status", b"%d" % status), *headers]))

    def write(self, data: Piece) -> None:
        """Send some of the response's body, as far as the windows allow; the rest follows."""
        if not self.is_local_closed:
            self._queue([data])

    def end(self) -> None:
        """Nothing follows what was sent."""
        if not self.is_local_closed:
            self.end_data(b"")

    def finish(self, trailers: bytes) -> None:
        """Break it off: there are no trailers that could tell why."""
        self.reset(ErrorCode.CANCEL)
