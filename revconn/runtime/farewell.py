"""Parting from a gateway's connections without losing what they brought."""

from __future__ import annotations

import math
import time
from typing import Callable, Protocol

from revconn.exceptions import HandshakeError
from revconn.runtime.roster import Roster
from revconn.runtime.session import Session

__all__ = ["Farewell", "Leaver"]

_QUIET_WAIT = 2.0
_STAND_IN_WAIT = 2.0
_FAREWELL = 2.0
_SLICE = 0.1  # of a wait that another event may end


class Leaver(Protocol):
    """The link whose sessions they are."""

    def open_session(self, *, registers: bool, failures: int = 0) -> Session:
        """Another session, after so many failures in a row.

        Raises :class:`HandshakeError` when there is no key to show.
        """

    def become_quiet(self, deadline: float) -> bool:
        """Wait until nothing is unanswered and every answer has left, or until ``deadline``."""

    def wait_flushed(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until every queued answer has left."""

    def wait_answered(self, timeout: float, came_by: float) -> bool:
        """Wait, at most ``timeout`` seconds, until what came by then (monotonic) is answered."""


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
            calm = self._await_calm(predecessor, deadline, is_off)
            if is_off():
                return
            predecessor.say_goodbye(last=calm)
        rest = max(_FAREWELL, deadline - time.monotonic())
        roster.wait_for(lambda: is_off() or all(each.is_over for each in predecessors), rest)
        if not is_off():
            for predecessor in predecessors:
                predecessor.retire("another connection has taken its place")

    def leave(self, serving: Session) -> bool:
        """Part from all, and lose nothing of what the gateway has sent, or sends until it knows.

        A gateway that reads no answers after a goodbye gets them on a second connection, which
        registers nothing. Goodbye is said by the time that the roster has for it, so that nothing
        new comes; by a session that nothing comes by there is no hurry, nor without that second
        connection: the end of the time to leave answers what is left, and that has to arrive.

        Whether all ended in peace, and nothing is left that another one has to take.
        """
        roster = self._roster
        for session in roster.sessions():
            if session.ready_since is None:
                session.retire("stopped")
        established = roster.established()
        needs_stand_in = any(session.services and not session.drains for session in established)
        stand_in = self._open_stand_in(serving) if needs_stand_in else None
        loses_answers = needs_stand_in and stand_in is None  # all that come after the goodbye
        in_a_hurry = serving.services and not loses_answers
        goodbye_by = roster.goodbye_by if in_a_hurry else math.inf
        calm = self._await_calm(serving, goodbye_by, lambda: False)
        for session in established:
            session.say_goodbye(last=calm and len(established) == 1)
        roster.wait_for(lambda: all(session.is_over for session in established))
        if stand_in is not None:
            # The stream may have broken off: what it brought is still to be answered.
            while not (roster.stopping or stand_in.is_over):
                if self._link.become_quiet(time.monotonic() + _SLICE):
                    break
            stand_in.say_goodbye()
            roster.wait_for(lambda: stand_in.is_over, _FAREWELL)
        return calm and all(session.ended_in_peace for session in (serving, *established))

    def _open_stand_in(self, serving: Session) -> Session | None:
        try:
            session = self._link.open_session(registers=False)
        except HandshakeError:
            return None
        self._roster.wait_for(
            lambda: session.ready_since or session.is_over or serving.is_over, _STAND_IN_WAIT
        )
        return session if session.ready_since else None

    def _await_calm(self, session: Session, deadline: float, is_off: Callable[[], bool]) -> bool:
        """Wait for the moment to say goodbye to a session: until ``deadline``, unless ``is_off``.

        A gateway that drains takes care of what it sent there itself: what had come before, on
        another connection, has to be answered, and to leave if it can soon. One that does not
        drain loses what is unanswered then, unless a second connection leads to it too: wait for a
        quiet moment at first, then for what was unanswered.

        Whether all that had to be answered was, and has left.
        """
        link = self._link
        roster = self._roster
        if session.drains and roster.connections == 1:
            return not session.is_over  # nothing can have come before

        def soon() -> float:
            return min(deadline, time.monotonic() + _QUIET_WAIT)

        def waited(condition: Callable[[float], bool], until: float) -> bool:
            while not (roster.stopping or session.is_over or is_off()):
                if condition(_SLICE):
                    return True
                if time.monotonic() >= until:
                    break
            return False

        came_by = time.monotonic()
        if session.drains:
            came_by = max(session.ready_since or 0.0, roster.last_break)
        if not session.drains and waited(
            lambda timeout: link.become_quiet(time.monotonic() + timeout), soon()
        ):
            return True
        if not waited(lambda timeout: link.wait_answered(timeout, came_by), deadline):
            return False
        in_a_hurry = session.drains and session.services  # meanwhile others come
        return waited(link.wait_flushed, soon() if in_a_hurry else deadline)
