"""Which of revconn's locks are taken while another one is held."""

from __future__ import annotations

import contextlib
import linecache
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import revconn

_HOUSE = str(Path(revconn.__file__).parent)
_ATTRIBUTE = re.compile(r"self\.(?P<name>_\w+) = ")


@contextlib.contextmanager
def recorded_nestings() -> Iterator[set[tuple[str, str]]]:
    """(held, taken): ``Class._lock`` names of locks that are made from now on, as they nest."""
    nestings: set[tuple[str, str]] = set()
    held = threading.local()
    made = threading.Lock

    class Recorded:
        def __init__(self, name: str) -> None:
            self._lock = made()
            self._name = name

        def acquire(self, *args: Any, **kwargs: Any) -> bool:
            taken = self._lock.acquire(*args, **kwargs)
            if taken:
                stack = held.__dict__.setdefault("stack", [])
                nestings.update((each, self._name) for each in stack)
                stack.append(self._name)
            return taken

        def release(self) -> None:
            self._lock.release()
            stack = held.__dict__.setdefault("stack", [])
            if self._name in stack:
                stack.remove(self._name)

        def locked(self) -> bool:
            return self._lock.locked()

        def __enter__(self) -> bool:
            return self.acquire()

        def __exit__(self, *exc_info: object) -> None:
            self.release()

    def make() -> Any:
        frame = sys._getframe(1)
        if not frame.f_code.co_filename.startswith(_HOUSE) or "self" not in frame.f_locals:
            return made()
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        attribute = _ATTRIBUTE.search(line)
        if attribute is None:  # of a semaphore
            return made()
        owner = type(frame.f_locals["self"]).__name__
        return Recorded(f"{owner}.{attribute['name']}")

    threading.Lock = make  # type: ignore[assignment, misc]
    try:
        yield nestings
    finally:
        threading.Lock = made  # type: ignore[misc]
