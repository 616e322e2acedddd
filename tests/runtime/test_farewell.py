"""The goodbye to a gateway's connection, and what has to leave before it."""

from __future__ import annotations

import threading
import time

import pytest

from revconn.runtime.farewell import Farewell
from revconn.runtime.roster import Roster


class Session:
    """One at a gateway that drains; it ends a while after the goodbye."""

    drains = True
    serves = True
    is_over = False
    ended_in_peace = False
    services = ("echo.Echo",)

    def __init__(self, story: list[str], roster: Roster) -> None:
        self._story = story
        self._roster = roster
        self.ready_since = time.monotonic()
        roster.add(self)
        roster.accepted(self)

    def say_goodbye(self) -> None:
        self._story.append("goodbye")
        threading.Timer(0.2, self._end).start()

    def retire(self, reason: str) -> None:
        self._story.append("retired")

    def _end(self) -> None:
        self._story.append("the end")
        self.is_over = self.ended_in_peace = True
        self._roster.notify()


class Link:
    """The last answer leaves when it is waited for; ``busy``: there is always another request."""

    def __init__(self, story: list[str], *, busy: bool = False) -> None:
        self._story = story
        self._busy = busy

    def wait_answered(self, timeout: float, came_by: float) -> bool:
        return not self._busy

    def wait_flushed(self, timeout: float) -> bool:
        self._story.append("the answer leaves")
        return True


@pytest.fixture
def roster() -> Roster:
    return Roster(time.monotonic())


def test_the_goodbye_does_not_overtake_an_answer_that_has_still_to_leave(roster) -> None:
    story: list[str] = []
    session = Session(story, roster)
    roster.leave(time.monotonic() + 30)
    assert Farewell(Link(story), roster).leave(session)
    assert story == ["the answer leaves", "goodbye", "the end"]


def test_a_goodbye_that_was_said_too_soon_for_older_requests_is_not_the_last(roster) -> None:
    story: list[str] = []
    session = Session(story, roster)
    roster.leave(time.monotonic())
    assert not Farewell(Link(story, busy=True), roster).leave(session)
    assert story == ["goodbye", "the end"]


def test_a_connection_that_is_replaced_has_time_for_its_goodbye_when_patience_is_at_an_end(
    roster,
) -> None:
    story: list[str] = []
    Session(story, roster)
    Farewell(Link(story, busy=True), roster).hand_over(Session([], roster), patience=0.0)
    assert story == ["goodbye", "the end", "retired"]
