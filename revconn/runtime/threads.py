"""Whom threads wait for: conditions, and the end, for which the library's own may not wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from revconn.guard import guarded_thread

__all__ = ["Condition", "aside", "in_background", "is_own_thread", "own_thread"]

# Identifiers and no threading.local: one made before gevent patched threading would take all its
# green threads for one thread. Adding to a set, and looking into it, is atomic.
_own: set[int] = set()


class Condition(threading.Condition):
    """A condition of ``lock`` whose :meth:`notify_all` costs next to nothing while nobody waits."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)
        self.sleepers = 0  # guarded by the lock; whoever is in a hurry looks before it notifies

    def wait(self, timeout: float | None = None) -> bool:
        """As the standard one's, which :meth:`wait_for` calls too."""
        self.sleepers += 1
        try:
            return super().wait(timeout)
        finally:
            self.sleepers -= 1

    def notify_all(self) -> None:
        """As the standard one's."""
        if self.sleepers:
            super().notify_all()


@contextmanager
def own_thread() -> Iterator[None]:
    """While inside, this thread is one that a stop may have to wait for."""
    ident = threading.get_ident()
    nested = ident in _own
    _own.add(ident)
    try:
        yield
    finally:
        if not nested:
            _own.discard(ident)


def is_own_thread() -> bool:
    """Whether the current thread is one that a stop may have to wait for."""
    return threading.get_ident() in _own


def aside(function: Callable[[], object], timeout: float) -> None:
    """Call ``function`` outside of the main thread, and wait for it at most ``timeout`` seconds.

    A signal handler interrupts the main thread wherever it is, and whatever lock it holds: what
    waited for that lock in there would wait for ever.
    """
    if threading.current_thread() is not threading.main_thread() or is_own_thread():
        function()
        return
    done = threading.Event()

    def run() -> None:
        try:
            function()
        finally:
            done.set()

    if in_background(run):
        done.wait(timeout)
    else:
        function()


def in_background(function: Callable[[], object]) -> bool:
    """Have ``function`` called by a thread of its own; false if there is none to be had.

    That is as the interpreter exits, most often.
    """
    try:
        guarded_thread("revconn-close", function).start()
    except RuntimeError:
        return False
    return True


def _disown() -> None:
    """In a forked child: the thread that forked, maybe a handler's, is its main thread now."""
    _own.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)
