"""Which threads are the library's own: there, waiting for the end would wait for itself."""

from __future__ import annotations

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
