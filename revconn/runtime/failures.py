"""Which failures to connect are worth another attempt."""

from __future__ import annotations

from revconn.core.refusals import Speaker
from revconn.core.status import StatusCode
from revconn.exceptions import HandshakeError

__all__ = ["is_fatal", "remedy"]

_REMEDIES = {
    StatusCode.UNAUTHENTICATED: "check api_key: this gateway does not know it",
    StatusCode.PERMISSION_DENIED: "check api_key and services: this key may not do that",
    StatusCode.INVALID_ARGUMENT: "check services, and that the gateway's version fits",
    StatusCode.UNIMPLEMENTED: "check the target: what listens there is no gateway",
}
_STRANGERS_REMEDY = "that is no gateway's word: check the target, and any proxy in front of it"


def is_fatal(error: Exception) -> bool:
    """Whether connecting again is useless until somebody changes something.

    True for a handshake that a gateway itself refused with UNAUTHENTICATED, PERMISSION_DENIED,
    INVALID_ARGUMENT or UNIMPLEMENTED, and for such a status (or 401, 403, 404) from what stands in
    a gateway's place, once nothing else has answered for five minutes at a target that never
    served. The same codes later, on a connection that worked, are retryable: the next handshake
    tells.
    """
    return isinstance(error, HandshakeError) and error.is_final


def remedy(code: StatusCode | None, speaker: Speaker = Speaker.GATEWAY) -> str | None:
    """What to do about a code that may be fatal."""
    if code is None or code not in _REMEDIES:
        return None
    if speaker is Speaker.STRANGER and code is not StatusCode.UNIMPLEMENTED:
        return _STRANGERS_REMEDY
    return _REMEDIES[code]
