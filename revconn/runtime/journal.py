"""What happens to a link: its lines in the log, for the operator."""

from __future__ import annotations

import logging

from revconn.exceptions import ConnectionLost, RevconnError
from revconn.logger import get_logger
from revconn.runtime.roster import Succession
from revconn.runtime.session import Session
from revconn.runtime.state import State
from revconn.target import Target

__all__ = [
    "another_key",
    "api_key_failed",
    "astray",
    "connected",
    "gave_up_replacing",
    "is_fatal_failed",
    "lost",
    "no_connection",
    "no_probes",
    "note",
    "serves_on",
    "state",
]

logger = get_logger("revconn.runtime.link")  # for operators the link is one thing


def state(target: Target, state: State) -> None:
    """It is another."""
    logger.debug("%s: %s", target, state.name)


def connected(target: Target, session: Session, succession: Succession, now: float) -> None:
    """A session serves."""
    if succession.predecessor is not None:
        logger.info(
            "connected to %s as %s, in place of %s",
            target,
            session.connection_id,
            succession.predecessor.connection_id,
        )
        return
    logger.info(
        "connected to %s%s as %s%s",
        target,
        " again" if succession.number > 1 else "",
        session.connection_id,
        "" if succession.outage is None else succession.outage.over(now),
    )


def another_key(target: Target) -> None:
    """The one that was shown is not the one to show any more."""
    logger.info("%s: there is another API key: replacing the connection", target)


def note(target: Target, note: str) -> None:
    """What the gateway's limits changed."""
    logger.info("%s: %s", target, note)


def no_connection(error: ConnectionLost, so_far: str, wait: float, *, worth_a_line: bool) -> None:
    """An attempt failed, the next is in ``wait`` seconds."""
    logger.log(
        logging.WARNING if worth_a_line else logging.DEBUG,
        "no connection%s: %s; trying again in %.1f s",
        so_far,
        error,
        wait,
    )


def lost(error: BaseException | None) -> None:
    """No session serves any more."""
    logger.warning("lost the connection: %s; connecting again", error)


def serves_on(lost: Session, fallback: Session) -> None:
    """One is over, and the one that it had replaced is there yet."""
    logger.info("lost %s: %s; %s serves on", lost.connection_id, lost.error, fallback.connection_id)


def gave_up_replacing(target: Target, kept: Session, error: Exception) -> None:
    """The gateway wants one replaced, and no other can be had."""
    logger.error(
        "%s: gave up replacing %s, which serves on until it ends: %s",
        target,
        kept.connection_id,
        error,
        exc_info=None if isinstance(error, RevconnError) else error,
    )


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
