"""A connector's bytes as a message."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from revconn._proto.registry_pb2 import ConnectionMessage
from revconn.core.errors import ProtocolError

__all__ = ["decode"]


def decode(received: bytes) -> ConnectionMessage:
    """Raises :class:`ProtocolError` for garbage."""
    try:
        return ConnectionMessage.FromString(received)
    # UnicodeDecodeError: protobuf without its C code. SystemError: what protobuf 3's C code makes
    # of its own warning about garbage where the application turned warnings into errors.
    except (DecodeError, UnicodeDecodeError, SystemError):
        raise ProtocolError("not a ConnectionMessage", f"{len(received)} bytes") from None
