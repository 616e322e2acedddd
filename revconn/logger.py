"""The library's log lines: whatever an application attached to logging stays in the log call.

And how often a line about what lasts is worth it, so that no peer fills the log; and words fit to
stand in a line or in an error, or to be sent in one: a peer's, too.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Hashable
from types import CodeType
from typing import Any, Callable, NamedTuple, TypeVar
from urllib.parse import quote, quote_plus

__all__ = [
    "MOST_SOURCES",
    "Mask",
    "Reminder",
    "Reminders",
    "SafeLogger",
    "Sum",
    "Sums",
    "encodable",
    "get_logger",
    "is_interrupt",
    "level_check",
    "presentable",
]

T = TypeVar("T")

MOST_SOURCES = 1000  # that are told apart, of one kind and in one interval

_LONGEST_DETAILS = 1000
_SHORTEST_SECRET = 6  # characters; less hides nothing, and is part of other words
_SHORTEST_BEGINNING = 16  # of a secret, inside a text: less may be part of other words there
_HIDDEN = "***"


class SafeLogger:
    """A standard logger whose calls cost at most their line.

    Logging runs the application's filters, handlers and record factory, in the threads that keep a
    connection alive. What those raise is told on stderr, as logging tells of handlers that fail
    (and not, when ``logging.raiseExceptions`` is off). Only Ctrl-C in the main thread gets out: it
    is no fault of theirs. Thread-safe.
    """

    # Between the caller and the standard method there are two frames of this class: a record is to
    # name the caller, so each level gives stacklevel=3.
    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, message: str, *arguments: object, **options: Any) -> None:
        """Level DEBUG. Arguments are the standard logger's, here and below."""
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
        # The standard logger gives a record the stack of whoever logs, or none. This one is of the
        # thread that is talked about.
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
        # Whatever it raises, SystemExit and a green thread's timeout too: let out, it would end
        # whichever of the library's threads had something to say, and the connection with it.
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
        # Where a process has no stderr, or one that fails, the line is lost without a word.
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


class Reminder:
    """Says when one kind of trouble is worth a line: at first, then at growing intervals.

    Times are seconds on any one clock. Whoever owns it guards it.

    :param first: until it is worth a second line; each further interval is twice as long.
    :param most: the longest interval.
    """

    def __init__(self, first: float = 60.0, most: float = 3600.0) -> None:
        self._first = first
        self._most = most
        self._interval = 0.0
        self._due: float | None = None

    def is_due(self, now: float) -> bool:
        """The trouble is there now: whether to say so."""
        if self._due is not None and now < self._due:
            return False
        # After a minute, two more, four more, up to an hour: a night takes some fifteen lines.
        self._interval = min(2 * self._interval, self._most) if self._interval else self._first
        self._due = now + self._interval
        return True

    def rest(self, now: float) -> None:
        """The trouble is not there now. Once it has long been gone it counts as new again."""
        # Not at once: what comes and goes every few seconds would be a line each time.
        if self._due is not None and now >= self._due + self._interval:
            self._due = None
            self._interval = 0.0


class Reminders:
    """Which of many troubles that come again and again is worth a line now.

    The first of a kind is, and others at growing intervals, which tell how many there were; one
    that has not come for long counts as new. Times are seconds on any one clock. Whoever owns it
    guards it.

    :param most: kinds that are remembered: peers make them up. Of more, those go whose last one
        is oldest.
    """

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self._kinds: dict[Hashable, tuple[Reminder, int]] = {}

    def count(self, kind: Hashable, now: float) -> int:
        """One of a kind has come. 0: it is not worth a line.

        Else how many there were since the last line, this one included.
        """
        # Taken out and put in anew: so the dict's order is that of the last of each kind.
        reminder, unsaid = self._kinds.pop(kind, (Reminder(), 0))
        reminder.rest(now)
        unsaid += 1
        is_due = reminder.is_due(now)
        self._kinds[kind] = reminder, 0 if is_due else unsaid
        if len(self._kinds) > self._most:
            del self._kinds[next(iter(self._kinds))]
        return unsaid if is_due else 0


class Sum(NamedTuple):
    """What came of one kind since its last line.

    :ivar last: what was said of the last one.
    :ivar times: how many came.
    :ivar sources: where they came from, counted up to :data:`MOST_SOURCES`, and one more for more.
    :ivar seconds: since the line before.
    """

    kind: Hashable
    last: Any
    times: int
    sources: int
    seconds: float


class _Trouble:
    """One kind, from a line of its own on."""

    def __init__(self, now: float, interval: float) -> None:
        self.last: Any = None
        self.last_at = now
        self.times = 0
        self.sources: set[Hashable] = set()
        self.begin(now, interval)

    def begin(self, now: float, interval: float) -> None:
        self.told_at, self.interval = now, interval
        self.times = 0
        self.sources.clear()


