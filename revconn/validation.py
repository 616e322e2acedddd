"""Checks of what users give: each refuses with the argument's name, its value and a remedy."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from revconn.exceptions import ConfigurationError

__all__ = [
    "refuse",
    "require_api_key",
    "require_count",
    "require_number",
    "require_seconds",
    "require_service_name",
]

_SERVICE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_LONGEST = 2_000_000.0  # seconds, 23 days: what every timer below takes (gRPC's count ms in int32)


def refuse(name: str, value: Any, problem: str, remedy: str) -> NoReturn:
    """Raise the :class:`ConfigurationError` that says so."""
    raise ConfigurationError(name, value, problem, remedy)


def require_service_name(argument: str, value: Any) -> str:
    """A full gRPC service name: ``package.Service``."""
    if not isinstance(value, str) or not _SERVICE_NAME.fullmatch(value):
        refuse(argument, value, "not a service name", "write package.Service, such as echo.Echo")
    return value


def require_api_key(value: Any, argument: str = "api_key") -> str:
    """A key that can be sent: printable text, not empty. It is never shown."""
    if not isinstance(value, str):
        refuse(argument, None, f"is {type(value).__name__}, not text", "give the key as a str")
    if not value.strip():
        refuse(argument, None, "is empty", "give the key that the gateway issued")
    if not value.isprintable():
        refuse(
            argument,
            None,
            "holds a line break or another character that cannot be printed",
            "strip it: a key read from a file often ends with a newline",
        )
    return value


def require_number(name: str, value: Any, *, at_least: float, at_most: float) -> float:
    """A number within bounds."""
    if not _is_number(value) or not at_least <= value <= at_most:
        bounds = f"{at_least:g} to {at_most:g}"
        refuse(name, value, "not a usable number", f"give a number from {bounds}")
    return float(value)


def require_seconds(name: str, value: Any, *, zero: bool = False) -> float:
    """A duration in seconds, above zero (or at least zero)."""
    if not _is_number(value) or not 0 <= value <= _LONGEST or (value == 0 and not zero):
        bounds = f"{'0 or more' if zero else 'more than 0'} and at most {_LONGEST:,.0f}"
        refuse(name, value, "not a duration", f"give seconds as a number, {bounds}")
    return float(value)


def require_count(name: str, value: Any) -> int:
    """A whole number above zero."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        refuse(name, value, "not a count", "give a whole number, 1 or more")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
