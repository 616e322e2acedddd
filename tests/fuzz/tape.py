"""Choices that are made of bytes: whatever the fuzzer changes, it is another conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Tape"]

T = TypeVar("T")


class Tape:
    """Reads bytes as choices; where it has run out, each choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_over(self) -> bool:
        """Whether all that can be chosen has been."""
        return self._at >= len(self._data)

    def number(self, most: int) -> int:
        """A number from 0 to ``most``."""
        count = (most.bit_length() + 7) // 8
        piece = self._data[self._at : self._at + count]
        self._at += count
        return int.from_bytes(piece, "big") % (most + 1)

    def one_in(self, many: int) -> bool:
        """True, once in so many times."""
        return self.number(255) % many == many - 1

    def of(self, choices: Sequence[T]) -> T:
        """One of these."""
        return choices[self.number(len(choices) - 1)]

    def bytes(self, most: int) -> bytes:
        """Some bytes, at most so many."""
        count = self.number(most)
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece
