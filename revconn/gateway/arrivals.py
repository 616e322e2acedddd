"""Connections over TLS: which of them never come to a call.

grpc tells nobody of a handshake that failed, nor whose it was. What can be known is that it began,
because grpc asks for the certificates before each, and that a call came, with its peer's address.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Callable

from revconn.core.reminders import Reminder
from revconn.logger import get_logger

__all__ = ["Arrivals"]

logger = get_logger(__name__)

_PATIENCE = 30.0  # seconds from the beginning of a connection to its first call
_REMEMBERED = 60.0  # seconds, after its last call, in which an address is the same connection's
_MOST = 100_000  # connections begun, and addresses, that are counted at once


class Arrivals:
    """Counts. :meth:`begun` may be called from any thread, the rest belongs to the gateway's.

    Times are monotonic seconds. An address that is heard again after a while counts as another
    connection's: it hides one that came to nothing, and makes none up.
    """

    def __init__(self) -> None:
        self._begun: deque[float] = deque(maxlen=_MOST)
        self._heard: dict[str, float] = {}
        self._is_used = False
        self._unsaid = 0
        self._reminder = Reminder()

    def begun(self, now: float) -> None:
        """A connection is about to be secured."""
        self._is_used = True
        self._begun.append(now)

    def called(self, get_peer: Callable[[], str]) -> None:
        """A call came; whose it is is asked only where there is TLS: an address with its port."""
        if self._is_used:
            self._hear(get_peer(), time.monotonic())

    def _hear(self, peer: str, now: float) -> None:
        last = self._heard.pop(peer, None)
        self._heard[peer] = now
        if (last is None or now - last > _REMEMBERED) and self._begun:
            self._begun.popleft()
        if len(self._heard) > _MOST:
            del self._heard[next(iter(self._heard))]

    def look(self, now: float) -> None:
        """Tell of those that have come to nothing, at first and then at growing intervals."""
        while self._begun and now - self._begun[0] > _PATIENCE:
            self._begun.popleft()
            self._unsaid += 1
        while self._heard and now - next(iter(self._heard.values())) > _REMEMBERED:
            del self._heard[next(iter(self._heard))]
        if self._unsaid and self._reminder.is_due(now):
            logger.warning(
                "TLS: no call came within %g seconds on new connections, %d of them: their"
                " handshake failed (another authority, no certificate, no TLS at all), or they were"
                " checks of the port; the peers' logs tell which, grpc does not",
                _PATIENCE,
                self._unsaid,
            )
            self._unsaid = 0
        elif not self._unsaid:
            self._reminder.rest(now)
