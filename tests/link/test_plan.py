"""What a link's plan decides, one story each, in passed-in time."""

from __future__ import annotations

import pytest

from revconn.core.status import Speaker, StatusCode
from revconn.exceptions import AuthenticationError, HandshakeError
from revconn.link.records import (
    AnotherKey,
    Connected,
    End,
    Failed,
    GaveUpReplacing,
    Judge,
    LookAtKey,
    Lost,
    Open,
    Phase,
    Retire,
    SayGoodbye,
    ServesOn,
    Wait,
)
from tests.link.plans import BROKEN, PATIENCE, STABLE_AFTER, Play

REFUSED = HandshakeError("gw:1", "refused")
TAKEN_OVER = "another connection has taken its place"
PARTING_WAITS = 2.0


@pytest.fixture
def play() -> Play:
    return Play()


class TestConnecting:
    def test_a_link_begins_with_a_session_that_registers(self, play) -> None:
        assert play.plan.shown is Phase.IDLE
        assert play.decides() == Open(1, registers=True, failures=0)
        assert play.decides() == Wait()
        assert play.plan.shown is Phase.CONNECTING

    def test_one_that_is_accepted_serves_until_something_happens(self, play) -> None:
        number = play.open()
        play.accept(number)
        assert play.plan.shown is Phase.SERVING
        assert play.plan.serving.connection_id == "id-1"
        (told,) = play.told()
        assert (told.number, told.connection_id, told.in_place_of) == (1, "id-1", None)
        assert play.decides() == Wait()

    def test_one_that_is_refused_is_judged_and_the_next_one_comes_after_the_wait(
        self, play
    ) -> None:
        play.end(play.open(), REFUSED)
        assert play.back_off(5.0) == Judge(REFUSED, 1)
        assert play.decides() == Wait(play.now + 5.0)
        assert play.plan.shown is Phase.BACKING_OFF
        assert play.plan.next_attempt == play.now + 5.0
        assert play.plan.outage.last_error == "refused"
        assert play.after(5.0).decides() == Open(2, registers=True, failures=1)
        assert play.plan.next_attempt is None

    def test_failures_in_a_row_are_counted_until_a_session_lasts(self, play) -> None:
        for failures in (1, 2):
            play.end(play.open(), REFUSED)
            assert play.back_off().failures == failures
            play.decides()
            play.after(1.0)
        for lasts, failures in ((STABLE_AFTER - 1, 3), (STABLE_AFTER, 1)):
            number = play.open()
            play.accept(number)
            play.decides()
            play.after(lasts).end(number)
            assert play.back_off().failures == failures
            play.decides()
            play.after(1.0)

    def test_each_failure_is_told_and_some_are_worth_a_line(self, play) -> None:
        worth = []
        for wait in (4.0, 6.0, 5.0):
            play.end(play.open(), REFUSED)
            play.back_off(wait)
            play.decides()
            (told,) = play.told()
            assert isinstance(told, Failed)
            assert (told.error, told.wait) == (REFUSED, wait)
            worth.append(told.worth_a_line)
            play.after(wait)
        assert worth == [True, False, True], "at first, and after ten seconds"

    def test_what_is_useless_to_try_again_ends_the_link(self, play) -> None:
        play.end(play.open(), REFUSED)
        play.back_off(None)
        assert play.decides() == End(REFUSED)
        play.plan.closed()
        assert play.plan.shown is Phase.CLOSED
        assert play.told() == []

    def test_a_gateways_own_refusal_is_final_and_a_strangers_is_not(self, play) -> None:
        by_stranger, by_gateway = (
            AuthenticationError("gw:1", "no", StatusCode.UNAUTHENTICATED, speaker=speaker)
            for speaker in (Speaker.STRANGER, Speaker.GATEWAY)
        )
        for error in (by_stranger, by_gateway):
            play.end(play.open(), error)
            play.back_off()
            play.decides()
            play.after(1.0)
        assert [by_stranger.is_final, by_gateway.is_final] == [False, True]


