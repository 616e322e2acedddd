"""What a link's plan goes by: its phases, what it decides and tells, and what it keeps in mind.

And the lines of what it tells, for the operator. Pure but for these. Times are monotonic.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any, Callable, NamedTuple, Protocol, Union

from revconn.core.status import FINAL_CODES, Speaker
from revconn.exceptions import ConnectionLost, HandshakeError, RevconnError
from revconn.logger import Reminder, get_logger, level_check
from revconn.settings.target import Target

__all__ = [
    "CONFIRMED_AFTER",
    "LEAVING",
    "TRANSITIONS",
    "AnotherKey",
    "Calm",
    "Connected",
    "Decision",
    "End",
    "Failed",
    "Failures",
    "GaveUpReplacing",
    "Judge",
    "Life",
    "LookAtKey",
    "Lost",
    "News",
    "Open",
    "Outage",
    "Phase",
    "Retire",
    "SayGoodbye",
    "ServesOn",
    "Shows",
    "Traffic",
    "Wait",
    "duration",
    "log_news",
    "logger",
    "reason",
    "would_log",
]

logger = get_logger("revconn.runtime.link")  # as users have it in their logging's configuration
would_log = level_check("revconn.runtime.link")

_QUIET_WAIT = 2.0  # for a moment in which nothing is unanswered; and for answers to leave
_FIRST_REMINDER = 10.0
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))

CONFIRMED_AFTER = 300.0
"""Seconds without any other answer until a stranger's refusal counts as a gateway's does.

A gateway that starts again and again is given its longest break by Kubernetes: five minutes.
"""


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


LEAVING = {
    Phase.STANDING_IN,
    Phase.PARTING,
    Phase.SAID_GOODBYE,
    Phase.SETTLING,
    Phase.FINISHING,
}
"""In which the plan has begun to carry out ``leave()``."""

# To one of these a plan goes from wherever it is, once it is told to leave or to stop.
_LEAVES = {Phase.STANDING_IN, Phase.PARTING, Phase.CLOSED}
# All sessions are over: is there anything left to deliver, and to whom?
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


class Life(Enum):
    """How far a session has come."""

    OPENING = "opening"
    ACCEPTED = "accepted"
    TOLD_GOODBYE = "told goodbye"
    OVER = "over"


class Traffic(Protocol):
    """What has come by the link and is still to be answered, or to leave."""

    def is_quiet(self) -> bool:
        """Whether nothing is unanswered and every answer has left."""

    def is_answered(self, came_by: float) -> bool:
        """Whether all that had come by then (monotonic) is answered."""

    def is_flushed(self) -> bool:
        """Whether every answer that was queued has left."""


# Decisions: what the link's thread is to do. Sessions go by the numbers that Open gives them.


class Open(NamedTuple):
    """Open a session, after so many failures in a row; tell of its end if there is no key."""

    session: int
    registers: bool
    failures: int


class SayGoodbye(NamedTuple):
    """Send DISCONNECTED on each. Not ``last``: answers to other sessions' requests are left."""

    sessions: tuple[int, ...]
    last: bool


class Retire(NamedTuple):
    """End these streams at once."""

    sessions: tuple[int, ...]
    why: str


class Judge(NamedTuple):
    """Say by :meth:`Plan.judged` whether to try again; without ``error`` only after how long."""

    error: BaseException | None
    failures: int


class LookAtKey(NamedTuple):
    """If the key to show is another one by now, say so by :meth:`Plan.another_key`."""


class Wait(NamedTuple):
    """Sleep until then (monotonic), or until something happens.

    ``for_traffic`` says that :class:`Traffic` counts as that.
    """

    until: float = math.inf
    for_traffic: bool = False


class End(NamedTuple):
    """Retire the sessions that are left; ``error`` says why, unless that was asked for."""

    error: BaseException | None


Decision = Union[Open, SayGoodbye, Retire, Judge, LookAtKey, Wait, End]


# News: what the log and the supervisor are to be told, by whoever told the plan of the cause


class Shows(NamedTuple):
    """The link is shown in another state, or in the same one once more."""


class Connected(NamedTuple):
    """A session serves, the ``number``-th one: in the place of another, or after an outage."""

    session: int
    connection_id: str
    number: int
    in_place_of: str | None
    outage: Outage | None
    now: float


class ServesOn(NamedTuple):
    """The session that served is over, and the one that it had replaced is there yet."""

    connection_id: str
    error: BaseException
    fallback: str


class Lost(NamedTuple):
    """No session serves any more: an outage begins."""

    error: BaseException


