"""Checks of what users give: each refuses with the argument's name, its value and a remedy."""

from __future__ import annotations

import math
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

_SERVICE_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def refuse(name: str, value: Any, problem: str, remedy: str) -> NoReturn:
    """Raise the :class:`ConfigurationError` that says so."""
    raise ConfigurationError(name, value, problem, remedy)


def require_service_name(argument: str, value: Any) -> str:
    """A full gRPC service name: ``package.Service``."""
    if not isinstance(value, str) or not _SERVICE_NAME.fullmatch(value):
        refuse(argument, value, "not a service name", "write package.Service, such as echo.Echo")
    return value


def require_api_key(value: Any, argument: str = "api_key") -> str:
    """A key that can be sent: text, not empty, no line breaks. It is never shown."""
    if not isinstance(value, str):
        refuse(argument, None, f"is {type(value).__name__}, not text", "give the key as a str")
    if not value.strip():
        refuse(argument, None, "is empty", "give the key that the gateway issued")
    if any(character in value for character in "\r\n\0"):
        refuse(
            argument,
            None,
            "holds a line break",
            "strip it: a key read from a file often ends with a newline",
        )
    return value


def require_number(name: str, value: Any, *, at_least: float) -> float:
    """A finite number, no bool."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < at_least:
        refuse(name, value, "not a usable number", f"give a number, at least {at_least:g}")
    return float(value)


def require_seconds(name: str, value: Any, *, zero: bool = False) -> float:
    """A duration in seconds, above zero (or at least zero)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    usable = is_number and math.isfinite(value) and (value >= 0 if zero else value > 0)
    if not usable:
        bound = "0 or more" if zero else "more than 0"
        refuse(name, value, "not a duration", f"give seconds as a number, {bound}")
    return float(value)


def require_count(name: str, value: Any) -> int:
    """A whole number above zero."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        refuse(name, value, "not a count", "give a whole number, 1 or more")
    return value
