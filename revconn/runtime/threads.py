"""Which threads are the library's own: there, waiting for the end would wait for itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["is_own_thread", "own_thread"]

# Identifiers and no threading.local: one made before gevent patched threading would take all its
# green threads for one thread. Adding to a set, and looking into it, is atomic.
_own: set[int] = set()


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
    """Whether the current thread runs a handler, or a callback of a link."""
    return threading.get_ident() in _own


def _disown() -> None:
    """In a forked child: the thread that forked, maybe a handler's, is its main thread now."""
    _own.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)
