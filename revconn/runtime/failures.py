"""Which failures to connect are worth another attempt."""

from __future__ import annotations

from revconn.core.status import StatusCode
from revconn.exceptions import HandshakeError

__all__ = ["is_fatal", "remedy"]

_REMEDIES = {
    StatusCode.UNAUTHENTICATED: "check api_key: this gateway does not know it",
    StatusCode.PERMISSION_DENIED: "check api_key and services: this key may not do that",
    StatusCode.INVALID_ARGUMENT: "check services, and that the gateway's version fits",
    StatusCode.UNIMPLEMENTED: "check the target: what listens there is no gateway",
}


def is_fatal(error: Exception) -> bool:
    """Whether connecting again is useless until somebody changes something.

    True for a handshake refused with UNAUTHENTICATED, PERMISSION_DENIED, INVALID_ARGUMENT or
    UNIMPLEMENTED. The same codes later, on a connection that worked, are retryable: the next
    handshake tells.
    """
    return isinstance(error, HandshakeError) and error.code in _REMEDIES


def remedy(code: StatusCode | None) -> str | None:
    """What to do about a fatal code."""
    return None if code is None else _REMEDIES.get(code)
