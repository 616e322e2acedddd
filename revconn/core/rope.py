"""Large messages in the pieces that they came in: to join 1 MiB costs more than to pass it on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Union

__all__ = ["ROPE_BYTES", "Data", "Piece", "Rope"]

ROPE_BYTES = 64 << 10
"""Of a message: from here on it is a rope, where it came, or is made, in pieces."""

Piece = Union[bytes, bytearray, memoryview]


class Rope:
    """Bytes in pieces, which nobody changes. ``bytes(rope)`` joins them.

    :ivar parts: the pieces, none of them empty.
    """

    __slots__ = ("_size", "parts")

    def __init__(self, parts: Iterable[Piece]) -> None:
        self.parts = [part for part in parts if part]
        self._size = sum(map(len, self.parts))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def __getitem__(self, index: int) -> int:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)

    def cut(self, start: int, end: int) -> Rope:
        """The bytes from ``start`` to before ``end``; nothing is copied."""
        parts = []
        for part in self.parts:
            size = len(part)
            if start < size and end > 0:
                # As a rule a whole piece: it is the same object then.
                whole = start <= 0 and end >= size
                parts.append(part if whole else memoryview(part)[max(0, start) : end])
            start -= size
            end -= size
        return Rope(parts)


Data = Union[bytes, Rope]
"""A message as it travels; ``bytes(data)`` is the same as one, and copies no bytes."""
