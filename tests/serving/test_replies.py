from __future__ import annotations

import random
import threading
from typing import Callable
from unittest import mock

import pytest

from revconn._proto.registry_pb2 import ConnectionMessage
from revconn.core.chunks import LargeAnswer
from revconn.core.responses import encode_response
from revconn.core.sending import Answer, answer
from revconn.runtime import clock
from revconn.serving.line import Line
from revconn.serving.replies import Replies
from tests.support.lines import let_answers_through
from tests.support.threads import TIMEOUT, in_thread, signal_waits
from tests.support.waiting import eventually

MIB = 1 << 20
ROOM = 16 * MIB


@pytest.fixture
def replies() -> Replies:
    return Replies()


def put(replies: Replies, *messages: bytes, deadline: float | None = None) -> None:
    queue(replies, *(answer(message, deadline) for message in messages))


def queue(replies: Replies, *answers: Answer | LargeAnswer) -> None:
    """Have answers sent that others may follow soon."""
    with replies.lock:
        line = replies.put(answers)
    assert line is None
    replies.send_out(line)


def asleep(line: Line) -> None:
    """Wait until its sender sleeps, or will before anything can wake it in vain."""
    eventually(lambda: line.parked)


def open_line(replies: Replies) -> Line:
    """A line whose handshake is done."""
    line = replies.open_line()
    let_answers_through(line)
    return line


# What leaves, and when


def test_a_batch_is_everything_that_waits_control_messages_first(replies: Replies) -> None:
    line = open_line(replies)
    put(replies, b"a1", b"a2")
    line.put_control(b"heartbeat")
    line.put_control(b"goodbye")
    assert line.take() == [b"heartbeat", b"goodbye", b"a1", b"a2"]


def test_a_batch_of_answers_ends_at_a_mebibyte(replies: Replies) -> None:
    line = open_line(replies)
    put(replies, b"x" * MIB, b"y")
    line.put_control(b"heartbeat")
    assert line.take() == [b"heartbeat", b"x" * MIB]
    assert line.take() == [b"y"]


