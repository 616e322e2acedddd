"""What a plan knows: its phases, its sessions, when to part from one, since when there is none.

Pure. Times are monotonic.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Protocol

from revconn.core.refusals import Refusals
from revconn.exceptions import ConnectionLost, HandshakeError
from revconn.logger import Reminder

__all__ = [
    "TRANSITIONS",
    "Calm",
    "Failures",
    "Life",
    "Outage",
    "Phase",
    "PlannedSession",
    "Traffic",
    "reason",
]

_QUIET_WAIT = 2.0  # for a moment in which nothing is unanswered; and for answers to leave
_FIRST_REMINDER = 10.0


class Phase(Enum):
    """What the link's thread is about; see the top of ``plan.py``."""

    IDLE = "idle"
    CONNECTING = "connecting"
    HANDING_OVER = "handing over"
    SERVING = "serving"
    FAILED = "failed"
    BACKING_OFF = "backing off"
    STANDING_IN = "standing in"
    PARTING = "parting"
    SAID_GOODBYE = "said goodbye"
    SETTLING = "settling"
    FINISHING = "finishing"
    CLOSED = "closed"


_LEAVES = {Phase.STANDING_IN, Phase.PARTING, Phase.CLOSED}
_CONCLUDES = {Phase.CONNECTING, Phase.FAILED, Phase.CLOSED}

TRANSITIONS: dict[Phase, set[Phase]] = {
    Phase.IDLE: {Phase.CONNECTING, Phase.CLOSED},
    Phase.CONNECTING: {Phase.HANDING_OVER, Phase.FAILED} | _LEAVES,
    Phase.HANDING_OVER: {Phase.SERVING, Phase.FAILED} | _LEAVES,
    Phase.SERVING: {Phase.FAILED, Phase.CONNECTING} | _LEAVES,
    Phase.FAILED: {Phase.BACKING_OFF, Phase.SERVING} | _LEAVES,
    Phase.BACKING_OFF: {Phase.CONNECTING} | _LEAVES,
    Phase.STANDING_IN: {Phase.PARTING, Phase.CLOSED},
    Phase.PARTING: {Phase.SAID_GOODBYE, Phase.CLOSED},
    Phase.SAID_GOODBYE: {Phase.SETTLING} | _CONCLUDES,
    Phase.SETTLING: {Phase.FINISHING} | _CONCLUDES,
    Phase.FINISHING: _CONCLUDES,
    Phase.CLOSED: set(),
}
"""From which phase to which a plan may go; it asserts that, and the tests take each of them."""


class Traffic(Protocol):
    """What has come by the link and is still to be answered, or to leave."""

    def is_quiet(self) -> bool:
        """Whether nothing is unanswered and every answer has left."""

    def is_answered(self, came_by: float) -> bool:
        """Whether all that had come by then (monotonic) is answered."""

    def is_flushed(self) -> bool:
        """Whether every answer that was queued has left."""


class Life(Enum):
    """How far a session has come."""

    OPENING = "opening"
    ACCEPTED = "accepted"
    TOLD_GOODBYE = "told goodbye"
    OVER = "over"


class PlannedSession:
    """What the plan knows of one, by its number."""

    def __init__(self, number: int, *, registers: bool) -> None:
        self.number = number
        self.registers = registers
        self.life = Life.OPENING
        self.connection_id = ""
        self.drains = False
        self.accepted_at: float | None = None
        self.going_away = False
        self.is_kept = False  # no other can be had in its place
        self.error: BaseException | None = None
        self.in_peace = False

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.life is Life.OVER

    @property
    def serves(self) -> bool:
        """Whether requests may come by it, and go on to."""
        return self.registers and self.life is Life.ACCEPTED


class Calm:
    """The moment to say goodbye to a session.

    A gateway that drains takes care of what it sent on that session itself: what had come before,
    by another one, has to be answered, and to leave if it can soon. One that does not drain loses
    what is unanswered then, unless another session leads to it too: the plan waits for a quiet
    moment at first, then for what was unanswered as it began to wait.

    :param came_by: when the last of what came before can have come; ``None``: nothing did.
    """

    def __init__(self, session: PlannedSession, now: float, came_by: float | None) -> None:
        self.session = session
        self.until = math.inf
        self._quiet_by = now + _QUIET_WAIT
        self._nothing_came_before = session.drains and came_by is None
        self._came_by = now if came_by is None or not session.drains else came_by
        self._answered_at: float | None = None

    def has_come(self, now: float, traffic: Traffic, deadline: float) -> bool | None:
        """Whether all that has to be answered was, and has left; ``None``: wait ``until`` then."""
        session = self.session
        if session.is_over:  # what it brought may be unanswered, and nobody will ask for it there
            return False
        if self._nothing_came_before:
            return True
        if not session.drains:
            if traffic.is_quiet():
                return True
            # Under load there is no quiet moment. After a while what came until now is enough.
            if now < min(self._quiet_by, deadline):
                return self._wait(now, min(self._quiet_by, deadline))
        if self._answered_at is None:
            if not traffic.is_answered(self._came_by):
                return self._wait(now, deadline)
            self._answered_at = now
        if traffic.is_flushed():
            return True
        if session.drains and session.registers:  # there is a hurry: meanwhile others come
            deadline = min(deadline, self._answered_at + _QUIET_WAIT)
        return self._wait(now, deadline)

    def _wait(self, now: float, until: float) -> bool | None:
        self.until = until
        return None if now < until else False


class Outage:
    """The time without a connection, from the start or a loss until the next one is established.

    :param lost: why the last connection ended; ``None``: there was none yet.
    """

    def __init__(self, now: float, lost: str | None = None) -> None:
        self.since = now
        self.attempts = 0
        self.last_error = lost
        self.was_there = lost is not None
        self._reminder = Reminder(_FIRST_REMINDER)
        if lost is not None:
            self._reminder.is_due(now)  # the loss itself was worth a line

    def failed(self, error: str, now: float) -> bool:
        """Another attempt failed; whether that is worth a line."""
        self.attempts += 1
        self.last_error = error
        return self._reminder.is_due(now)


class Failures:
    """Failures to connect, or to stay connected, in a row.

    :param stable_after: seconds that a session has to serve for its end to be the first of a row.
    """

    def __init__(self, stable_after: float) -> None:
        self.in_a_row = 0
        self._stable_after = stable_after
        self._refusals = Refusals()

    def count(self, now: float, accepted_at: float | None) -> None:
        """One more, of a session that the gateway accepted then or, ``None``, did not."""
        if accepted_at is not None:
            self._refusals.accepted()
            if now - accepted_at >= self._stable_after:
                self.in_a_row = 0
        self.in_a_row += 1

    def judge_refusal(self, error: BaseException | None, now: float) -> None:
        """Say of a refusal whether it is final, for :func:`revconn.is_fatal` to go by."""
        if not isinstance(error, HandshakeError):
            return
        if error.code is None:
            self._refusals.failed_otherwise()
        else:
            error.is_final = self._refusals.is_final(error.code, error.speaker, now)


def reason(error: BaseException) -> str:
    """Why, in words that do not name the target."""
    return error.reason if isinstance(error, ConnectionLost) else str(error)