class Sums:
    """Which of the troubles that strangers cause is worth a line now: all together, few.

    The first of a kind is, wherever it comes from. Those after it are told as one sum: when an
    interval is over, which grows from one to the next, or a while after the last has come. A kind
    that has not come for long counts as new. Times are seconds on any one clock. Whoever owns it
    guards it, and asks :meth:`due` every now and then.

    :param first: until the first sum; each further interval is twice as long.
    :param most: the longest interval.
    :param quiet: how long nothing comes, at most, before the rest is told.
    """

    def __init__(self, first: float = 60.0, most: float = 3600.0, quiet: float = 300.0) -> None:
        self._first = first
        self._most = most
        self._quiet = quiet
        # By kinds that are ours: no peer can make one up.
        self._troubles: dict[Hashable, _Trouble] = {}

    def count(self, kind: Hashable, source: Hashable, last: Any, now: float) -> bool:
        """One of a kind has come, and is worth a line of its own; else it is part of a sum."""
        trouble = self._troubles.get(kind)
        if trouble is None:
            self._troubles[kind] = _Trouble(now, self._first)
            return True
        trouble.times += 1
        trouble.last, trouble.last_at = last, now
        if len(trouble.sources) <= MOST_SOURCES:
            trouble.sources.add(source)
        return False

    def due(self, now: float) -> list[Sum]:
        """The sums that are worth a line now."""
        sums = []
        for kind, trouble in tuple(self._troubles.items()):
            passed = now - trouble.told_at
            if trouble.times:
                quiet = min(trouble.interval, self._quiet)
                if passed >= trouble.interval or now - trouble.last_at >= quiet:
                    sums.append(self._sum(kind, trouble, now))
            elif passed >= 2 * trouble.interval:
                del self._troubles[kind]
        return sums

    def rest(self, now: float) -> list[Sum]:
        """All that has not been told: there is no more to come."""
        return [self._sum(kind, each, now) for kind, each in self._troubles.items() if each.times]

    def _sum(self, kind: Hashable, trouble: _Trouble, now: float) -> Sum:
        passed = now - trouble.told_at
        told = Sum(kind, trouble.last, trouble.times, len(trouble.sources), passed)
        trouble.begin(now, min(2 * trouble.interval, self._most))
        return told


# Words


def presentable(text: str) -> str:
    """``text`` as part of one line: shortened, control characters replaced by spaces."""
    # A line break of a peer's would begin a line of its own in the log, of whatever level it likes.
    text = text[:_LONGEST_DETAILS]
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def encodable(text: str) -> str:
    """``text`` as UTF-8 can hold it: with escapes in the place of lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class Mask:
    """Hides a secret in a peer's words, which may be an echo of ours. Immutable."""

    __slots__ = ("_forms",)

    def __init__(self, secret: str) -> None:
        # Worked out once for each session's key, and not with each text.
        forms = {form for form in _ways_to_write(secret) if len(form) >= _SHORTEST_SECRET}
        hides = len(secret) >= _SHORTEST_SECRET
        # Longest first: one may begin another.
        self._forms = tuple(sorted(forms, key=len, reverse=True)) if hides else ()

    def __call__(self, text: str) -> str:
        """``text`` without the secret, nor the beginning of it where what was quoted is cut."""
        for form in self._forms:
            text = text.replace(form, _HIDDEN)
        text = self._without_beginnings(text)
        for form in self._forms:
            if form[:_SHORTEST_SECRET] not in text:  # as a rule
                continue
            for size in range(min(len(form) - 1, len(text)), _SHORTEST_SECRET - 1, -1):
                if text.endswith(form[:size]):
                    text = text[:-size] + _HIDDEN
        return text

    def _without_beginnings(self, text: str) -> str:
        """``text`` without the longer beginnings of the secret in it."""
        forms = [form for form in self._forms if len(form) > _SHORTEST_BEGINNING]
        for beginning in {form[:_SHORTEST_BEGINNING] for form in forms}:
            first, *others = text.split(beginning)
            rests = [form[_SHORTEST_BEGINNING:] for form in forms if form.startswith(beginning)]
            text = first + "".join(
                _HIDDEN + other[max(_common(other, rest) for rest in rests) :] for other in others
            )
        return text


def _ways_to_write(secret: str) -> list[str]:
    """The secret as programs quote it. Most secrets look the same in nearly all of these ways."""
    data = encodable(secret).encode()
    encoded = [quote(secret, "", errors="replace"), quote(secret, errors="replace")]
    return [
        secret,
        data.decode("latin-1"),  # read in the wrong encoding
        *(written(secret)[1:-1] for written in (repr, ascii, json.dumps)),
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(data)[2:-1],
        html.escape(secret),
        quote_plus(secret, errors="replace"),
        *encoded,
        *(re.sub("%..", lambda found: found[0].lower(), each) for each in encoded),
        *(encode(data).decode().rstrip("=") for encode in _BASE64),
        data.hex(),
    ]


_BASE64 = (base64.b64encode, base64.urlsafe_b64encode)


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    differing = (at for at, (a, b) in enumerate(zip(one, other)) if a != b)
    return next(differing, min(len(one), len(other)))