class Failed(NamedTuple):
    """An attempt failed, and the next is in ``wait`` seconds."""

    error: BaseException
    outage: Outage | None
    worth_a_line: bool
    wait: float
    now: float


class GaveUpReplacing(NamedTuple):
    """No other session can be had in the place of one, which is kept until it ends."""

    kept: str
    error: Exception


class AnotherKey(NamedTuple):
    """The key that was shown is not the one to show any more."""


News = Union[Shows, Connected, ServesOn, Lost, Failed, GaveUpReplacing, AnotherKey]


# What the plan keeps in mind


@dataclass
class Calm:
    """The wait for the moment in which a session can be told goodbye, and nothing is lost.

    A gateway that drains takes care of what it sent on that session itself: what had come before,
    by another one, has to be answered, and to leave if it can soon. One that does not drain loses
    what is unanswered then, unless another session leads to it too: the plan waits for a quiet
    moment at first, then for what was unanswered as it began to wait. A quiet moment ends any wait,
    and the plan looks for that itself.

    :ivar session: its number.
    :ivar drains: whether the gateway does.
    :ivar registers: whether the session does: then others come while this one is waited for.
    :ivar since: when the wait began.
    :ivar came_by: when the last of what has to be answered can have come.
    :ivar until: by when to ask again.
    """

    session: int
    drains: bool
    registers: bool
    since: float
    came_by: float
    until: float = math.inf
    _answered_at: float | None = None

    def has_come(self, now: float, traffic: Traffic, deadline: float) -> bool | None:
        """Whether all that has to be answered was, and has left; ``None``: wait ``until`` then."""
        if not self.drains:
            # Under load there is no quiet moment: of 22,987 requests 42 were lost by goodbyes that
            # had waited five seconds for one. After a while what came until now is enough, because
            # the answers to what comes later go out on the other session.
            quiet_by = min(self.since + _QUIET_WAIT, deadline)
            if now < quiet_by:
                return self._wait(now, quiet_by)
        # Answered first, then flushed: a call leaves the table in the step in which its answer is
        # queued, so that there is no moment in which it is in neither.
        if self._answered_at is None:
            if not traffic.is_answered(self.came_by):
                return self._wait(now, deadline)
            self._answered_at = now
        if traffic.is_flushed():
            return True
        if self.drains and self.registers:  # there is a hurry: meanwhile others come
            deadline = min(deadline, self._answered_at + _QUIET_WAIT)
        return self._wait(now, deadline)

    def _wait(self, now: float, until: float) -> bool | None:
        self.until = until
        # False when the time is up: goodbye is said all the same, and those answers that may not
        # have arrived go out again on another session.
        return None if now < until else False


class Outage:
    """The time without a connection, from the start or a loss until the next one is established.

    :param lost: why the last connection ended; ``None``: there was none yet.
    """

    def __init__(self, now: float, lost: BaseException | None = None) -> None:
        self.since = now
        self.attempts = 0
        self.last_error = None if lost is None else reason(lost)
        self.was_there = lost is not None
        self._reminder = Reminder(_FIRST_REMINDER)
        if lost is not None:
            self._reminder.is_due(now)  # the loss itself was worth a line

    def failed(self, error: BaseException, now: float) -> bool:
        """Count an attempt that failed; whether that is worth a line."""
        # Counted whatever is logged: the line that ends the outage says how many there were.
        self.attempts += 1
        self.last_error = reason(error)
        return self._reminder.is_due(now)


class Failures:
    """Failures to connect, or to stay connected, in a row; and which refusal is final.

    :param stable_after: seconds that a session has to serve for its end to be the first of a row.
    """

    def __init__(self, stable_after: float) -> None:
        self.in_a_row = 0
        self._stable_after = stable_after
        self._has_served = False
        self._strangers_since: float | None = None  # nothing else has answered since

    def count(self, now: float, accepted_at: float | None) -> None:
        """Count the end of a session, which the gateway accepted then or, ``None``, did not."""
        if accepted_at is not None:
            # It is a gateway, and the key and the services were right: from now on only a
            # gateway's own word says that they are not.
            self._has_served = True
            self._strangers_since = None
            # One that is accepted and lost at once, again and again, is backed off from as well.
            if now - accepted_at >= self._stable_after:
                self.in_a_row = 0
        self.in_a_row += 1

    def judge_refusal(self, error: BaseException | None, now: float) -> None:
        """Say of a refusal whether it is final, for :func:`revconn.is_fatal` to go by."""
        if not isinstance(error, HandshakeError):
            return
        if error.code in FINAL_CODES:
            error.is_final = self._is_final(error.speaker, now)
        else:  # no refusal, or one that passes: something happens there
            self._strangers_since = None

    def _is_final(self, speaker: Speaker, now: float) -> bool:
        # While a gateway is redeployed its proxy answers in its place (404, 403, a bare
        # UNAUTHENTICATED). It ended connectors for good until it had to last for a while.
        if speaker is Speaker.STRANGER:
            if self._strangers_since is None:
                self._strangers_since = now
            return not self._has_served and now - self._strangers_since >= CONFIRMED_AFTER
        self._strangers_since = None
        return speaker is Speaker.GATEWAY or not self._has_served


