"""The goodbye to a gateway's connection, and what has to leave before it."""

from __future__ import annotations

import threading
import time

import pytest

from revconn.exceptions import HandshakeError
from revconn.runtime.farewell import Farewell
from revconn.runtime.roster import Roster
from tests.support.threads import in_thread
from tests.support.waiting import eventually


class Session:
    """One at a gateway that drains; it ends a while after the goodbye."""

    drains = True
    serves = True
    is_over = False
    ends_in_peace = True
    ended_in_peace = False
    services = ("echo.Echo",)

    def __init__(self, story: list[str], roster: Roster) -> None:
        self._story = story
        self._roster = roster
        self.ready_since = time.monotonic()
        roster.add(self)
        roster.accepted(self)

    def say_goodbye(self, *, last: bool) -> None:
        self._story.append("goodbye" if last else "goodbye for now")
        threading.Timer(0.2, self._end).start()

    def retire(self, reason: str) -> None:
        self._story.append("retired")

    def _end(self) -> None:
        self._story.append("the end")
        self.ended_in_peace = self.ends_in_peace
        self.is_over = True
        self._roster.notify()


class Link:
    """The last answer leaves when it is waited for; ``busy``: there is always another request."""

    def __init__(self, story: list[str], *, busy: bool = False) -> None:
        self._story = story
        self.busy = busy
        self.asked = 0

    def wait_answered(self, timeout: float, came_by: float) -> bool:
        self.asked += 1
        self.came_by = came_by
        time.sleep(0.001)
        return not self.busy

    def become_quiet(self, deadline: float) -> bool:
        return self.wait_answered(0.0, deadline)

    def open_session(self, *, registers: bool) -> Session:
        raise HandshakeError("gateway:443", "can't start new thread")

    def wait_flushed(self, timeout: float) -> bool:
        self._story.append("the answer leaves")
        return True


def lose(session: Session) -> None:
    session.is_over = True


@pytest.fixture
def roster() -> Roster:
    return Roster(time.monotonic())


def test_the_goodbye_does_not_overtake_an_answer_that_has_still_to_leave(roster) -> None:
    story: list[str] = []
    lose(Session([], roster))
    session = Session(story, roster)
    roster.leave(time.monotonic() + 30)
    assert Farewell(Link(story), roster).leave(session)
    assert story == ["the answer leaves", "goodbye", "the end"]


def test_a_goodbye_that_was_said_too_soon_for_older_requests_is_not_the_last(roster) -> None:
    story: list[str] = []
    lose(Session([], roster))
    session = Session(story, roster)
    roster.leave(time.monotonic())
    assert not Farewell(Link(story, busy=True), roster).leave(session)
    assert story == ["goodbye for now", "the end"]


def test_the_goodbye_to_the_first_connection_waits_for_nothing(roster) -> None:
    story: list[str] = []
    session = Session(story, roster)
    roster.leave(time.monotonic() + 30)
    assert Farewell(Link(story, busy=True), roster).leave(session)
    assert story == ["goodbye", "the end"]


def test_one_that_nothing_comes_by_is_in_no_hurry_to_say_goodbye(roster) -> None:
    story: list[str] = []
    lose(Session([], roster))
    session = Session(story, roster)
    session.services = ()
    link = Link(story, busy=True)
    roster.leave(time.monotonic())
    leaving = in_thread(Farewell(link, roster).leave, session)
    eventually(lambda: link.asked > 3)
    link.busy = False
    assert leaving.result(30)
    assert story == ["the answer leaves", "goodbye", "the end"]


def test_without_the_second_connection_that_it_takes_no_answer_is_overtaken(roster) -> None:
    story: list[str] = []
    session = Session(story, roster)
    session.drains = False
    link = Link(story, busy=True)
    roster.leave(time.monotonic())
    leaving = in_thread(Farewell(link, roster).leave, session)
    eventually(lambda: link.asked > 3)
    link.busy = False
    assert leaving.result(30)
    assert story[-2:] == ["goodbye", "the end"]


def test_one_that_has_just_broken_may_leave_something(roster) -> None:
    session = Session([], roster)
    lose(session)
    roster.leave(time.monotonic() + 30)
    assert not Farewell(Link([]), roster).leave(session)


def test_one_that_breaks_beside_one_that_ends_in_peace_may_leave_something(roster) -> None:
    lose(Session([], roster))
    broken = Session([], roster)
    broken.ends_in_peace = False
    session = Session([], roster)
    roster.leave(time.monotonic() + 30)
    assert not Farewell(Link([]), roster).leave(session)


def test_a_connection_that_is_replaced_has_time_for_its_goodbye_when_patience_is_at_an_end(
    roster,
) -> None:
    story: list[str] = []
    Session(story, roster)
    Farewell(Link(story, busy=True), roster).hand_over(Session([], roster), patience=0.0)
    assert story == ["goodbye for now", "the end", "retired"]


def test_what_came_on_a_connection_that_broke_after_the_next_served_is_waited_for(roster) -> None:
    lost = Session([], roster)
    session = Session([], roster)
    lose(lost)
    roster.ended(lost, session.ready_since + 5.0)
    link = Link([])
    roster.leave(time.monotonic() + 30)
    assert Farewell(link, roster).leave(session)
    assert link.came_by == session.ready_since + 5.0
