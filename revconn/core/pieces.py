"""Bytes that arrive in pieces of any size, until they are all there."""

from __future__ import annotations

__all__ = ["Pieces"]

_SMALL = 1 << 10  # bytes: where a view of a piece costs more than copying it
_RUN = 64 << 10


class Pieces:
    """Joined once, at the end: joining at every piece would be quadratic. Not thread-safe.

    Large pieces are kept as they came and not copied twice. Small ones run together: each of them
    would cost an object, and keep the buffer alive that it came in.
    """

    __slots__ = ("_parts", "_run", "size")

    def __init__(self) -> None:
        self._parts: list[memoryview | bytearray] = []
        self._run: bytearray | None = None  # the last part, while there is room in it
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, data: bytes, start: int, end: int) -> None:
        """Keep ``data[start:end]``."""
        size = end - start
        self.size += size
        piece = memoryview(data)[start:end]
        if size > _SMALL:
            self._parts.append(piece)
            self._run = None
        elif self._run is None:
            self._run = bytearray(piece)
            self._parts.append(self._run)
        else:
            self._run += piece
            if len(self._run) > _RUN:
                self._run = None

    def peek(self) -> bytes:
        """All of it, as one."""
        return b"".join(self._parts)

    def take(self) -> bytes:
        """All of it, as one; from here on there is none."""
        whole = self.peek()
        self._parts.clear()
        self._run = None
        self.size = 0
        return whole
