"""gRPC's message prefix, a flag byte and a big-endian length: on payloads and on streams."""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Iterable
from typing import Callable

from revconn.core.errors import ProtocolError

__all__ = [
    "PREFIX_BYTES",
    "MessageReader",
    "frame",
    "frame_all",
    "gzip_inflater",
    "is_framed",
    "unframe",
]

PREFIX_BYTES = 5
_PREFIX = struct.Struct(">BI")


def is_framed(payload: bytes) -> bool:
    """Whether a payload carries the prefix.

    Field number 0 does not exist, so a bare protobuf message never begins with 0x00 or 0x01,
    and a prefixed one always does.
    """
    return payload[:1] in (b"\x00", b"\x01")


def frame(message: bytes) -> bytes:
    """``message`` with the prefix of an uncompressed message."""
    return _PREFIX.pack(0, len(message)) + message


def unframe(payload: bytes) -> bytes:
    """The message behind the prefix.

    Raises :class:`ProtocolError` when it is compressed, cut short, or followed by more.
    """
    if len(payload) < PREFIX_BYTES:
        raise ProtocolError("gRPC prefix cut short", f"{len(payload)} bytes")
    compressed, length = _PREFIX.unpack_from(payload)
    if compressed:
        raise ProtocolError("compressed gRPC message in a payload; send it uncompressed")
    if length != len(payload) - PREFIX_BYTES:
        raise ProtocolError(
            f"gRPC prefix announces {length:,} bytes", f"{len(payload) - PREFIX_BYTES:,}"
        )
    return payload[PREFIX_BYTES:]


def frame_all(messages: Iterable[bytes]) -> bytes:
    """Several messages, each with its prefix, as one run of bytes."""
    parts: list[bytes] = []
    for message in messages:
        parts.append(_PREFIX.pack(0, len(message)))
        parts.append(message)
    return b"".join(parts)


class MessageReader:
    """Cuts the bytes of a gRPC stream into messages. Not thread-safe.

    ``inflate`` undoes the stream's ``grpc-encoding``; ``None`` where none was announced. A message
    longer than ``limit`` bytes is refused before it is stored.
    """

    def __init__(self, limit: int, inflate: Callable[[bytes], bytes] | None = None) -> None:
        self._limit = limit
        self.inflate = inflate
        self._parts: deque[bytes] = deque()
        self._held = 0
        self._needed = PREFIX_BYTES

    def feed(self, data: bytes) -> list[bytes]:
        """Every message that is complete now.

        Raises :class:`ProtocolError` for one that is too long, or compressed unannounced.
        """
        if self._parts:
            # Joined once, when all of it is there: joining at every piece would be quadratic.
            self._parts.append(data)
            self._held += len(data)
            if self._held < self._needed:
                return []
            data = b"".join(self._parts)
            self._parts.clear()
        messages = []
        start, size = 0, len(data)
        self._needed = PREFIX_BYTES
        while size - start >= PREFIX_BYTES:
            flag, length = _PREFIX.unpack_from(data, start)
            if length > self._limit or flag:
                self._check(flag, length)
            end = start + PREFIX_BYTES + length
            if end > size:
                self._needed = end - start
                break
            message = data[start + PREFIX_BYTES : end]
            messages.append(self.inflate(message) if flag and self.inflate else message)
            start = end
        if start < size:
            self._parts.append(data[start:] if start else data)
            self._held = size - start
        return messages

    @property
    def mid_message(self) -> bool:
        """Whether the bytes so far end inside a message."""
        return bool(self._parts)

    def _check(self, flag: int, length: int) -> None:
        if length > self._limit:
            raise ProtocolError(f"message longer than {self._limit:,} bytes", f"{length:,}")
        if flag != 1:
            raise ProtocolError("no gRPC message prefix", f"flag byte {flag:#04x}")
        if self.inflate is None:
            raise ProtocolError("compressed message on a stream without grpc-encoding")


def gzip_inflater(limit: int) -> Callable[[bytes], bytes]:
    """Undoes ``grpc-encoding: gzip``; a message that inflates beyond ``limit`` bytes is refused."""

    def inflate(message: bytes) -> bytes:
        inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            data = inflater.decompress(message, limit)
        except zlib.error as error:
            raise ProtocolError(f"gzip message does not inflate: {error}") from None
        if inflater.unconsumed_tail or not inflater.eof:
            raise ProtocolError(f"gzip message cut short, or longer than {limit:,} bytes")
        return data

    return inflate
