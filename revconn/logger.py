"""The library's loggers: whatever an application attached to logging stays in the log call."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from types import CodeType
from typing import Any, Callable, TypeVar

__all__ = ["SafeLogger", "get_logger", "is_interrupt", "level_check"]

T = TypeVar("T")


class SafeLogger:
    """A standard logger whose calls cost at most their line.

    Logging runs the application's filters, handlers and record factory, in the threads that keep a
    connection alive. What those raise is told on stderr, as logging tells of handlers that fail
    (and not, when ``logging.raiseExceptions`` is off). Only Ctrl-C in the main thread gets out: it
    is no fault of theirs. Thread-safe.
    """

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, message: str, *arguments: object, **options: Any) -> None:
        """As the standard logger's, like all the others."""
        self._try(self._logger.debug, message, *arguments, stacklevel=3, **options)

    def info(self, message: str, *arguments: object, **options: Any) -> None:
        """Level INFO."""
        self._try(self._logger.info, message, *arguments, stacklevel=3, **options)

    def warning(self, message: str, *arguments: object, **options: Any) -> None:
        """Level WARNING."""
        self._try(self._logger.warning, message, *arguments, stacklevel=3, **options)

    def error(self, message: str, *arguments: object, **options: Any) -> None:
        """Level ERROR."""
        self._try(self._logger.error, message, *arguments, stacklevel=3, **options)

    def exception(self, message: str, *arguments: object, **options: Any) -> None:
        """Level ERROR, with the traceback of the exception that is being handled."""
        # Before Python 3.11 the standard `exception` is one frame more.
        self._try(self._logger.error, message, *arguments, exc_info=True, stacklevel=3, **options)

    def log(self, level: int, message: str, *arguments: object, **options: Any) -> None:
        """A level of the caller's choice."""
        self._try(self._logger.log, level, message, *arguments, stacklevel=3, **options)

    def warning_with_stack(self, stack: str | None, message: str, *arguments: object) -> None:
        """Level WARNING, with another thread's stack where a record has its own otherwise."""
        self._try(self._warn, sys._getframe(1).f_code, stack, message, arguments)

    def isEnabledFor(self, level: int) -> bool:
        """Whether a line of this level would go anywhere."""
        return bool(self._try(self._logger.isEnabledFor, level))

    def _warn(
        self, code: CodeType, stack: str | None, message: str, arguments: tuple[object, ...]
    ) -> None:
        logger = self._logger
        if logger.isEnabledFor(logging.WARNING):
            record = logger.makeRecord(
                logger.name,
                logging.WARNING,
                code.co_filename,
                code.co_firstlineno,
                message,
                arguments,
                None,
                code.co_name,
                sinfo=stack,
            )
            logger.handle(record)

    def _try(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T | None:
        try:
            return call(*arguments, **options)
        except BaseException as error:
            if is_interrupt(error):
                raise
            self._tell_of(error)
        return None

    def _tell_of(self, error: BaseException) -> None:
        if not logging.raiseExceptions:
            return
        try:
            raised_at = traceback.extract_tb(error.__traceback__, limit=-1)[0]
            sys.stderr.write(
                f"{self._logger.name}: lost a log line: {type(error).__name__}: {error}"
                f" ({raised_at.filename}:{raised_at.lineno})\n"
            )
        except BaseException as another:
            if is_interrupt(another):
                raise


def is_interrupt(error: BaseException) -> bool:
    """Whether it is Ctrl-C, which Python raises in the main thread, wherever that is just then."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and isinstance(error, KeyboardInterrupt)


def get_logger(name: str) -> SafeLogger:
    """The logger of a module, which gives its ``__name__``."""
    return SafeLogger(logging.getLogger(name))


def level_check(name: str) -> Callable[[int], bool]:
    """Python's own ``isEnabledFor`` of that logger, for what is asked with every call.

    It runs none of the application's filters and handlers, which are what a :class:`SafeLogger`
    keeps away.
    """
    return logging.getLogger(name).isEnabledFor
