"""SIGINT and SIGTERM while a blocking start runs in the main thread."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Callable

from revconn.logger import get_logger
from revconn.runtime.threads import Mailbox

__all__ = ["Repeats", "obey_signals", "signals_into"]

logger = get_logger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME = 1.0  # seconds, within which the same signal again is a repeat
# Seconds, after which a waiting main thread lets Python run a signal's handler: a repeat that waits
# for the next glance has to be one yet.
_GLANCE = _SAME / 4


class Repeats:
    """Tells a signal from a repeat of it: the same one again within a second is one signal.

    Process groups, ``timeout`` and supervisors deliver it twice: to the group and to the process.
    Somebody who goes on sending it is heard: the second begins with the signal that counted. Takes
    no lock, so that a signal handler may ask.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted: dict[int, float] = {}

    def is_one(self, number: int) -> bool:
        """A signal has come: whether it repeats one that counted."""
        now = self._clock()
        counted = self._counted.get(number)
        if counted is not None and now - counted < _SAME:
            return True
        self._counted[number] = now
        return False


@contextmanager
def signals_into(wakeups: Mailbox[Any], numbers: Iterable[int] = _SIGNALS) -> Iterator[None]:
    """Put the number of each signal into ``wakeups`` instead of what it did before.

    Does nothing outside the main thread, where Python delivers no signals. A handler runs between
    any two bytecodes of the main thread, so it must take no lock that thread may hold:
    :meth:`Mailbox.put` takes none.
    """
    if not _is_main_thread():  # signal.signal() would raise ValueError
        yield
        return
    pid = os.getpid()

    def receive(number: int, frame: FrameType | None) -> None:
        if os.getpid() == pid:
            wakeups.put(number)
        else:  # in a child that a handler forked: nothing of ours runs there
            put_back()
            os.kill(os.getpid(), number)

    def put_back() -> None:
        for number, handler in previous.items():
            # None: a handler that was not set from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    previous = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield
    finally:
        put_back()


def _is_main_thread() -> bool:
    current = threading.current_thread()
    # Under eventlet two objects stand for the main thread.
    return current is threading.main_thread() or type(current).__name__ == "_MainThread"


def obey_signals(
    wakeups: Mailbox[int | None],
    drain: Callable[[], object],
    abort: Callable[[], object],
    reload: Callable[[], object] | None = None,
    repeats: Repeats | None = None,
) -> int | None:
    """Until ``None`` comes: call ``drain`` for the first signal, ``abort`` for every later one.

    SIGHUP is none of them, if there is something to ``reload``. ``drain`` must return at once.
    ``repeats`` are nothing new. Returns the signal that aborted, if one did.
    """
    repeats = repeats or Repeats()  # the caller's, where signals were counted before this began
    draining = False
    aborted_by: int | None = None
    while (number := _next(wakeups)) is not None:
        name = signal.Signals(number).name
        if reload is not None and name == "SIGHUP":
            reload()
        elif repeats.is_one(number):
            logger.debug("%s again, within a second: it is the same", name)
        elif not draining:
            logger.info("%s: finishing what was accepted, then leaving", name)
            draining = True
            drain()
        else:  # any signal after that one, and not the same alone: Ctrl-C after SIGTERM, say
            logger.warning("%s again: leaving at once", name)
            aborted_by = aborted_by or number
            abort()
    return aborted_by


def _next(wakeups: Mailbox[int | None]) -> int | None:
    """Wait for the number of the next signal, or for the end, glancing up now and then.

    Whatever is to come wakes it, and still it has to look: a signal that arrives in the instant
    before the wait begins does not interrupt it, one that the system gave to another thread does
    not either, and on Windows none does. Python runs the signal's handler in the main thread,
    between two bytecodes of that: at the next glance, and it is the handler that wakes.
    """
    # A connector that ends puts None there, from the thread that ended it.
    while True:
        try:
            return wakeups.get(timeout=_GLANCE)
        except queue.Empty:
            continue
