"""What a peer can do beyond the published protocol, and the limits it states: gRPC metadata.

Both sides announce what they support when a stream opens, in its initial metadata. A feature is in
force when both named it: with a peer that announces nothing, nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "CANCEL",
    "CHUNKS",
    "DRAIN",
    "FEATURES_HEADER",
    "HEARTBEAT_TIMEOUT_HEADER",
    "MAX_MESSAGE_BYTES_HEADER",
    "SUPPORTED",
    "VIA_HEADER",
    "Announcement",
]

FEATURES_HEADER = "revconn-features"
HEARTBEAT_TIMEOUT_HEADER = "revconn-heartbeat-timeout"
MAX_MESSAGE_BYTES_HEADER = "revconn-max-message-bytes"
VIA_HEADER = "revconn-via"  # which gateways a call came by, as it reaches a backend

CHUNKS = "chunks"  # a large response travels in several messages
CANCEL = "cancel"  # whoever asked may say that it gave up
DRAIN = "drain"  # answers are still read on a stream that said DISCONNECTED
SUPPORTED = frozenset({CHUNKS, CANCEL, DRAIN})

_LONGEST_HEADER = 1024
_LONGEST_NUMBER = 20


@dataclass(frozen=True)
class Announcement:
    """What one side says of itself in its initial metadata.

    :ivar features: what it supports; names this library does not know are kept.
    :ivar heartbeat_timeout: seconds of silence after which it gives a connection up; ``None`` when
        not stated. Gateways state it.
    :ivar max_message_bytes: the largest message it takes; ``None`` when not stated.
    """

    features: frozenset[str] = frozenset()
    heartbeat_timeout: float | None = None
    max_message_bytes: int | None = None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers to send; none for what there is nothing to say about."""
        headers = []
        if self.features:
            headers.append((FEATURES_HEADER, ",".join(sorted(self.features))))
        if self.heartbeat_timeout is not None:
            headers.append((HEARTBEAT_TIMEOUT_HEADER, f"{self.heartbeat_timeout:g}"))
        if self.max_message_bytes is not None:
            headers.append((MAX_MESSAGE_BYTES_HEADER, str(self.max_message_bytes)))
        return tuple(headers)

    @classmethod
    def from_metadata(cls, metadata: Iterable[tuple[str, str | bytes]]) -> Announcement:
        """What a peer's metadata announces. Never raises: what cannot be read was not said."""
        headers = {key: value for key, value in metadata if isinstance(value, str)}
        return cls(
            features=_parse_features(headers.get(FEATURES_HEADER, "")),
            heartbeat_timeout=_parse_seconds(headers.get(HEARTBEAT_TIMEOUT_HEADER, "")),
            max_message_bytes=_parse_bytes(headers.get(MAX_MESSAGE_BYTES_HEADER, "")),
        )


def _parse_features(value: str) -> frozenset[str]:
    names = (name.strip().lower() for name in value[:_LONGEST_HEADER].split(","))
    return frozenset(name for name in names if name)


def _parse_seconds(value: str) -> float | None:
    try:
        seconds = float(value[:_LONGEST_NUMBER])
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


def _parse_bytes(value: str) -> int | None:
    text = value.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER):
        return None
    return int(text) or None
