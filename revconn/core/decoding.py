"""A peer's bytes as a message: the one place where they are decoded."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from revconn.core.errors import ProtocolError

__all__ = ["decode"]

_Message = TypeVar("_Message", bound=Message)


def decode(kind: type[_Message], received: bytes) -> _Message:
    """The message of that ``kind``. Raises :class:`ProtocolError` for garbage, and nothing else."""
    try:
        return kind.FromString(received)
    # What garbage raises depends on protobuf's release and implementation, and on the
    # application's filter for warnings: DecodeError, UnicodeDecodeError, SystemError and others.
    except Exception:  # noqa: BLE001
        name = kind.DESCRIPTOR.name
        raise ProtocolError(f"bytes that are no {name}", f"{len(received):,} bytes") from None
