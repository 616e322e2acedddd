"""Checks of what users give: each refuses with the argument's name, its value and a remedy."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from typing import Any, NoReturn

from revconn.exceptions import ConfigurationError
from revconn.logger import get_logger

__all__ = [
    "closest",
    "refuse",
    "require_api_key",
    "require_attribute",
    "require_count",
    "require_flag",
    "require_number",
    "require_seconds",
    "require_service_name",
    "require_wait",
    "warn_of_readers",
]

logger = get_logger("revconn.validation")  # as users have it in their logging's configuration

# ASCII alone, as protobuf's identifiers are, and so the names of gRPC's services.
_SERVICE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_LONGEST = 2_000_000.0  # seconds, 23 days: what every timer below takes (gRPC's count ms in int32)

_warned_of: set[str] = set()  # paths; adding to a set is atomic


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
    # A lone surrogate and a byte order mark cannot be printed either. They failed as the key was
    # sent, and some protobuf runtimes showed it in their error.
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


def require_wait(timeout: Any) -> None:
    """How long to wait: seconds, infinitely many too, or ``None``."""
    # NaN is no duration either, and no comparison with it is true.
    if timeout is not None and not (_is_number(timeout) and timeout >= 0):
        refuse("timeout", timeout, "not a duration", "give seconds, 0 or more, or None")


def require_count(name: str, value: Any) -> int:
    """A whole number above zero."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        refuse(name, value, "not a count", "give a whole number, 1 or more")
    return value


def require_flag(name: str, value: Any) -> bool:
    """``True`` or ``False``, and nothing that counts as one: the text ``"no"`` would be true."""
    if not isinstance(value, bool):
        refuse(name, value, "neither True nor False", "give one of them")
    return value


def require_attribute(owner: type, instance: object, name: str) -> None:
    """Refuse to set what ``owner`` has not: a misspelt name would change nothing, silently.

    A subclass of it may have more. Raises :class:`AttributeError`, with the nearest name.
    """
    # What the class has may be replaced, as tests do with a method.
    if type(instance) is not owner or name.startswith("_") or hasattr(owner, name):
        return
    import inspect  # only ever needed for an error

    options = inspect.signature(owner).parameters
    nearest = closest(name, (*options, *(each for each in dir(owner) if not each.startswith("_"))))
    hint = ""
    if nearest in options:
        hint = f"; {nearest} is an option: give it to {owner.__name__}(...)"
    elif nearest is not None:
        hint = f"; did you mean {nearest}?"
    raise AttributeError(f"{owner.__name__} has no attribute {name!r}{hint}")


def closest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The one of ``known`` that ``name`` may have been meant to be."""
    import difflib  # only ever needed for an error

    found = difflib.get_close_matches(name, known, n=1, cutoff=likeness)
    return found[0] if found else None


def warn_of_readers(argument: str, path: str | os.PathLike[str], descriptor: int) -> None:
    """Warn, once for each path, of an open file with a secret that others may read too.

    That its group may is no fault where this process reads it as one of the group.
    """
    shown = os.fspath(path)
    if os.name != "posix" or shown in _warned_of:
        return
    # Of the file that was opened: at its path there may be another one by now. Where it belongs to
    # somebody else, its group is how this process came to read it, as with a mounted secret.
    status = os.fstat(descriptor)
    by_group = status.st_mode & stat.S_IRGRP and status.st_uid == os.geteuid()
    if by_group or status.st_mode & stat.S_IROTH:
        _warned_of.add(shown)
        logger.warning(
            "%s: other users of this machine may read %s (mode %04o): chmod 600 it",
            argument,
            shown,
            stat.S_IMODE(status.st_mode),
        )


def _is_number(value: Any) -> bool:
    # True is an int to Python. A NaN passes here, and fails every comparison with a bound.
    return isinstance(value, (int, float)) and not isinstance(value, bool)