class TestALoss:
    def test_is_told_with_the_judgement_and_ends_with_the_next_session(self, play) -> None:
        play.end(play.serve())
        assert play.told() == []
        assert play.plan.shown is Phase.SERVING, "until it is known what becomes of it"
        play.back_off(3.0)
        play.decides()
        assert play.told() == [Lost(BROKEN)]
        assert play.plan.shown is Phase.BACKING_OFF
        play.after(3.0).accept(play.open())
        (told,) = play.told()
        assert isinstance(told, Connected)
        assert (told.number, told.outage.last_error, told.now) == (2, "it broke", play.now)
        assert told.outage.since == play.now - 3.0

    def test_that_is_fatal_is_no_outage_but_the_end(self, play) -> None:
        play.end(play.serve())
        play.back_off(None)
        assert play.decides() == End(BROKEN)
        assert play.told() == []

    def test_of_one_that_was_accepted_a_moment_ago_is_judged_as_any_other(self, play) -> None:
        number = play.open()
        play.accept(number)
        play.end(number)
        play.told()
        assert play.back_off() == Judge(BROKEN, 1)
        play.decides()
        assert play.told() == [Lost(BROKEN)]


class TestReplacing:
    def test_one_that_goes_away_serves_until_the_next_is_accepted(self, play) -> None:
        first = play.serve()
        second = play.replace(first)
        assert play.plan.shown is Phase.SERVING
        assert play.plan.serving.number == first
        play.accept(second)
        (told,) = play.told()
        assert told.in_place_of == "id-1"
        assert play.decides() == SayGoodbye((first,), last=True)
        assert play.decides() == Wait(play.now + PATIENCE)
        play.end(first, in_peace=True)
        assert play.decides() == Wait()
        assert play.told() == []

    def test_one_that_goes_away_before_it_is_accepted_is_replaced_once_it_is(self, play) -> None:
        first = play.open()
        play.plan.going_away(first)
        assert play.decides() == Wait()
        play.accept(first)
        assert play.decides() == Open(2, registers=True, failures=1)

    def test_a_gateway_that_wants_every_session_replaced_is_not_asked_without_pause(
        self, play
    ) -> None:
        first = play.serve()
        play.plan.going_away(first)
        second = play.open()
        play.accept(second)
        play.end(first, in_peace=True)
        assert play.decides() == Wait()
        play.plan.going_away(second)
        assert play.back_off(4.0) == Judge(None, 2)
        assert play.decides() == Wait(play.now + 4.0)
        assert play.plan.shown is Phase.SERVING
        assert play.after(4.0).decides() == Open(3, registers=True, failures=2)

    def test_one_that_breaks_while_it_waits_to_be_replaced_is_lost(self, play) -> None:
        first = play.serve()
        play.plan.going_away(first)
        second = play.open()
        play.accept(second)
        play.end(first, in_peace=True)
        play.plan.going_away(second)
        play.told()
        play.back_off(4.0)
        play.decides()
        play.end(second)
        assert play.told() == [Lost(BROKEN)]
        assert play.plan.shown is Phase.BACKING_OFF

    def test_one_that_breaks_while_the_next_is_opened_is_lost_at_once(self, play) -> None:
        first = play.serve()
        second = play.replace(first)
        play.end(first)
        assert play.told() == [Lost(BROKEN)]
        assert play.plan.shown is Phase.CONNECTING
        play.accept(second)
        assert play.decides() == Wait()
        (told,) = play.told()
        assert told.outage.last_error == "it broke"

    def test_a_next_one_that_is_refused_is_tried_again_while_the_first_serves(self, play) -> None:
        first = play.serve()
        play.end(play.replace(first), REFUSED)
        play.back_off(1.0)
        assert play.decides() == Wait(play.now + 1.0)
        (told,) = play.told()
        assert (told.worth_a_line, told.outage) == (False, None), "there is no outage"
        assert play.plan.shown is Phase.SERVING
        assert play.after(1.0).decides() == Open(3, registers=True, failures=2)

    def test_the_goodbye_waits_for_what_is_unanswered_then_and_not_for_what_comes(
        self, play
    ) -> None:
        first = play.serve()
        second = play.replace(first)
        play.accept(second)
        play.traffic.unanswered = [play.now]
        assert play.decides() == Wait(play.now + PARTING_WAITS, for_traffic=True)
        ends = play.now + PATIENCE
        assert play.after(PARTING_WAITS).decides() == Wait(ends, for_traffic=True)
        play.traffic.unanswered = [play.now]  # it came in the meantime
        play.traffic.flushed = False
        assert play.decides() == Wait(ends, for_traffic=True)
        play.traffic.flushed = True
        assert play.decides() == SayGoodbye((first,), last=True)

    def test_a_quiet_moment_is_the_one_to_say_goodbye(self, play) -> None:
        first = play.serve()
        second = play.replace(first)
        play.traffic.unanswered = [play.now]
        play.accept(second)
        play.decides()
        play.traffic.unanswered = []
        assert play.after(0.5).decides() == SayGoodbye((first,), last=True)

    def test_when_patience_is_at_an_end_it_is_told_goodbye_and_has_time_for_that(self) -> None:
        play = Play(patience=0.0)
        first = play.serve()
        second = play.replace(first)
        play.accept(second)
        play.traffic.unanswered = [play.now]
        assert play.decides() == SayGoodbye((first,), last=False)
        assert play.decides() == Wait(play.now + 2.0)
        assert play.after(2.0).decides() == Retire((first,), TAKEN_OVER)
        assert play.decides() == Wait()

    def test_if_the_second_breaks_before_the_goodbye_the_first_serves_on(self, play) -> None:
        first = play.serve()
        second = play.replace(first)
        play.traffic.unanswered = [play.now]
        play.accept(second)
        play.decides()
        play.told()
        play.end(second)
        assert play.told() == [ServesOn("id-2", BROKEN, "id-1")]
        assert play.plan.serving.number == first
        play.back_off()
        play.decides()
        assert play.told() == []
        play.after(1.0).accept(play.open())
        assert isinstance(play.decides(), Wait), "the first one is told goodbye in its turn"

    def test_if_it_breaks_after_the_goodbye_the_first_is_read_to_its_end(self, play) -> None:
        first = play.serve()
        second = play.replace(first)
        play.accept(second)
        assert play.decides() == SayGoodbye((first,), last=True)
        play.end(second)
        assert play.plan.serving is None
        play.back_off()
        play.decides()
        play.after(1.0).accept(play.open())
        ends = play.now + PATIENCE
        assert play.decides() == Wait(ends), "it was told goodbye already"
        assert play.after(PATIENCE).decides() == Retire((first,), TAKEN_OVER)

    def test_a_loss_of_both_is_an_outage_at_once(self, play) -> None:
        first = play.serve()
        second = play.replace(first)
        play.traffic.unanswered = [play.now]
        play.accept(second)
        play.decides()
        play.told()
        play.end(second)
        play.end(first)
        assert play.told() == [ServesOn("id-2", BROKEN, "id-1"), Lost(BROKEN)]
        assert play.plan.shown is Phase.CONNECTING
        play.back_off()
        assert isinstance(play.decides(), Wait)
        assert play.told() == []

    def test_the_end_of_one_that_has_been_replaced_is_nothing_to_tell(self, play) -> None:
        first = play.serve()
        second = play.replace(first)
        play.accept(second)
        play.told()
        play.end(first)
        assert play.told() == []
        assert play.decides() == Wait()


