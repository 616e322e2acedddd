"""Which of a link's sessions serves, and what there is to tell when that changes."""

from __future__ import annotations

import pytest

from revconn.exceptions import ConnectionLost, HandshakeError
from revconn.runtime.roster import Loss, Roster, Succession
from revconn.runtime.state import State


class Session:
    """What a roster asks of one."""

    def __init__(self) -> None:
        self.ready_since: float | None = None
        self.error: BaseException | None = None
        self.serves = False
        self.ended_in_peace = False

    @property
    def is_over(self) -> bool:
        return self.error is not None


@pytest.fixture
def roster() -> Roster:
    return Roster(0.0)


def accept(roster: Roster) -> tuple[Session, Succession | None]:
    session = Session()
    roster.add(session)
    session.ready_since, session.serves = 1.0, True
    return session, roster.accepted(session)


def end(roster: Roster, session: Session, now: float = 10.0) -> Loss | None:
    session.error, session.serves = ConnectionLost("gw:1", "it broke"), False
    return roster.ended(session, now)


def serve(roster: Roster) -> Session:
    session, _ = accept(roster)
    roster.enter(State.READY)
    return session


class TestASession:
    def test_that_is_accepted_serves_and_ends_the_outage_before_it(self, roster) -> None:
        roster.failed(HandshakeError("gw:1", "refused"), 2.0)
        session, succession = accept(roster)
        assert roster.serving is session
        assert (succession.number, succession.predecessor) == (1, None)
        assert succession.outage.over(3.0) == ": after 3.0 s, 2 attempts, last error: refused"

    def test_takes_over_from_the_one_that_serves_without_an_outage(self, roster) -> None:
        first = serve(roster)
        second, succession = accept(roster)
        assert succession == Succession(2, first, None)
        assert roster.serving is second
        assert roster.established() == [first, second]

    def test_only_stands_in_while_the_link_leaves_the_one_that_serves(self, roster) -> None:
        first = serve(roster)
        assert roster.leave(30.0) is first
        assert roster.goodbye_by == 30.0
        _, succession = accept(roster)
        assert succession is None
        assert roster.serving is first
        assert roster.connections == 1

    def test_serves_though_the_link_leaves_if_none_does(self, roster) -> None:
        assert roster.leave(30.0) is None
        session, succession = accept(roster)
        assert roster.serving is session
        assert succession.number == 1

    def test_that_is_over_is_forgotten_with_the_next_one(self, roster) -> None:
        first = serve(roster)
        end(roster, first)
        assert roster.sessions() == [first]
        second = Session()
        assert roster.add(second) == [first]
        assert roster.sessions() == [second]
        assert roster.established() == []


class TestTheEndOfTheOneThatServes:
    def test_is_for_the_links_thread_to_tell_while_it_watches(self, roster) -> None:
        session = serve(roster)
        assert end(roster, session) is None
        assert roster.serving is None
        assert roster.state is State.READY
        assert roster.lost(session.error, 10.0)
        assert not roster.lost(session.error, 11.0), "an outage begins once"

    @pytest.mark.parametrize("phase", [State.CONNECTING, State.BACKING_OFF])
    def test_begins_an_outage_at_once_while_another_is_being_opened(self, roster, phase) -> None:
        session = serve(roster)
        roster.enter(phase)
        assert roster.state is State.READY
        assert end(roster, session) == Loss(None)
        assert roster.state is phase
        assert not roster.lost(session.error, 11.0)
        _, succession = accept(roster)
        assert succession.outage.over(12.0) == (
            ": back after 2.0 s, 1 attempt, last error: it broke"
        )

    def test_leaves_the_one_that_it_was_to_replace_serving(self, roster) -> None:
        first, second = serve(roster), serve(roster)
        assert end(roster, second) == Loss(first)
        assert roster.serving is first
        assert not roster.lost(second.error, 11.0)

    def test_does_not_bring_back_one_that_was_told_goodbye_or_is_newer(self, roster) -> None:
        first, second = serve(roster), serve(roster)
        first.serves = False
        third = Session()
        third.serves = True
        roster.add(third)
        assert end(roster, second) is None
        assert roster.serving is None

    @pytest.mark.parametrize("order", [lambda roster: roster.leave(1.0), Roster.stop])
    def test_is_nothing_to_tell_for_a_link_that_is_to_end(self, roster, order) -> None:
        session = serve(roster)
        roster.enter(State.CONNECTING)
        order(roster)
        assert end(roster, session) is None
        assert roster.serving is None

    def test_is_another_ones_when_it_has_been_replaced(self, roster) -> None:
        first, second = serve(roster), serve(roster)
        assert end(roster, first) is None
        assert roster.serving is second


class TestAnOutage:
    def test_is_worth_a_line_now_and_then(self, roster) -> None:
        error = HandshakeError("gw:1", "refused")
        assert roster.failed(error, 0.0) == (True, "")
        assert roster.failed(error, 5.0) == (False, " for 5.0 s, 2 attempts")
        assert roster.failed(error, 10.0) == (True, " for 10 s, 3 attempts")

    def test_is_none_while_a_session_serves_that_cannot_be_replaced(self, roster) -> None:
        serve(roster)
        assert roster.failed(HandshakeError("gw:1", "refused"), 5.0) == (False, "")


def test_an_order_to_stop_names_every_session_and_ends_every_wait(roster) -> None:
    first, second = serve(roster), Session()
    roster.add(second)
    assert roster.stop() == [first, second]
    roster.wait_for(lambda: False)


def test_in_a_forked_child_whatever_thread_held_the_lock(roster) -> None:
    with roster._lock:
        roster.forsake()
    assert roster.leaving
    assert roster.stopping
