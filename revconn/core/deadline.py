"""Deadlines: absolute instants on the caller's own monotonic clock."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

from revconn._proto.registry_pb2 import ForwardRequest

__all__ = [
    "format_grpc_timeout",
    "nearer_deadline",
    "parse_grpc_timeout",
    "request_deadline",
    "shorten_timeouts",
]

_UNIT_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_MAX_DIGITS = 8  # gRPC's own limit: a longer number is no grpc-timeout


def parse_grpc_timeout(value: str) -> float:
    """The seconds in a ``grpc-timeout`` header: at most eight digits and a unit (``5010m``).

    Raises :class:`ValueError` for anything else.
    """
    digits, unit = value[:-1], value[-1:]
    if unit not in _UNIT_SECONDS or not 0 < len(digits) <= _MAX_DIGITS:
        raise ValueError(f"not a grpc-timeout: {value[:32]!r}")
    # int() would take signs, spaces, underscores, and the digits of other scripts.
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"not a grpc-timeout: {value[:32]!r}")
    return int(digits) * _UNIT_SECONDS[unit]


def format_grpc_timeout(seconds: float) -> str:
    """A ``grpc-timeout`` header for ``seconds``, in the finest unit that fits eight digits."""
    # In whole units, rounded down: whoever passes a request on must not give it more time.
    nanoseconds = max(0, int(seconds * 1e9))
    for unit, size in (("n", 1), ("u", 10**3), ("m", 10**6), ("S", 10**9), ("M", 60 * 10**9)):
        if nanoseconds < size * 10**_MAX_DIGITS:
            return f"{nanoseconds // size}{unit}"
    return f"{min(nanoseconds // (3600 * 10**9), 10**_MAX_DIGITS - 1)}H"


def request_deadline(timeout_seconds: int, headers: Mapping[str, str], now: float) -> float | None:
    """The nearer of a request's ``timeout_seconds`` and its ``grpc-timeout`` header.

    ``None`` when neither was given. A ``timeout_seconds`` of zero or less means none; a
    ``grpc-timeout`` that does not parse is taken as absent: the gateway's own limit still holds.
    """
    # The reference gateway writes its own limit there (30), and leaves the caller's in the header.
    deadline = now + timeout_seconds if timeout_seconds > 0 else None
    if "grpc-timeout" not in headers:
        return deadline
    return nearer_deadline(deadline, headers["grpc-timeout"], now)


def nearer_deadline(deadline: float | None, grpc_timeout: str, now: float) -> float | None:
    """The nearer of a deadline and a ``grpc-timeout`` that counts from ``now``, if it parses."""
    try:
        callers = now + parse_grpc_timeout(grpc_timeout)
    except ValueError:
        return deadline
    return callers if deadline is None else min(deadline, callers)


def shorten_timeouts(request: ForwardRequest, waited: float) -> None:
    """Take ``waited`` seconds from what a request says of its time, as far as it says anything."""
    if request.timeout_seconds > 0:
        # One second at least: 0 would mean that no limit was given.
        request.timeout_seconds = max(1, math.ceil(request.timeout_seconds - waited))
    if "grpc-timeout" in request.headers:
        with contextlib.suppress(ValueError):  # nobody understands it: it stays as it came
            remaining = parse_grpc_timeout(request.headers["grpc-timeout"]) - waited
            request.headers["grpc-timeout"] = format_grpc_timeout(remaining)