class TestOneThatCannotBeReplaced:
    @pytest.fixture
    def kept(self, play) -> int:
        first = play.serve()
        play.end(play.replace(first), REFUSED)
        play.back_off(None)
        assert play.decides() == Wait()
        assert play.told() == [GaveUpReplacing("id-1", REFUSED)]
        return first

    def test_is_kept_until_it_ends_and_lost_as_any_other(self, play, kept) -> None:
        assert play.plan.shown is Phase.SERVING
        play.end(kept)
        assert play.back_off().error is BROKEN
        play.decides()
        assert play.told() == [Lost(BROKEN)]

    def test_is_replaced_when_there_is_another_key(self, play, kept) -> None:
        play.plan.another_key()
        play.after(STABLE_AFTER)
        assert isinstance(play.decides(), Open)
        assert play.told() == [AnotherKey()]

    def test_is_left_as_any_other(self, play, kept) -> None:
        play.leave()
        assert play.decides() == Open(3, registers=False, failures=0)

    def test_does_not_hold_up_an_error_that_ends_the_process(self, play) -> None:
        error = SystemExit(3)
        play.end(play.replace(play.serve()), error)
        play.back_off(None)
        assert play.decides() == End(error)


class TestTheKey:
    def test_is_looked_at_again_and_again_while_a_session_serves(self) -> None:
        play = Play(look_at_key_every=5.0)
        play.serve()
        for _ in range(2):
            assert play.decides() == Wait(play.now + 5.0)
            assert play.after(5.0).decides() == LookAtKey()

    def test_that_is_another_one_replaces_the_session(self) -> None:
        play = Play(look_at_key_every=STABLE_AFTER)
        play.serve()
        assert play.after(STABLE_AFTER).decides() == LookAtKey()
        play.plan.another_key()
        assert play.decides() == Open(2, registers=True, failures=1)

    def test_that_is_another_one_is_nothing_to_a_link_that_was_told_to_end_meanwhile(self) -> None:
        play = Play(look_at_key_every=5.0)
        play.serve()
        assert play.after(5.0).decides() == LookAtKey()
        play.plan.stop()
        play.plan.another_key()
        assert play.told() == []