def test_a_batch_brings_one_chunk_of_what_is_large_behind_all_that_is_small(
    replies: Replies,
) -> None:
    line = replies.open_line()
    let_answers_through(line, MIB, chunks=True)
    queue(replies, LargeAnswer(encode_response("large", b""), None, bytes(10 * MIB)))
    first = line.take()
    put(replies, b"a1", b"a2")
    *small, second = line.take()
    assert small == [b"a1", b"a2"]
    assert [len(each) > MIB // 8 for each in (*first, second)] == [True, True]
    assert not replies.wait_flushed(0)


def test_a_large_answer_that_may_not_have_left_waits_for_the_next_line(replies: Replies) -> None:
    line = replies.open_line()
    let_answers_through(line, 1024, chunks=True)
    queue(replies, LargeAnswer(encode_response("large", b""), None, bytes(2000)))
    chunks = [*line.take(), *line.take(), *line.take()]
    line.close()
    assert not replies.wait_flushed(0)
    again = replies.open_line()
    let_answers_through(again, 1024, chunks=True)
    assert [*again.take(), *again.take(), *again.take()] == chunks
    again.nudge()
    assert again.take() == []
    assert replies.wait_flushed(0)


def test_a_large_answer_that_was_withdrawn_is_waited_for_no_more(replies: Replies) -> None:
    line = replies.open_line()
    let_answers_through(line, 1024, chunks=True)
    queue(replies, LargeAnswer(encode_response("large", b""), None, bytes(5000)))
    line.take()
    replies.withdraw(["large"])
    line.nudge()
    assert line.take() == []
    assert replies.wait_flushed(0)


def test_too_many_large_answers_hold_back_the_peer_until_they_have_left(replies: Replies) -> None:
    line = replies.open_line()
    let_answers_through(line, MIB, chunks=True)
    queue(replies, LargeAnswer(encode_response("a", b""), None, bytes(100 * MIB)))
    assert not line.blocked, "one may be large"
    queue(replies, LargeAnswer(encode_response("b", b""), None, bytes(100 * MIB)))
    assert line.blocked
    replies.withdraw(["a"])
    assert not line.blocked


def test_before_the_handshake_is_done_only_control_messages_leave(replies: Replies) -> None:
    put(replies, b"answer")
    line = replies.open_line()
    line.put_control(b"register")
    assert line.take() == [b"register"]
    sender = in_thread(line.take)
    asleep(line)
    let_answers_through(line)
    assert sender.result(TIMEOUT) == [b"answer"]


@pytest.mark.parametrize("kind", ["answer", "control"])
def test_a_sleeping_sender_wakes_for_what_is_queued(replies: Replies, kind: str) -> None:
    line = open_line(replies)
    sender = in_thread(line.take)
    asleep(line)
    if kind == "answer":
        put(replies, b"new")
    else:
        line.put_control(b"new")
    assert sender.result(TIMEOUT) == [b"new"]


def test_a_nudge_wakes_the_sender_empty_handed_once(replies: Replies) -> None:
    line = open_line(replies)
    sender = in_thread(line.take)
    asleep(line)
    line.nudge()
    assert sender.result(TIMEOUT) == []
    put(replies, b"answer")
    assert line.take() == [b"answer"]
    sender = in_thread(line.take)
    asleep(line)
    line.close()
    assert sender.result(TIMEOUT) is None


def test_a_sender_that_cannot_send_yet_waits_for_a_nudge_and_takes_nothing(
    replies: Replies,
) -> None:
    line = open_line(replies)
    put(replies, b"answer")
    sender = in_thread(line.wait)
    asleep(line)
    line.nudge()
    assert sender.result(TIMEOUT) is True
    assert line.take() == [b"answer"]
    sender = in_thread(line.wait)
    asleep(line)  # one nudge wakes once
    line.close()
    assert sender.result(TIMEOUT) is False


def hand_over_large(replies: Replies, large: LargeAnswer) -> None:
    old = replies.open_line()
    let_answers_through(old, 1024, chunks=True)
    queue(replies, large)
    old.take()
    new = replies.open_line()
    let_answers_through(new, 1024)
    old.close()


def put_large(replies: Replies, large: LargeAnswer) -> None:
    let_answers_through(replies.open_line(), 1024)
    queue(replies, large)


def hold_large(replies: Replies, large: LargeAnswer) -> None:
    queue(replies, large)
    let_answers_through(replies.open_line(), 1024)


@pytest.mark.parametrize("happen", [put_large, hold_large, hand_over_large])
def test_an_answer_that_becomes_an_error_is_logged_without_the_lock(
    replies: Replies, caplog: pytest.LogCaptureFixture, happen: Callable[..., None]
) -> None:
    locked: list[bool] = []
    caplog.handler.addFilter(lambda _: locked.append(replies.lock.locked()) or True)
    happen(replies, LargeAnswer(encode_response("large", b""), None, bytes(2000)))
    assert locked == [False]
    assert "request_id='large': the answer was not sent: message of" in caplog.text


# One line after the other


def test_during_a_hand_over_answers_go_out_on_both_streams(replies: Replies) -> None:
    old = open_line(replies)
    put(replies, b"before")
    new = open_line(replies)
    put(replies, b"a1")
    assert old.take() == [b"before", b"a1"]
    assert new.take() == [b"a1"]


def test_until_its_handshake_is_done_a_second_stream_carries_no_answers(replies: Replies) -> None:
    old = open_line(replies)
    new = replies.open_line()
    put(replies, b"a1")
    new.put_control(b"register")
    assert new.take() == [b"register"]
    assert old.take() == [b"a1"]


def test_what_a_stream_may_carry_no_longer_goes_out_on_the_other(replies: Replies) -> None:
    old = open_line(replies)
    put(replies, b"a1")
    new = open_line(replies)
    old.put_control(b"goodbye")
    old.withhold_answers()
    put(replies, b"a2")
    assert old.take() == [b"goodbye"]
    assert new.take() == [b"a1", b"a2"]


def test_a_large_answer_that_leaves_on_both_streams_does_not_begin_anew_on_the_second(
    replies: Replies,
) -> None:
    old, new = replies.open_line(), replies.open_line()
    let_answers_through(old, 1024, chunks=True)
    let_answers_through(new, 1024, chunks=True)
    queue(replies, LargeAnswer(encode_response("large", b""), None, bytes(2000)))
    chunks = [*old.take(), *new.take()][1:]
    old.close()  # with two of three chunks to go
    while new.outbound:
        chunks += new.take()
    indexes = [
        ConnectionMessage.FromString(chunk).response.response_stream_info.chunk_index
        for chunk in chunks
    ]
    assert indexes == [0, 1, 2]


def opened_beside_another(replies: Replies) -> Line:
    other = open_line(replies)
    line = open_line(replies)
    other.close()
    return line


def opened_before_another(replies: Replies) -> Line:
    line = open_line(replies)
    open_line(replies).close()
    return line


def opened_before_one_that_fails(replies: Replies) -> Line:
    line = open_line(replies)
    replies.open_line().close()
    return line


def opened_with_an_answer_held_back(replies: Replies) -> Line:
    put(replies, b"held")
    line = open_line(replies)
    line.take()
    return line


def opened_with_a_request_under_way(replies: Replies) -> Line:
    replies.in_flight["r"] = mock.Mock()
    line = open_line(replies)
    replies.in_flight.clear()
    return line


def opened_with_a_batch_coming_in(replies: Replies) -> Line:
    other = open_line(replies)
    other.close()
    replies.arriving[other] = 0.0
    line = open_line(replies)
    replies.arriving.clear()
    return line


@pytest.mark.parametrize(
    ("opened", "waits"),
    [
        (open_line, False),
        (opened_before_one_that_fails, False),
        (opened_beside_another, True),
        (opened_before_another, True),
        (opened_with_an_answer_held_back, True),
        (opened_with_a_request_under_way, True),
        (opened_with_a_batch_coming_in, True),
    ],
)
@pytest.mark.parametrize("came_back", [True, False])
def test_a_gateways_dismissal_settles_only_what_it_can_have_asked_for(
    replies: Replies, opened: Callable[[Replies], Line], waits: bool, came_back: bool
) -> None:
    line = opened(replies)
    put(replies, b"a1", deadline=clock.with_suspend() + 1e6)
    line.take()
    if came_back:
        line.nudge()
        line.take()
    line.close(dismissed=True)
    assert replies.wait_flushed(0) is not waits


def test_without_another_stream_what_is_withheld_waits_for_the_next(replies: Replies) -> None:
    old = open_line(replies)
    put(replies, b"a1")
    old.withhold_answers()
    put(replies, b"a2")
    assert not replies.wait_flushed(0)
    assert open_line(replies).take() == [b"a1", b"a2"]


def test_control_messages_never_reach_another_stream_than_their_own(replies: Replies) -> None:
    old = open_line(replies)
    old.put_control(b"old heartbeat")
    old.close()
    old.put_control(b"after the end")
    new = open_line(replies)
    old.put_control(b"after the next began")
    new.put_control(b"register")
    assert new.take() == [b"register"]


def test_closing_an_old_line_leaves_the_new_one_alone(replies: Replies) -> None:
    old = replies.open_line()
    new = open_line(replies)
    new.put_control(b"register")
    old.close()
    put(replies, b"answer")
    assert new.take() == [b"register", b"answer"]


def test_closing_wakes_the_sender_and_ends_it_for_good(replies: Replies) -> None:
    line = open_line(replies)
    sender = in_thread(line.take)
    asleep(line)
    line.close()
    line.close()
    assert sender.result(TIMEOUT) is None
    put(replies, b"answer")
    assert line.take() is None


def test_answers_wait_for_the_next_stream(replies: Replies) -> None:
    open_line(replies).close()
    put(replies, b"a1")
    assert open_line(replies).take() == [b"a1"]


def test_answers_that_may_not_have_left_go_out_again_before_the_others(replies: Replies) -> None:
    line = open_line(replies)
    put(replies, b"a1", b"a2")
    line.put_control(b"heartbeat")
    assert line.take() == [b"heartbeat", b"a1", b"a2"]
    put(replies, b"a3")
    line.close()
    assert open_line(replies).take() == [b"a1", b"a2", b"a3"]


def test_answers_that_left_shortly_before_a_break_go_out_again_first(replies: Replies) -> None:
    line = open_line(replies)
    put(replies, b"left")
    assert line.take() == [b"left"]
    line.nudge()
    line.take()
    assert replies.wait_flushed(0)
    put(replies, b"waits")
    line.close()
    assert open_line(replies).take() == [b"left", b"waits"]
    assert replies.replayed == 1


def test_answers_that_left_do_not_go_out_again_after_a_stream_that_ended_in_peace(
    replies: Replies,
) -> None:
    line = open_line(replies)
    put(replies, b"left")
    line.take()
    line.nudge()
    line.take()
    line.close(settled=True)
    line.close()
    put(replies, b"new")
    assert open_line(replies).take() == [b"new"]
    assert replies.replayed == 0


def test_a_quiet_line_forgets_what_left_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(clock, "with_suspend", lambda: now)
    replies = Replies(doubt=50.0)
    line = open_line(replies)
    put(replies, b"left")
    line.take()
    line.nudge()
    line.take()
    now += 50.0
    line.put_control(b"heartbeat")
    assert line.take() == [b"heartbeat"], "as its sender comes back from the one before"
    assert not line._sent.batches


def test_without_a_stream_the_oldest_answers_are_given_up_beyond_the_bound() -> None:
    replies = Replies(replay_bytes=10)
    put(replies, b"12345", b"67890", b"x")
    assert replies.undelivered == 1
    line = open_line(replies)
    assert line.take() == [b"67890", b"x"]
    put(replies, b"a longer one while there is a stream")
    assert replies.undelivered == 1


# A lone answer, around the sender


def put_alone(replies: Replies, message: bytes) -> None:
    replies.answer([answer(message, None)])


class Around:
    """A stream's ``send_now``; ``meanwhile`` runs in it."""

    def __init__(self, answer: bool = True) -> None:
        self.sent: list[bytes] = []
        self.answer = answer
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self, messages: list[bytes]) -> bool:
        self.meanwhile()
        if self.answer:
            self.sent += messages
        return self.answer


