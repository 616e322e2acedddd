"""What a connector and its links are doing, as an application sees it: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["LinkStatus", "State"]


class State(Enum):
    """What a connector (or one of its links) is doing now."""

    IDLE = "idle"
    CONNECTING = "connecting"
    READY = "ready"
    BACKING_OFF = "backing off"
    DRAINING = "draining"
    CLOSED = "closed"


# A value and not the link: what an application keeps of it neither changes nor keeps a link alive.
@dataclass(frozen=True)
class LinkStatus:
    """What one link is doing: its gateway's address, its state, its id while it has one.

    ``last_error`` says why there is no connection, in the log's words: of the last attempt, of the
    loss, or of what ended the link. It is ``None`` while there is a connection, and before the
    first failure. ``next_attempt_in`` is in how many seconds (counted when ``links`` was read) the
    next attempt is due, ``None`` while none is waited for.
    """

    target: str
    state: State
    connection_id: str | None
    last_error: str | None = None
    next_attempt_in: float | None = None