class TestLeavingWithoutASession:
    def test_ends_at_once_when_nothing_is_left_to_deliver(self, play) -> None:
        play.open()
        play.leave()
        assert play.decides() == End(None)

    def test_before_anything_began_too(self, play) -> None:
        play.leave()
        assert play.decides() == End(None)

    def test_ends_as_soon_as_nobody_waits_for_what_was_left(self, play) -> None:
        play.open()
        play.traffic.flushed = False
        play.leave()
        assert play.decides() == Wait(for_traffic=True)
        play.traffic.flushed = True
        assert play.decides() == End(None)

    def test_tries_again_at_once_and_registers_nothing(self, play) -> None:
        play.end(play.open(), REFUSED)
        play.back_off(60.0)
        play.decides()
        play.traffic.flushed = False
        play.leave()
        assert play.decides() == Open(2, registers=False, failures=1)

    def test_waits_as_long_as_ever_for_the_attempts_that_follow(self, play) -> None:
        play.end(play.serve())
        play.back_off(60.0)
        play.decides()
        play.traffic.flushed = False
        play.leave()
        play.end(play.open(), REFUSED)
        play.back_off(60.0)
        assert play.decides() == Wait(play.now + 60.0, for_traffic=True)

    def test_leaves_what_is_accepted_meanwhile(self, play) -> None:
        number = play.open()
        play.traffic.flushed = False
        play.leave()
        play.accept(number, drains=True)
        assert play.plan.serving.number == number
        assert play.decides() == SayGoodbye((number,), last=True)

    def test_what_is_useless_to_try_again_ends_it(self, play) -> None:
        number = play.open()
        play.traffic.flushed = False
        play.leave()
        play.end(number, REFUSED)
        play.back_off(None)
        assert play.decides() == End(REFUSED)