def test_a_lone_answer_leaves_in_the_thread_that_puts_it(replies: Replies) -> None:
    line, around = replies.open_line(), Around()
    let_answers_through(line, send_now=around)
    around.meanwhile = lambda: in_flight.append(replies.wait_flushed(0))
    in_flight: list[bool] = []
    put_alone(replies, b"a1")
    assert around.sent == [b"a1"]
    assert in_flight == [False]
    assert replies.wait_flushed(0)
    line.close()
    assert open_line(replies).take() == [b"a1"], "it left shortly before the break"


def test_a_lone_answer_wakes_no_sender(replies: Replies) -> None:
    line = replies.open_line()
    let_answers_through(line, send_now=Around())
    sender = in_thread(line.take)
    asleep(line)
    put_alone(replies, b"a1")
    assert line.parked
    line.close()
    assert sender.result(TIMEOUT) is None


def test_one_that_the_stream_cannot_send_at_once_wakes_the_sender(replies: Replies) -> None:
    line = replies.open_line()
    let_answers_through(line, send_now=Around(answer=False))
    sender = in_thread(line.take)
    asleep(line)
    put_alone(replies, b"a1")
    assert sender.result(TIMEOUT) == [b"a1"]


def test_one_that_is_too_large_for_a_message_leaves_in_chunks(replies: Replies) -> None:
    line, around = replies.open_line(), Around()
    let_answers_through(line, 1024, chunks=True, send_now=around)
    put_alone(replies, encode_response("encoded", bytes(2000)))
    replies.answer([LargeAnswer(encode_response("large", b""), None, bytes(2000))])
    chunks = []
    while line.outbound:
        chunks += line.take()
    assert around.sent == []
    assert all(len(chunk) <= 1024 for chunk in chunks)
    ids = [ConnectionMessage.FromString(chunk).response.request_id for chunk in chunks]
    assert ids == ["encoded", "large"] * 3


