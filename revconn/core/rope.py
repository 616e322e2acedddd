"""Large messages in the pieces that they came in: to join 1 MiB costs more than to pass it on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Union

__all__ = ["ROPE_BYTES", "Data", "Piece", "Rope"]

ROPE_BYTES = 64 << 10
"""Of a message: from here on it is a rope, where it came, or is made, in pieces."""

Piece = Union[bytes, bytearray, memoryview]


class Rope:
    """Bytes in pieces, which nobody changes. ``bytes(rope)`` joins them.

    :ivar parts: the pieces, none of them empty.
    """

    __slots__ = ("_ends", "parts")

    def __init__(self, parts: Iterable[Piece]) -> None:
        self.parts = [part for part in parts if part]
        self._ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def __getitem__(self, index: int) -> int:
        # Not piece by piece: there may be thousands, and a peer decides how often this is asked.
        number = bisect_right(self._ends, index)
        part = self.parts[number]  # raises IndexError
        return part[index - self._ends[number] + len(part)]

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
