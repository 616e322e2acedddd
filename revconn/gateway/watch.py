"""How long something may take."""

from __future__ import annotations

import asyncio

__all__ = ["Watch"]

_TICKS = 20  # each late by as much as others wait for the processor: then all take longer


class Watch:
    """Cancels the task that made it when time runs out; wait_for() would cost a task of its own.

    It counts time in which the loop really ran: after a stall of the process, what has come
    meanwhile is seen to first.

    :ivar ran_out: whether it did. It stays so, and the cancellation is whoever's who made it.
    """

    def __init__(self, timeout: float) -> None:
        self.ran_out = False
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._begin(timeout)

    def restart(self, timeout: float) -> None:
        """Give it so many seconds from now on."""
        self._timer.cancel()
        self._begin(timeout)

    def stop(self) -> None:
        """It is over in time."""
        self._timer.cancel()

    def _begin(self, timeout: float) -> None:
        self._tick = timeout / _TICKS
        self._ticks = _TICKS
        self._timer = self._loop.call_later(self._tick, self._count)

    def _count(self) -> None:
        self._ticks -= 1
        if self._ticks:
            self._timer = self._loop.call_later(self._tick, self._count)
            return
        self.ran_out = True
        if self._task is not None:
            self._task.cancel()