class TestLeavingAGatewayThatDrains:
    @pytest.fixture
    def first(self, play) -> int:
        return play.serve(drains=True)

    def test_the_goodbye_to_the_first_session_waits_for_nothing(self, play, first) -> None:
        play.traffic.unanswered, play.traffic.flushed = [play.now], False
        play.leave()
        assert play.decides() == SayGoodbye((first,), last=True)
        assert play.after(1e6).decides() == Wait()
        play.end(first, in_peace=True)
        assert play.decides() == End(None)
        assert play.told() == []

    def test_what_came_before_a_break_is_answered_before_the_goodbye(self, play, first) -> None:
        play.traffic.unanswered = [play.now]
        second = self.break_and_serve_again(play, first)
        play.leave(goodbye_in=30.0)
        goodbye_by = play.now + 30.0
        assert play.decides() == Wait(goodbye_by, for_traffic=True)
        play.traffic.unanswered, play.traffic.flushed = [play.now + 1], False
        assert play.after(1.0).decides() == Wait(play.now + PARTING_WAITS, for_traffic=True)
        play.traffic.flushed = True
        assert play.decides() == SayGoodbye((second,), last=True)

    def test_the_last_answer_has_a_moment_to_leave_before_the_goodbye(self, play, first) -> None:
        second = self.break_and_serve_again(play, first)
        play.traffic.flushed = False
        play.leave()
        play.decides()
        assert play.after(PARTING_WAITS).decides() == SayGoodbye((second,), last=False)

    def test_what_came_on_a_session_that_broke_after_the_next_served_is_waited_for(
        self, play, first
    ) -> None:
        second = play.replace(first)
        play.accept(second, drains=True)
        play.traffic.unanswered = [play.now + 1]
        play.after(2.0).end(first)
        play.leave()
        assert isinstance(play.decides(), Wait)

    def test_a_goodbye_that_was_said_too_soon_is_not_the_last(self, play, first) -> None:
        play.traffic.unanswered = [play.now]
        second = self.break_and_serve_again(play, first)
        play.leave(goodbye_in=0.0)
        assert play.decides() == SayGoodbye((second,), last=False)
        play.end(second, in_peace=True)
        assert play.decides() == Open(3, registers=False, failures=1), "at once: it let go in peace"
        play.accept(3, drains=True)
        assert play.decides() == Wait(for_traffic=True), "nothing comes by this one: no hurry"
        play.traffic.unanswered = []
        assert play.decides() == SayGoodbye((3,), last=True)
        play.end(3, in_peace=True)
        assert play.decides() == End(None)

    def test_one_that_breaks_may_leave_answers_to_another(self, play, first) -> None:
        play.leave()
        play.decides()
        play.traffic.flushed = False
        play.end(first)
        assert play.back_off(2.0) == Judge(None, 1)
        assert play.decides() == Wait(play.now + 2.0, for_traffic=True)
        assert play.told() == [Lost(BROKEN)]
        assert play.after(2.0).decides() == Open(2, registers=False, failures=1)
        play.accept(2, drains=True)
        assert play.decides() == Wait(for_traffic=True)

    def test_one_that_breaks_with_all_answered_is_no_loss(self, play, first) -> None:
        play.leave()
        play.decides()
        play.end(first)
        assert play.decides() == End(None)
        assert play.told() == []

    def test_one_that_registers_nothing_and_lets_go_too_soon_is_followed_after_a_wait(
        self, play, first
    ) -> None:
        play.leave()
        play.decides()
        play.traffic.flushed = False
        play.end(first)
        play.back_off(1.0)
        play.decides()
        play.after(1.0).accept(play.open(), drains=True)
        play.decides()
        play.end(2, in_peace=True)  # unasked, before all was answered
        assert play.back_off(1.0) == Judge(None, 1)

    def test_in_the_middle_of_a_hand_over_both_are_left(self, play, first) -> None:
        play.traffic.unanswered = [play.now]
        second = play.replace(first)
        play.accept(second, drains=True)
        play.decides()
        play.leave(goodbye_in=5.0)
        play.decides()
        assert play.after(5.0).decides() == SayGoodbye((first, second), last=False)
        play.end(first, in_peace=True)
        assert play.decides() == Wait()
        play.traffic.unanswered = []
        play.end(second, in_peace=True)
        assert play.decides() == End(None)

    def test_one_that_was_told_goodbye_is_not_told_twice(self, play, first) -> None:
        second = play.replace(first)
        play.accept(second, drains=True)
        assert play.decides() == SayGoodbye((first,), last=True)
        play.leave()
        assert play.decides() == SayGoodbye((second,), last=False)

    def test_one_that_breaks_beside_one_that_lets_go_may_leave_answers(self, play, first) -> None:
        second = play.replace(first)
        play.accept(second, drains=True)
        play.decides()
        play.leave()
        play.decides()
        play.end(first)
        play.end(second, in_peace=True)
        play.traffic.flushed = False
        assert play.decides() == Open(3, registers=False, failures=1)

    def test_one_that_is_just_being_opened_is_not_wanted_any_more(self, play, first) -> None:
        second = play.replace(first)
        play.leave()
        assert play.decides() == Retire((second,), "stopped")
        play.end(second)
        assert play.decides() == SayGoodbye((first,), last=True)

    def break_and_serve_again(self, play: Play, first: int) -> int:
        play.end(first)
        play.back_off()
        play.decides()
        play.after(1.0)
        second = play.open()
        play.accept(second, drains=True)
        play.decides()
        play.told()
        return second


