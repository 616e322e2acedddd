"""How often to mention what lasts."""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["Reminder", "Reminders"]


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


class Reminders:
    """Which of many troubles that come again and again is worth a line now.

    The first of a kind is, and others at growing intervals, which tell how many there were; one
    that has not come for long counts as new. Times are seconds on any one clock. Whoever owns it
    guards it.

    :param most: kinds that are remembered: peers make them up. Of more, those go whose last one
        is oldest.
    """

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self._kinds: dict[Hashable, tuple[Reminder, int]] = {}

    def count(self, kind: Hashable, now: float) -> int:
        """One of a kind has come. 0: it is not worth a line.

        Else how many there were since the last line, this one included.
        """
        reminder, unsaid = self._kinds.pop(kind, (Reminder(), 0))
        reminder.rest(now)
        unsaid += 1
        is_due = reminder.is_due(now)
        self._kinds[kind] = reminder, 0 if is_due else unsaid
        if len(self._kinds) > self._most:
            del self._kinds[next(iter(self._kinds))]
        return unsaid if is_due else 0
