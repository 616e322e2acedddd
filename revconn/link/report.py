"""What happens to a link: its lines in the log, for the operator."""

from __future__ import annotations

import logging
from typing import Any, Callable

from revconn.exceptions import RevconnError
from revconn.link.records import (
    AnotherKey,
    Connected,
    Failed,
    GaveUpReplacing,
    Lost,
    News,
    Outage,
    ServesOn,
)
from revconn.logger import get_logger
from revconn.settings.target import Target

__all__ = ["api_key_failed", "astray", "duration", "is_fatal_failed", "no_probes", "note", "tell"]

logger = get_logger("revconn.runtime.link")  # as users have it in their logging's configuration

_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def tell(target: Target, news: News) -> None:
    """What the plan of a link has to tell the operator."""
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


def note(target: Target, note: str) -> None:
    """What the gateway's limits changed."""
    logger.info("%s: %s", target, note)


def astray(target: Target, reason: str) -> None:
    """No requests for a service come, and another connection was of no help."""
    logger.warning("%s: %s", target, reason)


def no_probes(target: Target, reason: str) -> None:
    """The gateway does not route calls of a connector to itself."""
    logger.warning("%s: no probes any more: %s", target, reason)


def api_key_failed(target: Target) -> None:
    """The user's function raised; while that is being handled."""
    logger.exception("%s: the api_key callable failed", target)


def is_fatal_failed(error: BaseException) -> None:
    """The user's function raised over ``error``; while that is being handled."""
    logger.exception("is_fatal failed; %s is taken for retryable", error)


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
