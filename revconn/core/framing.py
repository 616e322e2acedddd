"""gRPC's message prefix, a flag byte and a big-endian length: on payloads and on streams."""

from __future__ import annotations

import struct
import zlib

from revconn.core.status import ProtocolError

__all__ = [
    "PREFIX_BYTES",
    "GzipInflater",
    "frame",
    "is_framed",
    "pack",
    "unframe",
]

PREFIX_BYTES = 5
_PREFIX = struct.Struct(">BI")
_PREFIX_STARTS = (b"\x00", b"\x01")
# gzip makes a thousandth of zeros, and a 32nd at best of text and most else. What inflates to more
# is worth less than it costs: each 64 KiB beyond count as a frame without data.
_USUAL_RATIO = 32
_EXCESS_PER_WEIGHT = 64 << 10


def is_framed(payload: bytes) -> bool:
    """Whether a payload counts as prefixed: the length that it announces is what follows.

    Any bytes may be a message, and few begin so; no protobuf does, since field number 0 does not
    exist. Who sends one that does, bare, prefixes it: see :func:`pack`.
    """
    # Cheapest first: this is asked of each payload that comes, and few begin so.
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
    # A gateway may pass on the raw body of a gRPC call, flag and all, and the encoding as a header.
    message = payload[PREFIX_BYTES:]
    if payload[0] == 0:
        return message
    if encoding != "gzip":
        raise ProtocolError(
            f"compressed gRPC message in a payload, with grpc-encoding {encoding[:20]!r};"
            " use gzip, or send it uncompressed"
        )
    return GzipInflater(limit)(message)


class GzipInflater:
    """Undoes ``grpc-encoding: gzip`` or ``deflate``.

    At most ``limit`` bytes altogether come of it until :meth:`renew`.
    A limit for each message would not do: many small ones can inflate to as much as one large.
    """

    def __init__(self, limit: int, encoding: str = "gzip") -> None:
        self._limit = limit
        self._encoding = encoding
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
        gzip = 16 if self._encoding == "gzip" else 0  # with gzip's header and checksum
        inflater = zlib.decompressobj(gzip + zlib.MAX_WBITS)
        # One byte beyond the limit tells a message that fits from one that would go on: no bomb is
        # inflated further than that.
        try:
            data = inflater.decompress(message, self._left + 1)
        except zlib.error as error:
            raise ProtocolError(f"{self._encoding} message does not inflate: {error}") from None
        self._excess += max(0, len(data) - _USUAL_RATIO * len(message))
        if len(data) > self._left:
            raise ProtocolError(
                f"{self._encoding} messages inflate to more than {self._limit:,} bytes"
            )
        # zlib takes a stream that was cut short for one that may go on.
        if not inflater.eof or inflater.unused_data:
            raise ProtocolError(f"{self._encoding} message cut short, or followed by more")
        self._left -= len(data)
        return data
