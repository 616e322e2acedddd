"""A stream of bytes cut into gRPC messages, and messages joined into one."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Callable

from revconn.core.errors import ProtocolError
from revconn.core.framing import PREFIX_BYTES

__all__ = ["MessageReader", "Pieces", "frame_all"]

_PREFIX = struct.Struct(">BI")
_LARGE = 16 << 10
_HEAD = 4 << 10
_SMALL = 1 << 10  # bytes: where a view of a piece costs more than copying it
_RUN = 64 << 10


def frame_all(messages: Iterable[bytes]) -> list[memoryview]:
    """Several messages, each with its prefix, as few runs of bytes; large ones are not copied."""
    runs: list[memoryview] = []
    run: list[bytes] = []
    append = run.append
    pack = _PREFIX.pack
    for message in messages:
        append(pack(0, len(message)))
        if len(message) < _LARGE:
            append(message)
        else:
            append(message[:_HEAD])  # the prefix does not travel alone
            runs.append(memoryview(b"".join(run)))
            runs.append(memoryview(message)[_HEAD:])
            run.clear()
    if run:
        runs.append(memoryview(b"".join(run)))
    return runs


class MessageReader:
    """Cuts the bytes of a gRPC stream into messages. Not thread-safe.

    ``inflate`` undoes the stream's ``grpc-encoding``; ``None`` where none was announced. A message
    longer than ``limit`` bytes is refused before it is stored.
    """

    def __init__(self, limit: int, inflate: Callable[[bytes], bytes] | None = None) -> None:
        self._limit = limit
        self.inflate = inflate
        self._prefix = b""
        self._compressed = False
        self._pieces = Pieces()
        self._missing = 0

    def feed(self, data: bytes, start: int, end: int, messages: list[bytes]) -> None:
        """Take ``data[start:end]``; append every message that is complete now to ``messages``.

        Raises :class:`ProtocolError`, after what came before, for a message that is too long,
        does not inflate, or is compressed unannounced.
        """
        if self._pieces:
            start = self._continue(data, start, end, messages)
        if self._prefix:
            # Rare: the prefix itself was cut. Begin again with it put together.
            data, self._prefix = self._prefix + data[start:end], b""
            start, end = 0, len(data)
        while end - start >= PREFIX_BYTES:
            flag, length = _PREFIX.unpack_from(data, start)
            if flag or length > self._limit:
                self._check(flag, length)
            start += PREFIX_BYTES
            if length > end - start:
                self._compressed = bool(flag)
                self._missing = length - (end - start)
                self._pieces.add(data, start, end)
                return
            message = data[start : start + length]
            messages.append(self.inflate(message) if flag and self.inflate else message)
            start += length
        self._prefix = data[start:end]

    @property
    def mid_message(self) -> bool:
        """Whether the bytes so far end inside a message."""
        return bool(self._pieces or self._prefix)

    def _continue(self, data: bytes, start: int, end: int, messages: list[bytes]) -> int:
        """Go on with a message that has begun; where the next one begins."""
        stop = min(end, start + self._missing)
        self._missing -= stop - start
        self._pieces.add(data, start, stop)
        if not self._missing:
            message = self._pieces.take()
            messages.append(self.inflate(message) if self._compressed and self.inflate else message)
        return stop

    def _check(self, flag: int, length: int) -> None:
        if length > self._limit:
            raise ProtocolError(f"message longer than {self._limit:,} bytes", f"{length:,}")
        if flag != 1:
            raise ProtocolError("no gRPC message prefix", f"flag byte {flag:#04x}")
        if self.inflate is None:
            raise ProtocolError("compressed message on a stream without grpc-encoding")


class Pieces:
    """Joined once, at the end: joining at every piece would be quadratic. Not thread-safe.

    Large pieces are kept as they came and not copied twice. Small ones run together: each of them
    would cost an object, and keep the buffer alive that it came in.
    """

    __slots__ = ("_parts", "_run", "size")

    def __init__(self) -> None:
        self._parts: list[memoryview | bytearray] = []
        self._run: bytearray | None = None  # the last part, while there is room in it
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, data: bytes, start: int, end: int) -> None:
        """Keep ``data[start:end]``."""
        size = end - start
        self.size += size
        piece = memoryview(data)[start:end]
        if size > _SMALL:
            self._parts.append(piece)
            self._run = None
        elif self._run is None:
            self._run = bytearray(piece)
            self._parts.append(self._run)
        else:
            self._run += piece
            if len(self._run) > _RUN:
                self._run = None

    def peek(self) -> bytes:
        """All of it, as one."""
        return b"".join(self._parts)

    def take(self) -> bytes:
        """All of it, as one; from here on there is none."""
        whole = self.peek()
        self._parts.clear()
        self._run = None
        self.size = 0
        return whole
