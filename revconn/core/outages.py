"""How long a connection has been missing, and what to say of it."""

from __future__ import annotations

from revconn.core.reminders import Reminder

__all__ = ["Outage", "duration"]

_FIRST_REMINDER = 10.0
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def duration(seconds: float) -> str:
    """Seconds for people: ``0.4 s``, ``12 s``, ``3 m 12 s``, ``2 h 5 m``, ``1 d 0 h``."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    rest = round(seconds)
    for (unit, size), (smaller, part) in zip(_UNITS, _UNITS[1:]):
        if rest >= size:
            return f"{rest // size} {unit} {rest % size // part} {smaller}"
    return f"{rest} s"


class Outage:
    """The time without a connection, from the start or a loss until the next one is established.

    Times are seconds on any one clock. Whoever owns it guards it; ``last_error`` is for reading
    without that.

    :param lost: why the last connection ended; ``None``: there was none yet.
    """

    def __init__(self, now: float, lost: str | None = None) -> None:
        self._since = now
        self._attempts = 0
        self.last_error = lost
        self._was_there = lost is not None
        self._reminder = Reminder(_FIRST_REMINDER)
        if lost is not None:
            self._reminder.is_due(now)  # the loss itself was worth a line

    def failed(self, error: str, now: float) -> bool:
        """Another attempt failed; whether that is worth a line."""
        self._attempts += 1
        self.last_error = error
        return self._reminder.is_due(now)

    def so_far(self, now: float) -> str:
        """Such as `` for 1 m 10 s, 7 attempts``; nothing after the first attempt."""
        if self._attempts < 2:
            return ""
        return f" for {duration(now - self._since)}, {_attempts(self._attempts)}"

    def over(self, now: float) -> str:
        """Such as ``: back after 3 m 12 s, 9 attempts, last error: …``; nothing if all was well."""
        if self.last_error is None:
            return ""
        took = duration(now - self._since)
        attempts = _attempts(self._attempts + 1)
        back = "back " if self._was_there else ""
        return f": {back}after {took}, {attempts}, last error: {self.last_error}"


def _attempts(count: int) -> str:
    return f"{count:,} attempt{'s' if count > 1 else ''}"
