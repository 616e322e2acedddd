"""Parting from a gateway's connections without losing what they brought."""

from __future__ import annotations

import time
from typing import Callable, Protocol

from revconn.exceptions import HandshakeError
from revconn.runtime.origin import Unanswered
from revconn.runtime.roster import Roster
from revconn.runtime.session import Session

__all__ = ["Farewell", "Leaver"]

_QUIET_WAIT = 2.0
_STAND_IN_WAIT = 2.0
_FAREWELL = 2.0
_SLICE = 0.1  # of a wait that another event may end


class Leaver(Protocol):
    """The link whose sessions they are."""

    def open_session(self, *, registers: bool) -> Session:
        """Another session. Raises :class:`HandshakeError` when there is no key to show."""

    def become_quiet(self, deadline: float) -> bool:
        """Wait until nothing is unanswered and every answer has left, or until ``deadline``."""

    def wait_flushed(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until every queued answer has left."""

    def unanswered(self) -> set[Unanswered]:
        """What the gateway sent and nobody has answered yet."""

    def wait_answered(self, awaited: set[Unanswered], timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until nothing of ``awaited`` is unanswered."""


class Farewell:
    """How a link parts from its sessions. Owned by the link's thread."""

    def __init__(self, link: Leaver, roster: Roster) -> None:
        self._link = link
        self._roster = roster

    def hand_over(self, session: Session, patience: float) -> None:
        """Part from the others once ``session`` serves in their place, in ``patience`` seconds.

        If it breaks meanwhile they are left as they are, to serve on or for its own successor; if
        the link is to leave, to :meth:`leave`.
        """
        roster = self._roster

        def is_off() -> bool:
            return roster.leaving or session.is_over

        roster.wait_for(lambda: session.ready_since or is_off())
        deadline = time.monotonic() + patience
        predecessors = [each for each in roster.established() if each is not session]
        for predecessor in predecessors:
            self._await_calm(predecessor, deadline, is_off)
            if is_off():
                return
            predecessor.say_goodbye()
        rest = max(0.0, deadline - time.monotonic())
        roster.wait_for(lambda: is_off() or all(each.is_over for each in predecessors), rest)
        if not is_off():
            for predecessor in predecessors:
                predecessor.retire("another connection has taken its place")

    def leave(self, serving: Session) -> None:
        """Part from all, and lose nothing of what the gateway has sent, or sends until it knows.

        A gateway that reads no answers after a goodbye gets them on a second connection, which
        registers nothing. Goodbye is said by the time that the roster has for it.
        """
        roster = self._roster
        sessions = roster.sessions()
        for session in sessions:
            if session.ready_since is None:
                session.retire("stopped")
        established = [session for session in sessions if session.ready_since is not None]
        needs_stand_in = any(session.services and not session.drains for session in established)
        stand_in = self._open_stand_in(serving) if needs_stand_in else None
        self._await_calm(serving, roster.goodbye_by, lambda: False)
        for session in established:
            session.say_goodbye()
        roster.wait_for(lambda: all(session.is_over for session in established))
        if stand_in is not None:
            # The stream may have broken off: what it brought is still to be answered.
            while not (roster.stopping or stand_in.is_over):
                if self._link.become_quiet(time.monotonic() + _SLICE):
                    break
            stand_in.say_goodbye()
            roster.wait_for(lambda: stand_in.is_over, _FAREWELL)

    def _open_stand_in(self, serving: Session) -> Session | None:
        try:
            session = self._link.open_session(registers=False)
        except HandshakeError:
            return None
        self._roster.wait_for(
            lambda: session.ready_since or session.is_over or serving.is_over, _STAND_IN_WAIT
        )
        return session if session.ready_since else None

    def _await_calm(self, session: Session, deadline: float, is_off: Callable[[], bool]) -> None:
        """Wait for the moment to say goodbye to a session: until ``deadline``, unless ``is_off``.

        A gateway that drains takes care of what it sent there itself: what had come before, on
        another connection, has to be answered. One that does not drain loses what is unanswered
        then, unless a second connection leads to it too: wait for a quiet moment at first, then for
        what was unanswered.
        """

        def may_wait(until: float) -> bool:
            over = self._roster.stopping or session.is_over or is_off()
            return not over and time.monotonic() < until

        awaited = self._link.unanswered()
        if session.drains:
            since = session.ready_since or 0.0
            awaited = {each for each in awaited if each._arrived < since}
        else:
            quiet_until = min(deadline, time.monotonic() + _QUIET_WAIT)
            while may_wait(quiet_until):
                if self._link.become_quiet(time.monotonic() + _SLICE):
                    break
        while may_wait(deadline):
            answered = self._link.wait_answered(awaited, _SLICE)
            if answered and self._link.wait_flushed(_SLICE):
                break
