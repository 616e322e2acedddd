"""The root of the error tree, and the one error that the protocol itself raises."""

from __future__ import annotations

__all__ = ["ProtocolError", "RevconnError"]


class RevconnError(Exception):
    """The base of every error that revconn raises on purpose."""


class ProtocolError(RevconnError):
    """A peer broke the wire protocol; the message says which rule, the attributes what it sent."""

    def __init__(self, reason: str, received: str = "") -> None:
        super().__init__(f"{reason} (received {received})" if received else reason)
        self.reason = reason
        self.received = received
