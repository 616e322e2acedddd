"""What a connector and its links are doing, as an application sees it: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Callable

__all__ = ["LinkStatus", "State", "Stopped", "trouble"]


class State(Enum):
    """What a connector (or one of its links) is doing now."""

    # CONNECTING leads to READY, or to BACKING_OFF and back. A loss leads from READY to BACKING_OFF,
    # however short that is, or to CONNECTING where another connection was being opened already.
    IDLE = "idle"  # not started
    CONNECTING = "connecting"  # an attempt is under way, and no other link is ready
    READY = "ready"  # a gateway has said CONNECTED: its requests come
    BACKING_OFF = "backing off"  # waits until the next attempt is due
    DRAINING = "draining"  # a connector alone: it answers what was accepted, and leaves
    # A link's is over, told to end or given up; a connector's when all of its links' are. For good.
    CLOSED = "closed"


# A value and not the link: what an application keeps of it neither changes nor keeps a link alive.
@dataclass(frozen=True)
class LinkStatus:
    """What one link is doing: its gateway's address, its state, its id while it has one.

    Of a link to one of several addresses, ``target`` is such as ``gateway:443 (192.0.2.1)``.
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


class Stopped:
    """What :meth:`Connector.stop` returns: like the event of :class:`grpc.Server`'s. Thread-safe.

    :param wait: waits so many seconds (``None``: no limit) for the end; whether it has come.
    """

    def __init__(self, wait: Callable[[float | None], bool]) -> None:
        self._wait = wait

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the connector has ended; false when ``timeout`` seconds ran out."""
        return self._wait(timeout)

    def is_set(self) -> bool:
        """Whether it has ended."""
        return self._wait(0.0)

    def __repr__(self) -> str:
        return f"<Stopped {'set' if self.is_set() else 'unset'}>"


def trouble(link: LinkStatus) -> str:
    """Such as ``; a:1: Connection refused; next attempt in 0.7 s``; nothing if all is well."""
    if link.last_error is None:
        return ""
    due = link.next_attempt_in
    following = "" if due is None else f"; next attempt in {due:.1f} s"
    return f"; {link.target}: {link.last_error}{following}"
