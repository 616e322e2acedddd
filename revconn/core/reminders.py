"""How often to mention what lasts."""

from __future__ import annotations

__all__ = ["Reminder"]


class Reminder:
    """Says when one kind of trouble is worth a line: at first, then at growing intervals.

    Times are seconds on any one clock. Whoever owns it guards it.

    :param first: until it is worth a second line; each further interval is twice as long.
    :param most: the longest interval.
    """

    def __init__(self, first: float = 60.0, most: float = 3600.0) -> None:
        self._first = first
        self._most = most
        self._interval = 0.0
        self._due: float | None = None

    def is_due(self, now: float) -> bool:
        """The trouble is there now: whether to say so."""
        if self._due is not None and now < self._due:
            return False
        self._interval = min(2 * self._interval, self._most) if self._interval else self._first
        self._due = now + self._interval
        return True

    def rest(self, now: float) -> None:
        """The trouble is not there now. Once it has long been gone it counts as new again."""
        if self._due is not None and now >= self._due + self._interval:
            self._due = None
            self._interval = 0.0