def test_whoever_waits_for_a_flush_wakes_when_a_lone_answer_has_left(replies: Replies) -> None:
    line, around = replies.open_line(), Around()
    let_answers_through(line, send_now=around)
    waits = signal_waits(replies.changed)
    waiters = []

    def wait_for_it() -> None:
        waiters.append(in_thread(replies.wait_flushed, TIMEOUT))
        assert waits.acquire(timeout=TIMEOUT)

    around.meanwhile = wait_for_it
    put_alone(replies, b"a1")
    assert waiters[0].result(TIMEOUT) is True


def test_it_is_queued_when_the_stream_cannot_send_it_at_once(replies: Replies) -> None:
    line = replies.open_line()
    let_answers_through(line, send_now=Around(answer=False))
    put_alone(replies, b"a1")
    assert line.take() == [b"a1"]


def test_it_is_queued_behind_what_waits_or_is_being_sent(replies: Replies) -> None:
    line, around = replies.open_line(), Around()
    let_answers_through(line, send_now=around)
    put(replies, b"a1")
    put_alone(replies, b"a2")
    assert line.take() == [b"a1", b"a2"]
    put_alone(replies, b"a3")
    assert line.take() == [b"a3"]
    line.nudge()
    line.take()
    around.meanwhile = lambda: put_alone(replies, b"a5")
    put_alone(replies, b"a4")
    assert around.sent == [b"a4"]
    assert line.take() == [b"a5"]


