"""The errors that revconn raises.

Everything derives from :class:`RevconnError`. A wait that ran out of time raises the builtin
:class:`TimeoutError` instead, as the standard library does.
"""

from __future__ import annotations

from typing import Any

from revconn.core.status import (
    FINAL_CODES,
    ProtocolError,
    RevconnError,
    Speaker,
    StatusCode,
    http_status,
    status_code,
)

__all__ = [
    "AuthenticationError",
    "CallError",
    "ConfigurationError",
    "ConnectionLost",
    "HandshakeError",
    "MessageTooLarge",
    "Overloaded",
    "ProtocolError",
    "RequestError",
    "RevconnError",
    "is_fatal",
    "remedy",
]


# Where users find them is what tracebacks say.
for _error in (RevconnError, ProtocolError):
    _error.__module__ = __name__
del _error


class ConfigurationError(RevconnError, ValueError):
    """An argument, option or environment variable cannot be used.

    ``name`` says which one, ``value`` what it was (``None`` where it is a secret), ``problem``
    what is wrong with it, ``remedy`` what to do. Raised before any connection is made.
    """

    def __init__(self, name: str, value: Any, problem: str, remedy: str) -> None:
        # Cut short: what was given may be a whole file, and this is to be read as a line.
        shown = "" if value is None else f" (got {value!r:.200})"
        super().__init__(f"{name}: {problem}{shown}; {remedy}")
        self.name = name
        self.value = value
        self.problem = problem
        self.remedy = remedy


class ConnectionLost(RevconnError):
    """A connection to a gateway could not be opened, or ended. Retryable.

    ``target`` is the gateway's address, ``code`` the gRPC status the stream ended with
    (``None`` where there was none), ``reason`` what happened.
    """

    def __init__(self, target: str, reason: str, code: StatusCode | None = None) -> None:
        super().__init__(f"{target}: {reason}")
        self.target = target
        self.reason = reason
        self.code = code


class HandshakeError(ConnectionLost):
    """The connection was refused, or the handshake was not finished.

    ``by_gateway`` says whether it was the gateway's own word, as far as can be told, and not that
    of a proxy in its place; ``is_final`` whether the connector holds another attempt for useless.
    """

    def __init__(
        self,
        target: str,
        reason: str,
        code: StatusCode | None = None,
        *,
        speaker: Speaker = Speaker.GATEWAY,
    ) -> None:
        super().__init__(target, reason, code)
        # By this refusal alone. The link, which knows what else has answered at the target, judges
        # it once more: while a gateway is redeployed, a proxy in front of it refuses too.
        self.speaker = speaker
        self.by_gateway = speaker is not Speaker.STRANGER
        self.is_final = self.by_gateway and code in FINAL_CODES


# A class of its own: a program that can get another key has to tell this from all other refusals.
class AuthenticationError(HandshakeError):
    """The gateway refused the API key."""


class MessageTooLarge(RevconnError):
    """A message is larger than the peer accepts. ``size`` and ``limit`` are in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"message of {size:,} bytes is larger than the limit of {limit:,} bytes")
        self.size = size
        self.limit = limit


class Overloaded(RevconnError):
    """More work was offered than may be in flight at once. ``limit`` is that bound."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit:,} requests are in flight, which is the limit")
        self.limit = limit


class CallError(RevconnError):
    """A call failed: ``status``, ``code`` and ``message`` are what came back."""

    def __init__(self, status: int, message: str, code: StatusCode | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.code = status_code(status) if code is None else code
        self.message = message


class RequestError(RevconnError):
    """Raised by a handler to fail its request with a status of its choice.

    ``status`` is an HTTP status from 400 to 599 or a failing gRPC code (1 to 16, a
    :class:`~revconn.StatusCode`); either is translated to the other, so that callers that speak
    HTTP and callers that speak gRPC both see it. ``message`` is sent to the caller as it is.
    """

    def __init__(self, status: int, message: str = "") -> None:
        # A bug in the handler and no RequestError: the caller gets a 500, the log a traceback.
        if not isinstance(status, int):
            raise TypeError(
                f"RequestError: status {status!r} is no number; use an HTTP status or a"
                " revconn.StatusCode"
            )
        super().__init__(f"{int(status)}: {message}")
        # No number is a failure in both languages, so either may be spoken.
        if 1 <= status <= 16:
            self.code = StatusCode(status)
            self.status = http_status(self.code)
        elif 400 <= status <= 599:
            self.code = status_code(status)
            self.status = int(status)
        else:
            raise ValueError(
                f"RequestError: status {int(status)} is not a failure; use an HTTP status from"
                " 400 to 599 or a gRPC code from 1 to 16"
            )
        self.message = message


# For exactly the codes that may be final: those are the errors that end a program, so their text is
# what its operator has.
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
    # Of UNIMPLEMENTED the remedy says already that no gateway is there.
    if speaker is Speaker.STRANGER and code is not StatusCode.UNIMPLEMENTED:
        return _STRANGERS_REMEDY
    return _REMEDIES[code]
