"""What happens to connections: a line in the log for each event, with its facts as fields.

The fields are the ``extra`` of the record: ``event``, ``connection_id``, ``key`` (its number, 0
where no key is checked), ``services``, ``peer``, ``age`` in seconds and, where there is one, the
``reason``. Refused connectors have no more than ``event``, ``peer`` and ``reason``.
"""

from __future__ import annotations

import time
from typing import Any

from revconn.core.text import presentable
from revconn.gateway.registry import Connection
from revconn.logger import get_logger

__all__ = ["connected", "draining", "ended", "expired", "refused"]

logger = get_logger(__name__)

_MOST_SERVICES = 100  # that are listed
_LONGEST_NAME = 200


def connected(connection: Connection) -> None:
    """It has registered."""
    services = presentable(", ".join(_services(connection))) or "no services"
    logger.info(
        "connection %s from %s registered %s",
        connection.id,
        connection.peer,
        services,
        extra=_fields("connected", connection),
    )


def refused(peer: str, reason: str) -> None:
    """A connector at ``peer`` was not let in."""
    fields = {"event": "refused", "peer": peer, "reason": reason}
    logger.warning("refused a connector at %s: %s", peer, reason, extra=fields)


def draining(connection: Connection, reason: str) -> None:
    """It is leaving: it finishes what it has and gets nothing new."""
    fields = _fields("draining", connection, reason)
    said = f": {reason}" if reason else ""
    logger.info("connection %s is leaving%s", connection.id, said, extra=fields)


def expired(connection: Connection, reason: str) -> None:
    """It fell silent."""
    fields = _fields("expired", connection, reason)
    logger.warning("connection %s expired: %s", connection.id, reason, extra=fields)


def ended(connection: Connection, reason: str) -> None:
    """Its stream is over."""
    fields = _fields("ended", connection, reason)
    logger.info("connection %s ended: %s", connection.id, reason, extra=fields)


def _fields(event: str, connection: Connection, reason: str | None = None) -> dict[str, Any]:
    fields = {
        "event": event,
        "connection_id": connection.id,
        "key": connection.key,
        "services": _services(connection),
        "peer": connection.peer,
        "age": round(time.monotonic() - connection.connected_at, 3),
    }
    return fields if reason is None else {**fields, "reason": reason}


def _services(connection: Connection) -> list[str]:
    return [name[:_LONGEST_NAME] for name in connection.services[:_MOST_SERVICES]]
