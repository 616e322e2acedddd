"""How tests make connectors: on every transport, with short times."""

from __future__ import annotations

from typing import Any

from revconn import Backoff

__all__ = ["NEVER", "QUICK", "TRANSPORTS"]

TRANSPORTS: dict[str, dict[str, Any]] = {
    "grpcio": {"transport": "grpcio"},
    "http2": {"transport": "http2"},
}
"""The options that choose each transport; a test that makes a connector runs once with each."""

QUICK: dict[str, Any] = {
    "api_key": "key",
    "services": ["echo.Echo"],
    "connect_timeout": 60.0,
    "drain_timeout": 60.0,
    "backoff": Backoff(initial=0.01, maximum=0.05, stable_after=0.0),
}
"""What a test need not say: it comes back at once, and counts no failures."""

NEVER: dict[str, Any] = {"initial": 1e6, "maximum": 1e6}
"""A backoff that outlasts the test: full jitter hardly ever draws so little of it."""
