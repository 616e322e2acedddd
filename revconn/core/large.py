"""An answer that one message cannot hold, until it has left in chunks."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardResponse
from revconn.core.chunking import split
from revconn.core.framing import is_framed
from revconn.core.responses import encode_failure
from revconn.core.status import StatusCode

__all__ = ["LargeAnswer"]

_LENGTHS = 16  # bytes, at most, that the size of a payload adds where lengths are written
_CHUNK_BYTES = 256 << 10  # what a small answer may have to wait for


class LargeAnswer:
    """A response whose payload is not encoded before it is sent, nor ever copied as a whole.

    ``size`` is what the one message would take at most, in bytes; ``deadline`` the instant
    after which nobody waits for it any more; ``has_left`` says that all of it did before, on a
    connection that broke soon after; ``method`` is that of the request. Not thread-safe.
    """

    __slots__ = ("_chunks", "_head", "_payload", "deadline", "has_left", "method", "size")

    def __init__(
        self,
        message: bytes,
        deadline: float | None,
        payload: bytes | None = None,
        method: str = "",
    ) -> None:
        """``message`` is encoded, and whole, unless ``payload`` is to take the place of its own."""
        self._head = ConnectionMessage.FromString(message).response
        self._payload = self._head.payload if payload is None else payload
        self._head.ClearField("payload")
        self.deadline = deadline
        self.has_left = False
        self.method = method
        self.size = len(message) + (0 if payload is None else len(payload) + _LENGTHS)
        self._chunks: Iterator[ForwardResponse] = iter(())

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
        other = copy.copy(self)
        other._chunks = iter(())
        return other

    def begin(self, limit: int) -> None:
        """Start, again if need be, with the first chunk. ``limit``: of a message, in bytes.

        Raises :class:`ValueError` when its headers leave no room in one.
        """
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
