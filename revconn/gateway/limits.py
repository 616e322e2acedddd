"""How much of everything a gateway puts up with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from revconn.validation import refuse, require_count, require_seconds

__all__ = ["Limits"]

_LARGEST = {"max_message_bytes": 2**30 - 1, "max_sent_message_bytes": 2**31 - 1}
_SMALLEST = {"max_metadata_bytes": 1024}  # less has no room for what gRPC itself adds


@dataclass(frozen=True)
class Limits:
    """The gateway's options that bound something; :class:`revconn.gateway.Gateway` says why.

    Raises :class:`ConfigurationError` for a number that cannot be one of them.
    """

    max_pending: int = 1000
    max_pending_per_connection: int = 500
    max_connections: int = 10_000
    max_connections_per_key: int = 5_000
    max_subscriptions: int = 1000
    max_queued_bytes: int = 64 * 1024 * 1024
    max_queued_events: int = 1000
    max_message_bytes: int = 4 * 1024 * 1024
    max_sent_message_bytes: int = 100_000_000
    max_response_bytes: int = 64 * 1024 * 1024
    max_joining_bytes: int = 256 * 1024 * 1024
    max_metadata_bytes: int = 8192
    handshake_timeout: float = 10.0

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if each.name == "handshake_timeout":
                require_seconds(each.name, value)
            else:
                _require_within_bounds(each.name, value)


def _require_within_bounds(name: str, value: Any) -> None:
    require_count(name, value)
    smallest, largest = _SMALLEST.get(name, 1), _LARGEST.get(name, 2**62)
    if value > largest:
        refuse(name, value, "more than gRPC can count", f"give at most {largest:,}")
    if value < smallest:
        refuse(name, value, "less than gRPC itself needs", f"give at least {smallest:,}")
