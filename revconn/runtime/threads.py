"""Which threads are the library's own: there, waiting for the end would wait for itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["is_own_thread", "own_thread"]

_local = threading.local()


@contextmanager
def own_thread() -> Iterator[None]:
    """While inside, this thread is one that a stop may have to wait for."""
    before = is_own_thread()
    _local.own = True
    try:
        yield
    finally:
        _local.own = before


def is_own_thread() -> bool:
    """Whether the current thread runs a handler, or a callback of a link."""
    return getattr(_local, "own", False)


def _disown() -> None:
    """In a forked child: the thread that forked, maybe a handler's, is its main thread now."""
    _local.own = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)