class TestLeavingAGatewayThatDoesNotDrain:
    @pytest.fixture
    def first(self, play) -> int:
        return play.serve()

    @pytest.fixture
    def stand_in(self, play, first) -> int:
        """It is being opened, for a link that is to leave within 30 s."""
        play.leave(goodbye_in=30.0)
        assert play.decides() == Open(2, registers=False, failures=0)
        assert play.decides() == Wait(play.now + 2.0)
        return 2

    def test_a_second_session_takes_the_answers_after_the_goodbye(
        self, play, first, stand_in
    ) -> None:
        play.accept(stand_in)
        assert play.told() == [], "it only stands in"
        assert play.plan.serving.number == first
        assert play.decides() == SayGoodbye((first,), last=True)
        play.traffic.unanswered = [play.now]
        assert play.decides() == Wait()
        play.end(first, in_peace=True)
        assert play.decides() == Wait(for_traffic=True)
        play.traffic.unanswered = []
        assert play.decides() == SayGoodbye((stand_in,), last=True)
        assert play.decides() == Wait(play.now + 2.0)
        play.end(stand_in, in_peace=True)
        assert play.decides() == End(None)

    def test_the_stand_in_has_two_seconds_to_end(self, play, first, stand_in) -> None:
        play.accept(stand_in)
        play.decides()
        play.end(first, in_peace=True)
        assert play.decides() == SayGoodbye((stand_in,), last=True)
        assert play.after(2.0).decides() == End(None)

    def test_the_goodbye_waits_for_a_quiet_moment_then_for_what_was_unanswered(
        self, play, first, stand_in
    ) -> None:
        play.traffic.unanswered = [play.now]
        play.accept(stand_in)
        goodbye_by = play.now + 30.0
        assert play.decides() == Wait(play.now + PARTING_WAITS, for_traffic=True)
        assert play.after(PARTING_WAITS).decides() == Wait(goodbye_by, for_traffic=True)
        assert play.after(28.0).decides() == SayGoodbye((first,), last=False)

    def test_without_a_key_for_it_no_answer_is_overtaken(self, play, first) -> None:
        play.traffic.unanswered = [play.now]
        play.leave(goodbye_in=0.0)
        play.decides()
        play.end(2, REFUSED)
        assert play.decides() == Wait(play.now + PARTING_WAITS, for_traffic=True)
        assert play.after(PARTING_WAITS).decides() == Wait(for_traffic=True), "however long"
        play.traffic.unanswered = []
        assert play.after(1e3).decides() == SayGoodbye((first,), last=True)
        play.end(first, in_peace=True)
        assert play.decides() == End(None)

    def test_without_a_key_for_it_nothing_is_overtaken_while_there_is_time(
        self, play, first
    ) -> None:
        play.traffic.unanswered = [play.now]
        play.leave(goodbye_in=25.0)
        play.decides()
        play.end(2, REFUSED)
        goodbye_by = play.now + 25.0
        assert play.decides() == Wait(goodbye_by, for_traffic=True)
        play.after(24.0).traffic.unanswered = [play.now]  # the first was answered, another came
        assert play.decides() == Wait(goodbye_by, for_traffic=True), "nowhere else is it answered"
        play.traffic.unanswered = []
        assert play.decides() == SayGoodbye((first,), last=True)

    def test_one_that_comes_late_lets_the_goodbye_be_said_in_time(
        self, play, first, stand_in
    ) -> None:
        play.traffic.unanswered = [play.now]
        play.after(2.0).decides()
        assert play.after(28.0).decides() == Wait(play.now + PARTING_WAITS, for_traffic=True)
        play.accept(stand_in)
        assert play.decides() == SayGoodbye((first,), last=False)

    def test_a_stand_in_for_one_that_breaks_meanwhile_is_not_waited_for(
        self, play, first, stand_in
    ) -> None:
        play.end(first)
        assert play.decides() == End(None)

    def test_a_stand_in_that_breaks_too_is_followed_by_another(self, play, first, stand_in) -> None:
        play.traffic.unanswered = [play.now]
        play.accept(stand_in)
        play.decides()
        play.end(first)
        assert play.decides() == Wait(for_traffic=True), "the stand-in takes what is left"
        play.end(stand_in)
        assert play.back_off(1.0) == Judge(None, 1)
        play.decides()
        assert play.after(1.0).decides() == Open(3, registers=False, failures=1)

    def test_a_stand_in_that_breaks_before_the_goodbye_leaves_no_hurry(
        self, play, first, stand_in
    ) -> None:
        play.traffic.unanswered = [play.now]
        play.accept(stand_in)
        play.decides()
        play.end(stand_in)
        assert play.after(60.0).decides() == Wait(for_traffic=True)

    def test_one_that_was_never_accepted_and_then_is_serves_the_rest(
        self, play, first, stand_in
    ) -> None:
        play.traffic.unanswered = [play.now]
        play.after(2.0).decides()
        play.end(first)
        play.back_off(60.0)
        assert isinstance(play.decides(), Wait)
        play.accept(stand_in)
        assert play.plan.serving.number == stand_in
        play.traffic.unanswered = []
        assert play.decides() == SayGoodbye((stand_in,), last=True)


class TestStopping:
    def test_ends_it_wherever_it_is(self, play) -> None:
        first = play.serve()
        play.replace(first)
        play.plan.stop()
        assert play.decides() == End(None)
        play.end(2)
        play.end(first)
        assert play.told() == [], "it was asked for"

    def test_ends_a_wait_for_the_next_attempt(self, play) -> None:
        play.end(play.open(), REFUSED)
        play.back_off(60.0)
        play.decides()
        play.plan.stop()
        assert play.decides() == End(None)
        assert play.plan.next_attempt is None

    def test_is_not_undone_by_a_session_that_is_accepted_just_then(self, play) -> None:
        number = play.open()
        play.plan.stop()
        play.accept(number)
        assert play.plan.serving is None
        assert play.told() == []
