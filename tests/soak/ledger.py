"""What the handler did for each call, in memory that two processes share."""

from __future__ import annotations

import mmap
import threading
import time
from pathlib import Path

__all__ = ["Ledger"]


class Ledger:
    """How often the handler ran for each call, and when it was done with it last.

    One process writes, any may read. Thread-safe.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        view = memoryview(self._memory)
        calls = len(view) // 9
        self._finished_at = view[: 8 * calls].cast("d")
        self._runs = view[8 * calls :]
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: Path, calls: int) -> Ledger:
        """One for so many calls, in a new file."""
        path.write_bytes(bytes(9 * calls))
        return cls(path)

    def began(self, call: int) -> None:
        """The handler runs."""
        with self._lock:
            self._runs[call] += 1

    def finished(self, call: int) -> None:
        """The answer was computed."""
        self._finished_at[call] = time.monotonic()

    def runs(self, call: int) -> int:
        """How often the handler ran for it."""
        return self._runs[call]

    def finished_at(self, call: int) -> float | None:
        """When its answer was computed (monotonic); ``None`` if it was not."""
        return self._finished_at[call] or None

    def close(self) -> None:
        """Give back the memory."""
        self._finished_at.release()
        self._runs.release()
