"""gRPC's message prefix, a flag byte and a big-endian length: on payloads and on streams."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Callable

from revconn.core.errors import ProtocolError
from revconn.core.pieces import Pieces

__all__ = [
    "PREFIX_BYTES",
    "GzipInflater",
    "MessageReader",
    "frame",
    "frame_all",
    "is_framed",
    "pack",
    "unframe",
]

PREFIX_BYTES = 5
_PREFIX = struct.Struct(">BI")
_PREFIX_STARTS = (b"\x00", b"\x01")
_LARGE = 16 << 10
_HEAD = 4 << 10
_USUAL_RATIO = 32  # what gzip makes of text and of most else
_EXCESS_PER_WEIGHT = 64 << 10


def is_framed(payload: bytes) -> bool:
    """Whether a payload counts as prefixed: the length that it announces is what follows.

    Any bytes may be a message, and few begin so; no protobuf does, since field number 0 does not
    exist. Who sends one that does, bare, prefixes it: see :func:`pack`.
    """
    return (
        payload.startswith(_PREFIX_STARTS)
        and len(payload) >= PREFIX_BYTES
        and _PREFIX.unpack_from(payload)[1] == len(payload) - PREFIX_BYTES
    )


def frame(message: bytes) -> bytes:
    """``message`` with the prefix of an uncompressed message."""
    return _PREFIX.pack(0, len(message)) + message


def pack(message: bytes, *, framed: bool = False) -> bytes:
    """``message`` as a payload: prefixed if that is wanted, or else it would be taken for it."""
    return frame(message) if framed or is_framed(message) else message


def unframe(payload: bytes, encoding: str = "", limit: int = 0) -> bytes:
    """The message of a payload that :func:`is_framed`.

    A compressed one is inflated to at most ``limit`` bytes when ``encoding``, its
    ``grpc-encoding``, is gzip. Raises :class:`ProtocolError` when that cannot be done.
    """
    message = payload[PREFIX_BYTES:]
    if payload[0] == 0:
        return message
    if encoding != "gzip":
        raise ProtocolError(
            f"compressed gRPC message in a payload, with grpc-encoding {encoding[:20]!r};"
            " use gzip, or send it uncompressed"
        )
    return GzipInflater(limit)(message)


def frame_all(messages: Iterable[bytes]) -> list[memoryview]:
    """Several messages, each with its prefix, as few runs of bytes; large ones are not copied."""
    runs: list[memoryview] = []
    run: list[bytes] = []
    for message in messages:
        run.append(_PREFIX.pack(0, len(message)))
        if len(message) < _LARGE:
            run.append(message)
        else:
            run.append(message[:_HEAD])  # the prefix does not travel alone
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


class GzipInflater:
    """Undoes ``grpc-encoding: gzip``, for at most ``limit`` bytes altogether until :meth:`renew`.

    A limit for each message would not do: many small ones can inflate to as much as one large.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit
        self._excess = 0

    def take_weight(self) -> int:
        """What inflating since the last time cost beyond what the compressed bytes are worth."""
        weight, self._excess = self._excess // _EXCESS_PER_WEIGHT, self._excess % _EXCESS_PER_WEIGHT
        return weight

    def renew(self) -> None:
        """What was inflated so far is out of the way."""
        self._left = self._limit

    def __call__(self, message: bytes) -> bytes:
        """The message that was compressed. Raises :class:`ProtocolError`."""
        inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            data = inflater.decompress(message, self._left + 1)
        except zlib.error as error:
            raise ProtocolError(f"gzip message does not inflate: {error}") from None
        if len(data) > self._left:
            raise ProtocolError(f"gzip messages inflate to more than {self._limit:,} bytes")
        if not inflater.eof or inflater.unused_data:
            raise ProtocolError("gzip message cut short, or followed by more")
        self._left -= len(data)
        self._excess += max(0, len(data) - _USUAL_RATIO * len(message))
        return data