@pytest.mark.parametrize("sent", [True, False])
def test_one_whose_line_closes_meanwhile_goes_out_once_more(replies: Replies, sent: bool) -> None:
    line, around = replies.open_line(), Around(sent)
    let_answers_through(line, send_now=around)
    around.meanwhile = line.close
    put_alone(replies, b"a1")
    assert open_line(replies).take() == [b"a1"]


def test_one_that_leaves_in_part_is_the_senders_until_that_comes_back_for_more(
    replies: Replies,
) -> None:
    line, around = replies.open_line(), Around()
    let_answers_through(line, send_now=around)
    around.meanwhile = line.leave_to_sender
    put_alone(replies, b"a1")
    assert not replies.wait_flushed(0)
    assert line.take() == [], "the transport has it already"
    assert not replies.wait_flushed(0)
    line.nudge()
    line.take()
    assert replies.wait_flushed(0)
    line.close()
    assert open_line(replies).take() == [b"a1"], "once"


def test_one_that_the_sender_was_done_with_first_leaves_what_another_thread_reserved(
    replies: Replies,
) -> None:
    line, around = replies.open_line(), Around()
    let_answers_through(line, send_now=around)
    reserved: list[Line | None] = []

    def finish_and_be_overtaken() -> None:
        line.leave_to_sender()
        for _ in range(2):  # it took the rest, and came back for more
            assert line.take() == []
            line.nudge()
        with replies.lock:
            reserved.append(replies.put([answer(b"another's", None)], alone=True))

    around.meanwhile = finish_and_be_overtaken
    put_alone(replies, b"a1")
    around.meanwhile = lambda: None
    assert reserved == [line]
    assert not replies.wait_flushed(0)
    replies.send_out(line)
    assert around.sent == [b"a1", b"another's"]
    assert replies.wait_flushed(0)


def test_during_a_hand_over_it_takes_the_ordinary_way(replies: Replies) -> None:
    old, around = replies.open_line(), Around()
    let_answers_through(old, send_now=around)
    new = open_line(replies)
    put_alone(replies, b"a1")
    assert around.sent == []
    assert (old.take(), new.take()) == ([b"a1"], [b"a1"])


def test_the_sender_of_a_closed_line_takes_nothing_away_from_the_next(replies: Replies) -> None:
    old = open_line(replies)
    put(replies, b"a1")
    assert old.take() == [b"a1"]
    old.close()
    assert old.take() is None
    assert open_line(replies).take() == [b"a1"]


def test_late_answers_leave_on_a_living_stream_and_are_dropped_at_a_new_one(
    replies: Replies,
) -> None:
    line = open_line(replies)
    late = clock.with_suspend() - 1
    put(replies, b"late", deadline=late)
    assert line.take() == [b"late"]
    line.nudge()
    assert line.take() == []
    put(replies, b"late", deadline=late)
    put(replies, b"in time", deadline=late + 1000)
    line.close()
    assert replies.undelivered == 0
    assert open_line(replies).take() == [b"in time"]
    assert replies.undelivered == 1


