"""A user's connector by its name, ``package.module:connector``."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import ModuleType
from typing import Any, NoReturn

from revconn.connector import Connector
from revconn.exceptions import ConfigurationError
from revconn.logger import get_logger
from revconn.runtime.state import State

__all__ = ["CannotLoad", "load_connector"]

logger = get_logger(__name__)

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class CannotLoad(Exception):
    """There is no connector by that name, or making it failed; the message says why."""


def load_connector(spec: str) -> Connector:
    """The connector that ``spec`` names, or that the factory it names returns.

    The current directory is importable. A traceback of an error in the user's own code is logged
    at DEBUG. Raises :class:`CannotLoad`.
    """
    module_name, colon, attribute = spec.partition(":")
    if not colon or not _is_dotted_name(module_name) or not _is_dotted_name(attribute):
        raise CannotLoad(f"{spec!r} names no connector; write package.module:connector")
    found = _find(_import(module_name), attribute)
    if isinstance(found, Connector):
        # serve has to be the one who starts it: signals and the exit code depend on that.
        if found.state is not State.IDLE:
            raise CannotLoad(
                f"{spec} was started while its module was imported; put connector.start() under"
                ' if __name__ == "__main__":'
            )
        return found
    if not callable(found):
        raise CannotLoad(f"{spec} is {_kind(found)}, neither a Connector nor a function")
    return _make(spec, found)


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _import(name: str) -> ModuleType:
    here = os.getcwd()
    # As `python -m` has it, and a console script has not.
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only where it is the named module, or a package on the way to it, that is not there: a
        # module that imports something missing was found, and is told about by its line.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise CannotLoad(f"{error.msg} (looked in {here} and on Python's path)") from error
        _blame(f"cannot import {name}", error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        _blame(f"cannot import {name}", error)


def _find(module: ModuleType, attribute: str) -> Any:
    found: Any = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise CannotLoad(f"{module.__name__} has no {attribute}{_hint(module)}") from error
    return found


def _hint(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Connector)]
    return f"; it has the connector {', '.join(names)}" if names else ""


def _make(spec: str, factory: Any) -> Connector:
    try:
        made = factory()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        _blame(f"{spec}() failed", error)
    # None above all: a factory that forgot its return.
    if not isinstance(made, Connector):
        raise CannotLoad(f"what {spec}() returned is {_kind(made)}, not a Connector")
    return made


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _blame(what: str, error: BaseException) -> NoReturn:
    """Say what failed in the user's code, and where."""
    logger.debug("%s", what, exc_info=error)
    # Its own text names the option already; a KeyError's says nothing without its kind.
    kind = "" if isinstance(error, ConfigurationError) else f"{type(error).__name__}: "
    # One line, whatever the error's text: stderr is read by supervisors, line by line.
    message = " ".join(str(error).split())
    raise CannotLoad(f"{what}: {kind}{message}{_where(error)}") from error


def _where(error: BaseException) -> str:
    """The line of the user's code (not Python's import machinery's, not ours) it happened in."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((_OURS, "<")):
            return f" ({os.path.relpath(frame.filename)}, line {frame.lineno})"
    return ""
