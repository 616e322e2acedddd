"""The goodbye to a gateway's connection, and what has to leave before it."""

from __future__ import annotations

import time

from revconn.runtime.farewell import Farewell
from revconn.runtime.roster import Roster


class Session:
    """One at a gateway that drains; it ends with the goodbye."""

    drains = True
    serves = True
    is_over = False
    services = ("echo.Echo",)

    def __init__(self, story: list[str]) -> None:
        self._story = story
        self.ready_since = time.monotonic()

    def say_goodbye(self) -> None:
        self._story.append("goodbye")
        self.is_over = True


class Link:
    """Nothing is unanswered any more; the last answer leaves when it is waited for."""

    def __init__(self, story: list[str]) -> None:
        self._story = story

    def unanswered(self) -> set[object]:
        return set()

    def wait_answered(self, awaited: set[object], timeout: float) -> bool:
        return True

    def wait_flushed(self, timeout: float) -> bool:
        self._story.append("the answer leaves")
        return True


def test_the_goodbye_does_not_overtake_an_answer_that_has_still_to_leave() -> None:
    story: list[str] = []
    roster = Roster(time.monotonic())
    session = Session(story)
    roster.add(session)
    roster.accepted(session)
    roster.leave(time.monotonic() + 30)
    Farewell(Link(story), roster).leave(session)
    assert story == ["the answer leaves", "goodbye"]
