"""Which sessions a link has, which of them serves, and how long none has."""

from __future__ import annotations

import threading
from itertools import takewhile
from typing import Callable, NamedTuple

from revconn.core.outages import Outage
from revconn.exceptions import ConnectionLost
from revconn.runtime.session import Session
from revconn.runtime.state import State

__all__ = ["Loss", "Roster", "Succession", "reason"]


class Succession(NamedTuple):
    """A session serves from now on: the ``number``-th one, in whose place or after what outage."""

    number: int
    predecessor: Session | None
    outage: Outage | None


class Loss(NamedTuple):
    """The session that served is over: which one serves on. Without any an outage has begun."""

    fallback: Session | None


class Roster:
    """A link's sessions, and whether it wants others.

    One session serves. Others are about to, have been replaced, or stand in for it while the link
    leaves.

    ``_lock`` guards all state; ``_changed`` is its condition. Nothing is called under it but what
    :meth:`wait_for` waits for. The public attributes are for reading, without the lock too: that
    is how such a condition has to. Thread-safe.
    """

    def __init__(self, now: float) -> None:
        self.state = State.IDLE
        self.serving: Session | None = None
        self.connections = 0  # so many sessions have served
        self.last_break = 0.0  # when one ended otherwise than in peace (monotonic)
        self.leaving = False
        self.goodbye_by = 0.0
        self.stopping = False
        self.next_attempt: float | None = None  # when it is due (monotonic); the link's thread's
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._sessions: list[Session] = []
        self._phase = State.IDLE  # what the link's thread does; a session may serve meanwhile
        self._outage: Outage | None = Outage(now)

    # Sessions

    def add(self, session: Session) -> list[Session]:
        """There is another session. Those that are over are not kept any longer, but returned."""
        with self._lock:
            over = [other for other in self._sessions if other.is_over]
            self._sessions = [other for other in self._sessions if not other.is_over]
            self._sessions.append(session)
        return over

    def sessions(self) -> list[Session]:
        """All of them, the newest last."""
        with self._lock:
            return list(self._sessions)

    def established(self) -> list[Session]:
        """Those that were accepted and are not over, the newest last."""
        return [each for each in self.sessions() if each.ready_since and not each.is_over]

    def accepted(self, session: Session) -> Succession | None:
        """A session can serve, and does so; ``None`` if it only stands in for the one that does."""
        with self._lock:
            self._changed.notify_all()
            predecessor = self.serving
            if self.leaving and predecessor is not None:
                return None
            self.serving = session
            self.connections += 1
            outage, self._outage = self._outage, None
            return Succession(self.connections, predecessor, outage)

    def ended(self, session: Session, now: float) -> Loss | None:
        """A session is over; ``None`` if that is nothing to tell.

        The link's thread tells of it, and whether it is an outage, unless it is just opening
        another one. :meth:`notify` is for when all is told.
        """
        with self._lock:
            if not session.ended_in_peace:
                self.last_break = now
            if self.serving is not session:
                return None
            # The one that it was to replace may be there yet.
            older = takewhile(lambda other: other is not session, self._sessions)
            self.serving = next((other for other in older if other.serves), None)
            if self.leaving or self.stopping:
                return None
            if self.serving is None:
                if self._phase is State.READY:
                    return None
                self._outage = Outage(now, reason(session.error))
                self.state = self._phase
            return Loss(self.serving)

    def notify(self) -> None:
        """Something has changed, here or in a session."""
        with self._lock:
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> bool:
        """Wait until ``condition`` or the order to stop, at most ``timeout`` seconds.

        Whether one of both came.
        """
        with self._lock:
            return bool(self._changed.wait_for(lambda: condition() or self.stopping, timeout))

    def enter(self, phase: State) -> None:
        """The link's thread does this now; its state is that, unless a session serves meanwhile."""
        with self._lock:
            self._phase = phase
            connecting = phase in (State.CONNECTING, State.BACKING_OFF)
            self.state = State.READY if connecting and self.serving is not None else phase

    # Outages

    @property
    def last_error(self) -> str | None:
        """Why there is no connection, once an attempt has failed or one was lost."""
        outage = self._outage
        return None if outage is None else outage.last_error

    def lost(self, error: BaseException | None, now: float) -> bool:
        """The last session is over; whether an outage begins: not if another serves, or it has."""
        with self._lock:
            if self._outage is not None or self.serving is not None:
                return False
            self._outage = Outage(now, reason(error))
            return True

    def failed(self, error: ConnectionLost, now: float) -> tuple[bool, str]:
        """An attempt failed: whether that is worth a line, and how long there has been none."""
        with self._lock:
            if self._outage is None:
                return False, ""
            return self._outage.failed(error.reason, now), self._outage.so_far(now)

    # What is wanted of the link

    def leave(self, goodbye_by: float) -> Session | None:
        """Take leave of the gateway by then (monotonic): of which session first."""
        with self._lock:
            self.goodbye_by = goodbye_by
            self.leaving = True
            self._changed.notify_all()
            return self.serving

    def stop(self) -> list[Session]:
        """End at once: which sessions there are to be ended."""
        with self._lock:
            self.stopping = True
            self._changed.notify_all()
            return list(self._sessions)

    def forsake(self) -> None:
        """In a forked child: open no other. Takes no lock: its owner may be gone."""
        self.leaving = True
        self.stopping = True


def reason(error: BaseException | None) -> str:
    """Why, in words that do not name the target."""
    return error.reason if isinstance(error, ConnectionLost) else str(error)
