"""gRPC's message prefix on a payload: a flag byte and a big-endian length."""

from __future__ import annotations

import struct

from revconn.core.errors import ProtocolError

__all__ = ["PREFIX_BYTES", "frame", "is_framed", "unframe"]

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
