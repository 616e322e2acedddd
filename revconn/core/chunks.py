"""A response too large for one message, as several: how it is cut, kept, and joined again.

The chunks of a response belong to one connection: on another one they start again from 0.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardResponse, ResponseStreamInfo
from revconn.core.framing import is_framed
from revconn.core.responses import encode_failure
from revconn.core.rope import Data
from revconn.core.status import ProtocolError, StatusCode

__all__ = ["MAX_CHUNKS", "ChunkJoiner", "LargeAnswer", "ResponseTooLarge", "split"]

MAX_CHUNKS = 16_384  # of one response: each costs memory, however small it is

_STREAM_INFO = 64  # bytes that a chunk's number, sizes and tags take at most
_MAX_SIZE = 2**31 - 1  # what chunk_size can say
_LENGTHS = 16  # bytes, at most, that the size of a payload adds where lengths are written
_CHUNK_BYTES = 256 << 10  # what a small answer may have to wait for


class ResponseTooLarge(ProtocolError):
    """Chunks hold, or are said to hold, more than a response may."""


def split(
    response: ForwardResponse, limit: int, payload: bytes | None = None
) -> Iterator[ForwardResponse]:
    """The chunks of ``response``, each at most ``limit`` bytes as a message of a connection.

    ``payload`` stands in for the response's own, so that a large one need not be copied into it.
    The last one carries headers and error message, as the protocol has it. Raises
    :class:`ValueError` when these leave no room for the payload, or it takes too many chunks.
    """
    # Receivers take status, headers and error message from the final chunk: the others carry id,
    # status and a piece, so that headers are not paid for in each.
    last = ForwardResponse()
    last.CopyFrom(response)
    last.ClearField("payload")
    # One size for all, that of the chunk with the least room: then a chunk's place in the payload
    # follows from its number.
    room = min(limit - last.ByteSize() - _STREAM_INFO, _MAX_SIZE)
    payload = response.payload if payload is None else payload
    total = len(payload)
    if room < 1 or total > room * MAX_CHUNKS:
        raise ValueError(
            f"a response with {total:,} bytes of payload and {last.ByteSize():,} of headers does"
            f" not go into chunks of at most {limit:,} bytes"
        )
    return _chunks(response, payload, last, room)


def _chunks(
    response: ForwardResponse, payload: bytes, last: ForwardResponse, room: int
) -> Iterator[ForwardResponse]:
    # An empty payload is one chunk too.
    final_index = max(0, len(payload) - 1) // room
    for index in range(final_index + 1):
        is_final = index == final_index
        chunk = last
        if not is_final:
            chunk = ForwardResponse(
                request_id=response.request_id, status_code=response.status_code
            )
        part = payload[index * room : (index + 1) * room]
        chunk.payload = part
        chunk.response_stream_info.CopyFrom(
            ResponseStreamInfo(
                is_streamed=True,
                chunk_index=index,
                is_final_chunk=is_final,
                chunk_size=len(part),
                total_size=len(payload),
            )
        )
        yield chunk


class LargeAnswer:
    """A response whose payload is not encoded before it is sent, nor ever copied as a whole.

    ``size`` is what the one message would take at most, in bytes; ``deadline`` the instant
    after which nobody waits for it any more; ``has_left`` says that all of it did before, on a
    connection that broke soon after; ``method`` is that of the request. Not thread-safe.
    """

    __slots__ = ("_chunks", "_head", "_payload", "deadline", "has_left", "method", "size")

    def __init__(
        self,
        message: Data,
        deadline: float | None,
        payload: bytes | None = None,
        method: str = "",
        *,
        has_left: bool = False,
    ) -> None:
        """``message`` is encoded, and whole, unless ``payload`` is to take the place of its own."""
        self._head = ConnectionMessage.FromString(bytes(message)).response
        self._payload = self._head.payload if payload is None else payload
        self._head.ClearField("payload")
        self.deadline = deadline
        self.has_left = has_left
        self.method = method
        self.size = len(message) + (0 if payload is None else len(payload) + _LENGTHS)
        self._chunks: Iterator[ForwardResponse] = iter(())  # of the connection it leaves on now

    @property
    def request_id(self) -> str:
        """Whom it answers."""
        return self._head.request_id

    @property
    def about(self) -> str:
        """The request, named for a log."""
        return f"{self.method} request_id={self.request_id!r}".lstrip()

    def copy(self) -> LargeAnswer:
        """The same answer, to be sent on another connection as well."""
        # Chunks belong to one connection: the copy begins anew on its own. The payload is shared.
        other = copy.copy(self)
        other._chunks = iter(())
        return other

    def mark_doubtful(self, deadline: float | None) -> None:
        """All of it left, on a connection that broke: to be sent again, until ``deadline``."""
        self.deadline, self.has_left = deadline, True

    def begin(self, limit: int) -> None:
        """Start, again if need be, with the first chunk. ``limit``: of a message, in bytes.

        Raises :class:`ValueError` when its headers leave no room in one.
        """
        # Not as large as the gateway takes: heartbeats and small answers wait for a chunk that is
        # being written. Twice the head, so that long headers do not make many tiny chunks.
        usual = _CHUNK_BYTES + 2 * self._head.ByteSize()
        self._chunks = split(self._head, min(limit, usual), self._payload)

    def next_chunk(self) -> tuple[bytes, bool]:
        """The next message, and whether it is the last. :meth:`begin` comes first."""
        chunk = next(self._chunks)
        message = ConnectionMessage(response=chunk).SerializeToString()
        return message, chunk.response_stream_info.is_final_chunk

    def whole(self) -> bytes:
        """The one message, for a connection that takes it."""
        message = ConnectionMessage(response=self._head)
        message.response.payload = self._payload
        return message.SerializeToString()

    def failure(self, code: StatusCode, reason: str) -> bytes:
        """The message that says why there is no such answer."""
        return encode_failure(
            self.request_id,
            code,
            f"{self.method or 'response'}: {reason}",
            framed=is_framed(self._payload),
        )


class ChunkJoiner:
    """The chunks of one response, until the final one has come. Not thread-safe.

    ``held_bytes`` is the payload that waits in it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.held_bytes = 0
        self._max_bytes = max_bytes
        self._total_size: int | None = None
        self._parts: dict[int, bytes] = {}

    def add(self, chunk: ForwardResponse) -> ForwardResponse | None:
        """Take a chunk in; the whole response, once this was the final one.

        Chunks may come in any order, the final one last. Raises :class:`ProtocolError` when one
        is wrong, or too much: there is nothing to be joined any more then.
        """
        # Checked before anything is kept: who sends a wrong chunk gets no memory for it.
        info = chunk.response_stream_info
        self._check(info, chunk.payload)
        self._parts[info.chunk_index] = chunk.payload
        self.held_bytes += len(chunk.payload)
        return self._join(chunk) if info.is_final_chunk else None

    def _check(self, info: ResponseStreamInfo, payload: bytes) -> None:
        index = info.chunk_index
        if not 0 <= index < MAX_CHUNKS:
            raise ProtocolError(f"chunk {index}: there may be {MAX_CHUNKS:,}, counted from 0")
        if index in self._parts:
            raise ProtocolError(f"chunk {index} came twice")
        if info.chunk_size != len(payload):
            raise ProtocolError(
                f"chunk {index} is said to hold {info.chunk_size:,} bytes", f"{len(payload):,}"
            )
        # Optional, and so one chunk may say it and the next not: it is held to once it was said.
        if info.HasField("total_size"):
            self._check_total(info.total_size)
        size = self.held_bytes + len(payload)
        if size > self._max_bytes:
            raise ResponseTooLarge(
                f"the chunks exceed the {self._max_bytes:,} bytes that a response may hold"
            )
        if self._total_size is not None and size > self._total_size:
            raise ProtocolError(
                f"the chunks exceed the {self._total_size:,} bytes that they are said to hold"
            )

    def _check_total(self, total: int) -> None:
        if self._total_size not in (None, total):
            raise ProtocolError(f"total_size was {self._total_size:,}, and then {total:,}")
        if total > self._max_bytes:
            raise ResponseTooLarge(
                f"a response of {total:,} bytes exceeds the {self._max_bytes:,} that it may hold"
            )
        self._total_size = total

    def _join(self, final: ForwardResponse) -> ForwardResponse:
        # The final chunk is sent last. One that is missing now never comes: waiting would keep a
        # caller until the deadline, and the parts in memory.
        count = final.response_stream_info.chunk_index + 1
        most = max(self._parts)
        if most >= count:
            raise ProtocolError(f"chunk {most} came although {count - 1} is the final one")
        if len(self._parts) < count:
            missing = next(index for index in range(count) if index not in self._parts)
            raise ProtocolError(f"the final chunk came without chunk {missing}")
        if self._total_size not in (None, self.held_bytes):
            raise ProtocolError(
                f"the chunks are said to hold {self._total_size:,} bytes", f"{self.held_bytes:,}"
            )
        whole = ForwardResponse()
        whole.CopyFrom(final)
        whole.ClearField("response_stream_info")
        whole.payload = b"".join(self._parts[index] for index in range(count))
        return whole
