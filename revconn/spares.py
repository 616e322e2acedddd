"""Threads that are kept for the end of the interpreter, where Python 3.12 starts no others."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from typing import Callable

__all__ = ["Thread", "drop", "keep"]

NEEDED = sys.version_info[:2] == (3, 12)
"""Python 3.12 refuses a new thread once its main thread has ended; others do not."""


class Thread(threading.Thread):
    """A thread that runs in a spare one where none can be started."""

    _loan: _Loan | None = None

    def start(self) -> None:
        """As the standard one's."""
        try:
            super().start()
        except RuntimeError:
            self._loan = None if self.ident is not None else _lend(self)
            if self._loan is None:
                raise

    def join(self, timeout: float | None = None) -> None:
        """As the standard one's."""
        if self._loan is None:
            super().join(timeout)
        else:
            self._loan.over.wait(timeout)

    def is_alive(self) -> bool:
        """As the standard one's."""
        return super().is_alive() if self._loan is None else not self._loan.over.is_set()

    @property
    def ident(self) -> int | None:
        """As the standard one's."""
        return super().ident if self._loan is None else self._loan.ident


class _Loan:
    """What a spare thread runs in the place of one that could not start."""

    def __init__(self, thread: Thread) -> None:
        self.name = thread.name
        self.body: Callable[[], object] = thread.run
        self.ident: int | None = None
        self.begun = threading.Event()
        self.over = threading.Event()


_lock = threading.Lock()  # guards _parked
_parked = 0
_loans: queue.SimpleQueue[_Loan | None] = queue.SimpleQueue()


def keep(count: int) -> int:
    """Keep so many more spare threads; how many there are: none where none are needed."""
    global _parked
    if not NEEDED:
        return 0
    started = 0
    with contextlib.suppress(RuntimeError):  # no thread to be had
        for _ in range(count):
            threading.Thread(target=_wait_for_loan, name="revconn-spare", daemon=True).start()
            started += 1
    with _lock:
        _parked += started
    return started


def drop(count: int) -> None:
    """Let so many end that were kept, unless they were lent meanwhile."""
    global _parked
    with _lock:
        count = min(count, _parked)
        _parked -= count
    for _ in range(count):
        _loans.put(None)


def _lend(thread: Thread) -> _Loan | None:
    global _parked
    with _lock:
        if not _parked:
            return None
        _parked -= 1
    loan = _Loan(thread)
    _loans.put(loan)
    loan.begun.wait()
    return loan


def _wait_for_loan() -> None:
    loan = _loans.get()
    if loan is None:
        return
    loan.ident = threading.get_ident()
    threading.current_thread().name = loan.name
    loan.begun.set()
    try:
        loan.body()
    finally:
        loan.over.set()


def _forsake() -> None:
    """In a forked child: no other thread is there, and the lock may be held for ever."""
    global _lock, _parked
    _lock = threading.Lock()
    _parked = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forsake)