def test_without_a_stream_late_answers_are_as_good_as_gone(
    replies: Replies, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock.with_suspend()
    line = open_line(replies)
    put(replies, b"a1", b"a2", deadline=now + 100)
    line.close()
    assert not replies.wait_flushed(0)
    slept: list[float] = []
    monkeypatch.setattr(replies.changed, "wait", slept.append)
    with replies.lock, replies.awaiting():
        replies.sleep(1000.0, for_traffic=True)
        replies.sleep(1000.0, for_traffic=False)
    assert slept == [pytest.approx(100, abs=TIMEOUT), 1000.0]
    monkeypatch.setattr(clock, "with_suspend", lambda: now + 101)
    assert replies.wait_flushed(0), "there is nothing to stay for any more"
    with replies.lock, replies.awaiting():
        replies.sleep(1000.0, for_traffic=True)
        assert slept[2:] == [], "whoever asked a moment ago was told that there is"
        assert replies.undelivered == 2
        replies.sleep(1000.0, for_traffic=True)
    assert slept[2:] == [1000.0], "not again and again"


def test_an_answer_that_went_to_two_streams_is_undelivered_once(replies: Replies) -> None:
    lines = open_line(replies), open_line(replies)
    put(replies, b"on both")
    put(replies, b"left on one", deadline=clock.with_suspend() + 100)
    assert lines[0].take() == [b"on both", b"left on one"]
    lines[1].close()
    lines[0].close()
    replies.close()
    assert replies.undelivered == 2, "nobody knows whether they have left"


def test_what_a_settled_stream_took_last_is_not_undelivered(replies: Replies) -> None:
    line = replies.open_line()
    let_answers_through(line, 1024, chunks=True)
    queue(replies, LargeAnswer(encode_response("large", b""), None, bytes(2000)))
    assert (len(line.take()), len(line.take())) == (1, 1)
    put(replies, b"a1")
    assert len(line.take()) == 2, "and has not come back yet"
    line.close(settled=True)
    replies.close()
    assert replies.undelivered == 0


def test_what_left_once_is_not_undelivered_when_no_stream_follows(replies: Replies) -> None:
    line = open_line(replies)
    put(replies, b"left", b"left too", deadline=clock.with_suspend() + 100)
    line.take()
    line.nudge()
    assert line.take() == []
    put(replies, b"waits", deadline=clock.with_suspend() + 100)
    line.close()
    put(replies, b"waits, with no deadline")
    replies.close()
    assert replies.undelivered == 2
    put(replies, b"comes too late")
    assert replies.undelivered == 3
    assert replies.wait_flushed(0)


# When the last control message left


def test_a_control_message_has_left_when_the_sender_comes_back_for_more(
    replies: Replies, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(clock, "with_suspend", lambda: now)
    line = open_line(replies)
    line.put_control(b"register")
    line.take()
    assert line.control_left_at is None
    put(replies, b"answer")
    line.take()
    assert line.control_left_at == 1000.0
    now = 1001.0
    line.nudge()
    line.take()
    assert line.control_left_at == 1000.0, "an answer is no heartbeat"
    line.put_control(b"probe", is_sign_of_life=False)
    assert line.take() == [b"probe"]
    line.nudge()
    line.take()
    assert line.control_left_at == 1000.0, "a probe is no heartbeat"
    line.put_control(b"heartbeat")
    line.put_control(b"probe", is_sign_of_life=False)
    line.take()
    line.nudge()
    line.take()
    assert line.control_left_at == 1001.0


# Flushing


def test_an_empty_replies_is_flushed_with_and_without_a_stream(replies: Replies) -> None:
    assert replies.wait_flushed(0)
    open_line(replies)
    assert replies.wait_flushed(0)


def test_it_is_flushed_when_the_sender_comes_back_for_more(replies: Replies) -> None:
    line = open_line(replies)
    put(replies, b"answer")
    assert not replies.wait_flushed(0)
    line.take()
    assert not replies.wait_flushed(0), "it was taken, and may not have left"
    waits = signal_waits(replies.changed)
    waiter = in_thread(replies.wait_flushed, TIMEOUT)
    assert waits.acquire(timeout=TIMEOUT)
    sender = in_thread(line.take)
    assert waiter.result(TIMEOUT) is True
    line.close()
    assert sender.result(TIMEOUT) is None


def test_what_waits_for_the_next_stream_is_not_flushed(replies: Replies) -> None:
    line = open_line(replies)
    put(replies, b"answer")
    line.take()
    line.close()
    assert not replies.wait_flushed(0)


def test_nobody_waits_for_a_flush_once_no_stream_will_follow(replies: Replies) -> None:
    put(replies, b"answer")
    waits = signal_waits(replies.changed)
    waiter = in_thread(replies.wait_flushed, TIMEOUT)
    assert waits.acquire(timeout=TIMEOUT)
    replies.close()
    assert waiter.result(TIMEOUT) is True


# Room


def test_there_is_room_until_more_than_sixteen_mebibytes_wait(replies: Replies) -> None:
    line = open_line(replies)
    put(replies, b"x" * ROOM)
    assert not line.blocked
    line.wait_for_room()
    put(replies, b"y")
    assert line.blocked


@pytest.mark.parametrize("relief", ["the sender takes", "the line closes"])
def test_whoever_waits_for_room_wakes_when(replies: Replies, relief: str) -> None:
    line = open_line(replies)
    put(replies, b"x" * (ROOM + 1))
    waits = signal_waits(replies.changed)
    reader = in_thread(line.wait_for_room)
    assert waits.acquire(timeout=TIMEOUT)
    assert not reader.done()
    if relief == "the sender takes":
        line.take()
    else:
        line.close()
    reader.result(TIMEOUT)


def test_answers_that_piled_up_do_not_keep_the_next_handshake_from_ending() -> None:
    replies = Replies(replay_bytes=2 * ROOM)
    put(replies, b"x" * (ROOM + 1))
    line = replies.open_line()
    line.wait_for_room()
    let_answers_through(line)
    assert line.blocked


def saturate(replies: Replies, saturated: bool) -> None:
    with replies.lock:
        replies.set_saturated(saturated)


def test_there_is_no_room_while_too_much_is_in_flight(replies: Replies) -> None:
    line = open_line(replies)
    saturate(replies, True)
    assert line.blocked
    waits = signal_waits(replies.changed)
    reader = in_thread(line.wait_for_room)
    assert waits.acquire(timeout=TIMEOUT)
    saturate(replies, False)
    reader.result(TIMEOUT)
    assert line.take() == [], "a transport's sender learns of it too"


def test_too_much_in_flight_does_not_keep_a_handshake_from_ending(replies: Replies) -> None:
    saturate(replies, True)
    line = replies.open_line()
    line.wait_for_room()
    let_answers_through(line)
    assert line.blocked, "and holds back what comes by it afterwards"
    line.withhold_answers()
    assert not line.blocked


def test_answers_that_have_left_do_not_let_in_what_too_much_in_flight_keeps_out(
    replies: Replies,
) -> None:
    line = open_line(replies)
    saturate(replies, True)
    put(replies, b"x" * (ROOM + 1))
    line.take()
    assert not line.outbound
    assert line.blocked
    saturate(replies, False)
    assert not line.blocked


# Everything at once


def test_no_answer_is_lost_or_out_of_order_while_streams_break() -> None:
    replies = Replies(doubt=0.0)
    each, producers = 500, 4
    dice = random.Random(7)
    lines: list[Line] = []
    taken = threading.Semaphore(0)
    arrived: dict[bytes, None] = {}

    def produce(producer: int) -> None:
        for number in range(each):
            put(replies, b"%d %d" % (producer, number))

    def break_lines() -> None:
        while len(arrived) < each * producers:
            taken.acquire(timeout=TIMEOUT)
            lines[-1].close()

    # Batches that left wholly arrived, in this test: nothing is in doubt.
    helpers = [in_thread(produce, producer) for producer in range(producers)]
    lines.append(open_line(replies))
    helpers.append(in_thread(break_lines))
    while len(arrived) < each * producers:
        batch = lines[-1].take()
        if batch is None:
            lines.append(open_line(replies))
            continue
        breaks = dice.random() < 0.5
        sent = dice.randrange(len(batch)) if breaks else len(batch)
        arrived.update(dict.fromkeys(batch[:sent]))
        if breaks:
            lines[-1].close()
        taken.release()
    for helper in helpers:
        helper.result(TIMEOUT)
    for producer in range(producers):
        mark = b"%d " % producer
        assert [message for message in arrived if message.startswith(mark)] == [
            b"%d %d" % (producer, number) for number in range(each)
        ]
