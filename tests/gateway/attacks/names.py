"""How the gateway calls what it bounds, in one place: its options, and the counters that move."""

from __future__ import annotations

from typing import Any

__all__ = ["COUNTERS", "LIMITS"]

LIMITS: dict[str, Any] = {
    "max_streams": 256,
    "max_sockets": 200,
    "max_receiving_bytes": 32 << 20,
    "max_unread_bytes": 32 << 20,
    "handshake_timeout": 1.0,
    "idle_timeout": 2.0,
    "request_timeout": 5.0,
    "max_pending": 1000,
    "max_pending_per_connection": 500,
    "max_connections": 2000,
}
"""Of the gateways that are attacked: few enough bytes and seconds that an attack is over soon."""

COUNTERS: dict[str, str] = {
    "answers to nobody": "answers_unknown",
    "streams": "refused_max_streams",
    "sockets": "refused_max_sockets",
    "receiving": "refused_max_receiving_bytes",
    "unread": "refused_max_unread_bytes",
    "too large": "refused_max_message_bytes",
    "metadata": "refused_max_metadata_bytes",
    "pending": "refused_max_pending",
    "pending per connection": "refused_max_pending_per_connection",
    "joining": "refused_max_joining_bytes",
    "handshake": "refused_handshake_timeout",
    "flooding": "connections_flooding",
    "unserved": "calls_unserved",
    "not let in": "connections_refused",
    "expired": "connections_expired",
    "given up": "calls_given_up",
}
"""What each is counted as in ``Gateway.stats()``."""
