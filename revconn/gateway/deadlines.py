"""When calls and handshakes are given up: one timer for many of them.

A timer of the loop's for each call would cost as much as routing it does, and nearly all of them
are cancelled. Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Callable, Generic, TypeVar

if TYPE_CHECKING:
    from revconn.gateway.call import Call

__all__ = ["Deadlines", "Timeouts"]

_AT_ONCE = 32  # that are given up in one turn of the loop, whoever had them begun together
_SLOTS = 50  # a second: so much later than its deadline a call may be given up


T = TypeVar("T")


class Deadlines:
    """The calls that have one, by the slot of time in which it passes.

    :param get_loop: whose clock and timers they go by.
    :param expire: what is done with a call whose deadline has passed.
    """

    def __init__(
        self, get_loop: Callable[[], asyncio.AbstractEventLoop], expire: Callable[[Call], None]
    ) -> None:
        self._get_loop = get_loop
        self._expire = expire
        self._slots: dict[int, dict[Call, None]] = {}

    def add(self, call: Call) -> None:
        """Give the call up at its deadline, unless it is discarded before."""
        slot = int(call.deadline * _SLOTS) + 1
        calls = self._slots.get(slot)
        if calls is None:
            calls = self._slots[slot] = {}
            self._get_loop().call_at(slot / _SLOTS, self._ring, slot)
        calls[call] = None
        call.slot = calls

    @staticmethod
    def discard(call: Call) -> None:
        """The call is settled, or somebody else sees to its time."""
        call.slot.pop(call, None)

    def _ring(self, slot: int) -> None:
        # One by one: what is done with one may settle another.
        calls = self._slots[slot]
        try:
            while calls:
                call = next(iter(calls))
                del calls[call]
                self._expire(call)
        finally:
            if calls:  # one failed, which is a bug, and not the others' fault
                self._get_loop().call_soon(self._ring, slot)
            else:
                del self._slots[slot]


class Timeouts(Generic[T]):
    """What has the same time each, counted from when it is added.

    :param seconds: how long.
    :param expire: what is done with one whose time is over.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, expire: Callable[[T], None]
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._expire = expire
        self._due: dict[T, float] = {}  # the next one first
        self._is_set = False  # whether a timer is

    def add(self, each: T) -> None:
        """Give it up after that time, unless it is discarded before."""
        self._due[each] = self._loop.time() + self._seconds
        self._set()

    def discard(self, each: T) -> None:
        """It came in time, or is over."""
        self._due.pop(each, None)

    def _set(self) -> None:
        if self._due and not self._is_set:
            self._is_set = True
            self._loop.call_at(next(iter(self._due.values())), self._ring)

    def _ring(self) -> None:
        self._is_set = False
        now = self._loop.time()
        try:
            for _ in range(_AT_ONCE):
                each, due = next(iter(self._due.items()), (None, 0.0))
                if each is None or due > now:
                    break
                del self._due[each]
                self._expire(each)
        finally:
            self._set()