def reason(error: BaseException) -> str:
    """Why a session ended, in words that do not name the target."""
    return error.reason if isinstance(error, ConnectionLost) else str(error)


# The lines in the log of what is told


def log_news(target: Target, news: News) -> None:
    """Tell the operator what the plan of a link has to tell; :class:`Shows` is the link's."""
    _LINES[type(news)](target, news)


def _connected(target: Target, news: Connected) -> None:
    if news.in_place_of is not None:
        logger.info(
            "connected to %s as %s, in place of %s", target, news.connection_id, news.in_place_of
        )
        return
    logger.info(
        "connected to %s%s as %s%s",
        target,
        " again" if news.number > 1 else "",
        news.connection_id,
        "" if news.outage is None else _over(news.outage, news.now),
    )


def _serves_on(_target: Target, news: ServesOn) -> None:
    # INFO: another connection serves, and nobody has to act.
    logger.info("lost %s: %s; %s serves on", news.connection_id, news.error, news.fallback)


def _lost(_target: Target, news: Lost) -> None:
    logger.warning("lost the connection: %s; connecting again", news.error)


def _failed(_target: Target, news: Failed) -> None:
    # Each attempt is a line at DEBUG. Those at WARNING come at growing intervals: a gateway that is
    # away for a night is no reason for thousands.
    logger.log(
        logging.WARNING if news.worth_a_line else logging.DEBUG,
        "no connection%s: %s; trying again in %.1f s",
        "" if news.outage is None else _so_far(news.outage, news.now),
        news.error,
        news.wait,
    )


def _gave_up_replacing(target: Target, news: GaveUpReplacing) -> None:
    # ERROR, though it serves: when this connection ends there is none, and somebody has to act.
    logger.error(
        "%s: gave up replacing %s, which serves on until it ends: %s",
        target,
        news.kept,
        news.error,
        # Our own errors say it all; what a user's function raised is found by its traceback.
        exc_info=None if isinstance(news.error, RevconnError) else news.error,
    )


def _another_key(target: Target, _news: AnotherKey) -> None:
    logger.info("%s: there is another API key: replacing the connection", target)


# By the kind of news, so that a new kind without a line fails in the first test that meets it.
_LINES: dict[type, Callable[[Target, Any], None]] = {
    Connected: _connected,
    ServesOn: _serves_on,
    Lost: _lost,
    Failed: _failed,
    GaveUpReplacing: _gave_up_replacing,
    AnotherKey: _another_key,
}


def _so_far(outage: Outage, now: float) -> str:
    """Such as `` for 1 m 10 s, 7 attempts``; nothing after the first attempt."""
    if outage.attempts < 2:  # it has only begun: there is nothing to count yet
        return ""
    return f" for {duration(now - outage.since)}, {_attempts(outage.attempts)}"


def _over(outage: Outage, now: float) -> str:
    """Such as ``: back after 3 m 12 s, 9 attempts, last error: ...``; nothing if all was well."""
    if outage.last_error is None:  # the first attempt of all succeeded: that was no outage
        return ""
    took = duration(now - outage.since)
    attempts = _attempts(outage.attempts + 1)
    back = "back " if outage.was_there else ""
    return f": {back}after {took}, {attempts}, last error: {outage.last_error}"


def _attempts(count: int) -> str:
    return f"{count:,} attempt{'s' if count > 1 else ''}"


def duration(seconds: float) -> str:
    """Seconds for people: ``0.4 s``, ``12 s``, ``3 m 12 s``, ``2 h 5 m``, ``1 d 0 h``."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    # Two units at most. Whoever reads it wants to know whether it was seconds or hours.
    rest = round(seconds)
    for (unit, size), (smaller, part) in zip(_UNITS, _UNITS[1:]):
        if rest >= size:
            return f"{rest // size} {unit} {rest % size // part} {smaller}"
    return f"{rest} s"
