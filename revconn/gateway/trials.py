"""How long a call goes by the limits of unary ones, where nobody says whether it streams."""

from __future__ import annotations

import asyncio
from typing import Callable

__all__ = ["Trial"]

_LONGEST_REQUEST = 1.0  # seconds, of one that may be unary: what is not unary has no end


class Trial:
    """Bounds the time of a call as if it were unary, until it is seen that it streams.

    By its request: that is not one message, or has no end for a while. Or by its answer, whose
    beginning is the end of the trial.

    :param deadline: of a unary call, on the loop's clock.
    """

    __slots__ = ("_count", "_look", "_timer")

    def __init__(self, deadline: float, fail: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._count = 0
        self._timer = loop.call_at(deadline, fail)
        self._look = loop.call_later(_LONGEST_REQUEST, self.end)

    def take(self, count: int, *, ended: bool) -> None:
        """So many messages of the request have come."""
        self._count += count
        if self._count > 1 or (ended and not self._count):
            self.end()
        elif ended:
            self._look.cancel()

    def end(self) -> None:
        """It streams, or is over."""
        self._look.cancel()
        self._timer.cancel()
