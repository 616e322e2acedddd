"""An event loop whose time passes by itself, and sockets that are made up: nothing ever waits."""

from __future__ import annotations

import asyncio
import selectors
import socket
from typing import Any, Callable

__all__ = ["QuickLoop", "QuickSocket"]


class _Clock(selectors.BaseSelector):
    """Finds nothing, and lets time pass instead of waiting."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits for ever"
        self.now += max(0.0, timeout or 0.0)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def get_map(self) -> Any:
        return {}

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)


class QuickLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes when there is nothing to do, and whose sockets are made up."""

    def __init__(self) -> None:
        self.clock = _Clock()
        super().__init__(self.clock)
        self.readers: dict[int, Callable[[], None]] = {}
        self.writers: dict[int, Callable[[], None]] = {}

    def time(self) -> float:
        return self.clock.now

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        self.readers[fd] = lambda: callback(*args)

    def remove_reader(self, fd: Any) -> bool:
        return self.readers.pop(fd, None) is not None

    def add_writer(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        self.writers[fd] = lambda: callback(*args)

    def remove_writer(self, fd: Any) -> bool:
        return self.writers.pop(fd, None) is not None


class QuickSocket:
    """A peer's end: what it sends, and what it makes of what it hears."""

    family = socket.AF_INET

    def __init__(self, number: int, loop: QuickLoop) -> None:
        self._number = number
        self._loop = loop
        self.sent = b""  # and not read by the gateway yet
        self.reads = 1 << 30  # bytes that it takes before it reads no more
        self.heard = bytearray()
        self.is_closed = self.has_ended = False
        self.is_shut = False  # the gateway says nothing more

    def fileno(self) -> int:
        return self._number

    def getpeername(self) -> tuple[str, int]:
        return f"10.0.0.{self._number % 3}", 1_000 + self._number

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def setsockopt(self, *_: object) -> None:
        """It has no options."""

    def serve(self) -> bool:
        """Let its other end read and write, if it wants to and can; whether it did."""
        did = False
        read = self._loop.readers.get(self._number)
        if read is not None and (self.sent or self.has_ended):
            read()
            did = True
        write = self._loop.writers.get(self._number)
        if write is not None and self.reads > len(self.heard):
            write()
            did = True
        return did

    def recv(self, size: int) -> bytes:
        assert not self.is_closed
        if not self.sent and not self.has_ended:
            raise BlockingIOError
        piece, self.sent = self.sent[:size], self.sent[size:]
        return piece

    def send(self, data: Any) -> int:
        assert not self.is_closed
        size = min(len(data), self.reads - len(self.heard))
        if size <= 0:
            raise BlockingIOError
        self.heard += data[:size]
        return size

    def sendmsg(self, pieces: list[Any]) -> int:
        return self.send(b"".join(pieces))

    def shutdown(self, how: int) -> None:
        """The gateway says nothing more."""
        self.is_shut = True

    def close(self) -> None:
        assert self._number not in self._loop.readers
        assert self._number not in self._loop.writers
        self.is_closed = self.is_shut = True
