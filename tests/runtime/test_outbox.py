from __future__ import annotations

import random
import threading
from typing import Callable

import pytest

from revconn import clock
from revconn._proto.registry_pb2 import ConnectionMessage
from revconn.core.answers import encode_response
from revconn.core.large import LargeAnswer
from revconn.core.outbound import Answer
from revconn.runtime.outbox import Line, Outbox
from tests.support.threads import TIMEOUT, in_thread, signal_waits

MIB = 1 << 20
ROOM = 16 * MIB


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


def put(outbox: Outbox, *messages: bytes, deadline: float | None = None) -> None:
    outbox.put(Answer(message, deadline) for message in messages)


def open_line(outbox: Outbox) -> Line:
    """A line whose handshake is done."""
    line = outbox.open_line()
    line.let_answers_through()
    return line


# What leaves, and when


def test_a_batch_is_everything_that_waits_control_messages_first(outbox: Outbox) -> None:
    line = open_line(outbox)
    put(outbox, b"a1", b"a2")
    line.put_control(b"heartbeat")
    line.put_control(b"goodbye")
    assert line.take() == [b"heartbeat", b"goodbye", b"a1", b"a2"]


def test_a_batch_of_answers_ends_at_a_mebibyte(outbox: Outbox) -> None:
    line = open_line(outbox)
    put(outbox, b"x" * MIB, b"y")
    line.put_control(b"heartbeat")
    assert line.take() == [b"heartbeat", b"x" * MIB]
    assert line.take() == [b"y"]


def test_a_batch_brings_one_chunk_of_what_is_large_behind_all_that_is_small(
    outbox: Outbox,
) -> None:
    line = outbox.open_line()
    line.let_answers_through(MIB, chunks=True)
    outbox.put([LargeAnswer(encode_response("large", b""), None, bytes(10 * MIB))])
    first = line.take()
    put(outbox, b"a1", b"a2")
    *small, second = line.take()
    assert small == [b"a1", b"a2"]
    assert [len(each) > MIB // 8 for each in (*first, second)] == [True, True]
    assert not outbox.wait_flushed(0)


def test_a_large_answer_that_may_not_have_left_waits_for_the_next_line(outbox: Outbox) -> None:
    line = outbox.open_line()
    line.let_answers_through(1024, chunks=True)
    outbox.put([LargeAnswer(encode_response("large", b""), None, bytes(2000))])
    chunks = [*line.take(), *line.take(), *line.take()]
    line.close()
    assert not outbox.wait_flushed(0)
    again = outbox.open_line()
    again.let_answers_through(1024, chunks=True)
    assert [*again.take(), *again.take(), *again.take()] == chunks
    outbox.nudge()
    assert again.take() == []
    assert outbox.wait_flushed(0)


def test_a_large_answer_that_was_withdrawn_is_waited_for_no_more(outbox: Outbox) -> None:
    line = outbox.open_line()
    line.let_answers_through(1024, chunks=True)
    outbox.put([LargeAnswer(encode_response("large", b""), None, bytes(5000))])
    line.take()
    outbox.withdraw(["large"])
    outbox.nudge()
    assert line.take() == []
    assert outbox.wait_flushed(0)


def test_too_many_large_answers_hold_back_the_peer_until_they_have_left(outbox: Outbox) -> None:
    line = outbox.open_line()
    line.let_answers_through(MIB, chunks=True)
    outbox.put([LargeAnswer(encode_response("a", b""), None, bytes(100 * MIB))])
    assert line.has_room(), "one may be large"
    outbox.put([LargeAnswer(encode_response("b", b""), None, bytes(100 * MIB))])
    assert not line.has_room()
    outbox.withdraw(["a"])
    assert line.has_room()


def test_before_the_handshake_is_done_only_control_messages_leave(outbox: Outbox) -> None:
    put(outbox, b"answer")
    line = outbox.open_line()
    line.put_control(b"register")
    assert line.take() == [b"register"]
    asleep = signal_waits(outbox._changed)
    sender = in_thread(line.take)
    assert asleep.acquire(timeout=TIMEOUT)
    line.let_answers_through()
    assert sender.result(TIMEOUT) == [b"answer"]


@pytest.mark.parametrize("kind", ["answer", "control"])
def test_a_sleeping_sender_wakes_for_what_is_queued(outbox: Outbox, kind: str) -> None:
    line = open_line(outbox)
    asleep = signal_waits(outbox._changed)
    sender = in_thread(line.take)
    assert asleep.acquire(timeout=TIMEOUT)
    if kind == "answer":
        put(outbox, b"new")
    else:
        line.put_control(b"new")
    assert sender.result(TIMEOUT) == [b"new"]


def test_a_nudge_wakes_the_sender_empty_handed_once(outbox: Outbox) -> None:
    line = open_line(outbox)
    asleep = signal_waits(outbox._changed)
    sender = in_thread(line.take)
    assert asleep.acquire(timeout=TIMEOUT)
    line.nudge()
    assert sender.result(TIMEOUT) == []
    put(outbox, b"answer")
    assert line.take() == [b"answer"]
    sender = in_thread(line.take)
    assert asleep.acquire(timeout=TIMEOUT)
    line.close()
    assert sender.result(TIMEOUT) is None


def test_a_sender_that_cannot_send_yet_waits_for_a_nudge_and_takes_nothing(outbox: Outbox) -> None:
    line = open_line(outbox)
    put(outbox, b"answer")
    asleep = signal_waits(outbox._changed)
    sender = in_thread(line.wait)
    assert asleep.acquire(timeout=TIMEOUT)
    line.nudge()
    assert sender.result(TIMEOUT) is True
    assert line.take() == [b"answer"]
    sender = in_thread(line.wait)
    assert asleep.acquire(timeout=TIMEOUT), "one nudge wakes once"
    line.close()
    assert sender.result(TIMEOUT) is False


def test_a_nudge_without_a_stream_does_nothing(outbox: Outbox) -> None:
    outbox.nudge()
    line = outbox.open_line()
    line.put_control(b"register")
    assert line.take() == [b"register"]


def hand_over_large(outbox: Outbox, large: LargeAnswer) -> None:
    old = outbox.open_line()
    old.let_answers_through(1024, chunks=True)
    outbox.put([large])
    old.take()
    new = outbox.open_line()
    new.let_answers_through(1024)
    old.close()


def put_large(outbox: Outbox, large: LargeAnswer) -> None:
    outbox.open_line().let_answers_through(1024)
    outbox.put([large])


def hold_large(outbox: Outbox, large: LargeAnswer) -> None:
    outbox.put([large])
    outbox.open_line().let_answers_through(1024)


@pytest.mark.parametrize("happen", [put_large, hold_large, hand_over_large])
def test_an_answer_that_becomes_an_error_is_logged_without_the_lock(
    outbox: Outbox, caplog: pytest.LogCaptureFixture, happen: Callable[..., None]
) -> None:
    locked: list[bool] = []
    caplog.handler.addFilter(lambda _: locked.append(outbox._lock.locked()) or True)
    happen(outbox, LargeAnswer(encode_response("large", b""), None, bytes(2000)))
    assert locked == [False]
    assert "request_id='large': the answer was not sent: message of" in caplog.text


# One line after the other


def test_during_a_hand_over_answers_go_out_on_both_streams(outbox: Outbox) -> None:
    old = open_line(outbox)
    put(outbox, b"before")
    new = open_line(outbox)
    put(outbox, b"a1")
    assert old.take() == [b"before", b"a1"]
    assert new.take() == [b"a1"]


def test_until_its_handshake_is_done_a_second_stream_carries_no_answers(outbox: Outbox) -> None:
    old = open_line(outbox)
    new = outbox.open_line()
    put(outbox, b"a1")
    new.put_control(b"register")
    assert new.take() == [b"register"]
    assert old.take() == [b"a1"]


def test_what_a_stream_may_carry_no_longer_goes_out_on_the_other(outbox: Outbox) -> None:
    old = open_line(outbox)
    put(outbox, b"a1")
    new = open_line(outbox)
    old.put_control(b"goodbye")
    old.withhold_answers()
    put(outbox, b"a2")
    assert old.take() == [b"goodbye"]
    assert new.take() == [b"a1", b"a2"]


def test_a_large_answer_that_leaves_on_both_streams_does_not_begin_anew_on_the_second(
    outbox: Outbox,
) -> None:
    old, new = outbox.open_line(), outbox.open_line()
    old.let_answers_through(1024, chunks=True)
    new.let_answers_through(1024, chunks=True)
    outbox.put([LargeAnswer(encode_response("large", b""), None, bytes(2000))])
    chunks = [*old.take(), *new.take()][1:]
    old.close()  # with two of three chunks to go
    while new.outbound:
        chunks += new.take()
    indexes = [
        ConnectionMessage.FromString(chunk).response.response_stream_info.chunk_index
        for chunk in chunks
    ]
    assert indexes == [0, 1, 2]


def test_without_another_stream_what_is_withheld_waits_for_the_next(outbox: Outbox) -> None:
    old = open_line(outbox)
    put(outbox, b"a1")
    old.withhold_answers()
    put(outbox, b"a2")
    assert not outbox.wait_flushed(0)
    assert open_line(outbox).take() == [b"a1", b"a2"]


def test_control_messages_never_reach_another_stream_than_their_own(outbox: Outbox) -> None:
    old = open_line(outbox)
    old.put_control(b"old heartbeat")
    old.close()
    old.put_control(b"after the end")
    new = open_line(outbox)
    old.put_control(b"after the next began")
    new.put_control(b"register")
    assert new.take() == [b"register"]


def test_closing_an_old_line_leaves_the_new_one_alone(outbox: Outbox) -> None:
    old = outbox.open_line()
    new = open_line(outbox)
    new.put_control(b"register")
    old.close()
    put(outbox, b"answer")
    assert new.take() == [b"register", b"answer"]


def test_closing_wakes_the_sender_and_ends_it_for_good(outbox: Outbox) -> None:
    line = open_line(outbox)
    asleep = signal_waits(outbox._changed)
    sender = in_thread(line.take)
    assert asleep.acquire(timeout=TIMEOUT)
    line.close()
    line.close()
    assert sender.result(TIMEOUT) is None
    put(outbox, b"answer")
    assert line.take() is None


def test_answers_wait_for_the_next_stream(outbox: Outbox) -> None:
    open_line(outbox).close()
    put(outbox, b"a1")
    assert open_line(outbox).take() == [b"a1"]


def test_answers_that_may_not_have_left_go_out_again_before_the_others(outbox: Outbox) -> None:
    line = open_line(outbox)
    put(outbox, b"a1", b"a2")
    line.put_control(b"heartbeat")
    assert line.take() == [b"heartbeat", b"a1", b"a2"]
    put(outbox, b"a3")
    line.close()
    assert open_line(outbox).take() == [b"a1", b"a2", b"a3"]


def test_answers_that_left_shortly_before_a_break_go_out_again_first(outbox: Outbox) -> None:
    line = open_line(outbox)
    put(outbox, b"left")
    assert line.take() == [b"left"]
    line.nudge()
    line.take()
    assert outbox.wait_flushed(0)
    put(outbox, b"waits")
    line.close()
    assert open_line(outbox).take() == [b"left", b"waits"]
    assert outbox.replayed == 1


def test_answers_that_left_do_not_go_out_again_after_a_stream_that_ended_in_peace(
    outbox: Outbox,
) -> None:
    line = open_line(outbox)
    put(outbox, b"left")
    line.take()
    line.nudge()
    line.take()
    line.close(settled=True)
    line.close()
    put(outbox, b"new")
    assert open_line(outbox).take() == [b"new"]
    assert outbox.replayed == 0


def test_a_quiet_line_forgets_what_left_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(clock, "with_suspend", lambda: now)
    outbox = Outbox(doubt=50.0)
    line = open_line(outbox)
    put(outbox, b"left")
    line.take()
    line.nudge()
    line.take()
    now += 50.0
    line.put_control(b"heartbeat")
    assert not line._sent._batches


def test_without_a_stream_the_oldest_answers_are_given_up_beyond_the_bound() -> None:
    outbox = Outbox(replay_bytes=10)
    put(outbox, b"12345", b"67890", b"x")
    assert outbox.undelivered == 1
    line = open_line(outbox)
    assert line.take() == [b"67890", b"x"]
    put(outbox, b"a longer one while there is a stream")
    assert outbox.undelivered == 1


# A lone answer, around the sender


def put_alone(outbox: Outbox, message: bytes) -> None:
    outbox.put([Answer(message, None)], alone=True)


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


def test_a_lone_answer_leaves_in_the_thread_that_puts_it(outbox: Outbox) -> None:
    line, around = outbox.open_line(), Around()
    line.let_answers_through(send_now=around)
    around.meanwhile = lambda: in_flight.append(outbox.wait_flushed(0))
    in_flight: list[bool] = []
    put_alone(outbox, b"a1")
    assert around.sent == [b"a1"]
    assert in_flight == [False]
    assert outbox.wait_flushed(0)
    line.close()
    assert open_line(outbox).take() == [b"a1"], "it left shortly before the break"


def test_a_lone_answer_wakes_no_sender(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    line = outbox.open_line()
    line.let_answers_through(send_now=Around())
    woken: list[bool] = []
    monkeypatch.setattr(outbox._changed, "notify_all", lambda: woken.append(True))
    put_alone(outbox, b"a1")
    assert woken == []


def test_whoever_waits_for_a_flush_wakes_when_a_lone_answer_has_left(outbox: Outbox) -> None:
    line, around = outbox.open_line(), Around()
    line.let_answers_through(send_now=around)
    asleep = signal_waits(outbox._changed)
    waiters = []

    def wait_for_it() -> None:
        waiters.append(in_thread(outbox.wait_flushed, TIMEOUT))
        assert asleep.acquire(timeout=TIMEOUT)

    around.meanwhile = wait_for_it
    put_alone(outbox, b"a1")
    assert waiters[0].result(TIMEOUT) is True


def test_it_is_queued_when_the_stream_cannot_send_it_at_once(outbox: Outbox) -> None:
    line = outbox.open_line()
    line.let_answers_through(send_now=Around(answer=False))
    put_alone(outbox, b"a1")
    assert line.take() == [b"a1"]


def test_it_is_queued_behind_what_waits_or_is_being_sent(outbox: Outbox) -> None:
    line, around = outbox.open_line(), Around()
    line.let_answers_through(send_now=around)
    put(outbox, b"a1")
    put_alone(outbox, b"a2")
    assert line.take() == [b"a1", b"a2"]
    put_alone(outbox, b"a3")
    assert line.take() == [b"a3"]
    line.nudge()
    line.take()
    around.meanwhile = lambda: put_alone(outbox, b"a5")
    put_alone(outbox, b"a4")
    assert around.sent == [b"a4"]
    assert line.take() == [b"a5"]


@pytest.mark.parametrize("sent", [True, False])
def test_one_whose_line_closes_meanwhile_goes_out_once_more(outbox: Outbox, sent: bool) -> None:
    line, around = outbox.open_line(), Around(sent)
    line.let_answers_through(send_now=around)
    around.meanwhile = line.close
    put_alone(outbox, b"a1")
    assert open_line(outbox).take() == [b"a1"]


def test_one_that_leaves_in_part_is_the_senders_until_that_comes_back_for_more(
    outbox: Outbox,
) -> None:
    line, around = outbox.open_line(), Around()
    line.let_answers_through(send_now=around)
    around.meanwhile = line.leave_to_sender
    put_alone(outbox, b"a1")
    assert not outbox.wait_flushed(0)
    assert line.take() == [], "the transport has it already"
    assert not outbox.wait_flushed(0)
    line.nudge()
    line.take()
    assert outbox.wait_flushed(0)
    line.close()
    assert open_line(outbox).take() == [b"a1"], "once"


class TakenAway(list):
    """Lines, of which one ends right after they were counted."""

    def __len__(self) -> int:
        count = super().__len__()
        self.clear()
        return count


def test_a_line_that_ends_while_they_are_counted_is_no_error(outbox: Outbox) -> None:
    line, around = outbox.open_line(), Around()
    line.let_answers_through(send_now=around)
    outbox._lines = TakenAway(outbox._lines)
    put_alone(outbox, b"a1")
    assert around.sent == [b"a1"]


def test_during_a_hand_over_it_takes_the_ordinary_way(outbox: Outbox) -> None:
    old, around = outbox.open_line(), Around()
    old.let_answers_through(send_now=around)
    new = open_line(outbox)
    put_alone(outbox, b"a1")
    assert around.sent == []
    assert (old.take(), new.take()) == ([b"a1"], [b"a1"])


def test_the_sender_of_a_closed_line_takes_nothing_away_from_the_next(outbox: Outbox) -> None:
    old = open_line(outbox)
    put(outbox, b"a1")
    assert old.take() == [b"a1"]
    old.close()
    assert old.take() is None
    assert open_line(outbox).take() == [b"a1"]


def test_late_answers_leave_on_a_living_stream_and_are_dropped_at_a_new_one(
    outbox: Outbox,
) -> None:
    line = open_line(outbox)
    late = clock.with_suspend() - 1
    put(outbox, b"late", deadline=late)
    assert line.take() == [b"late"]
    line.nudge()
    assert line.take() == []
    put(outbox, b"late", deadline=late)
    put(outbox, b"in time", deadline=late + 1000)
    line.close()
    assert outbox.undelivered == 0
    assert open_line(outbox).take() == [b"in time"]
    assert outbox.undelivered == 1


# When the last control message left


def test_a_control_message_has_left_when_the_sender_comes_back_for_more(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(clock, "with_suspend", lambda: now)
    line = open_line(outbox)
    line.put_control(b"register")
    line.take()
    assert line.control_left_at is None
    put(outbox, b"answer")
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


def test_an_empty_outbox_is_flushed_with_and_without_a_stream(outbox: Outbox) -> None:
    assert outbox.wait_flushed(0)
    open_line(outbox)
    assert outbox.wait_flushed(0)


def test_it_is_flushed_when_the_sender_comes_back_for_more(outbox: Outbox) -> None:
    line = open_line(outbox)
    put(outbox, b"answer")
    assert not outbox.wait_flushed(0)
    line.take()
    assert not outbox.wait_flushed(0), "it was taken, and may not have left"
    asleep = signal_waits(outbox._changed)
    waiter = in_thread(outbox.wait_flushed, TIMEOUT)
    assert asleep.acquire(timeout=TIMEOUT)
    sender = in_thread(line.take)
    assert waiter.result(TIMEOUT) is True
    line.close()
    assert sender.result(TIMEOUT) is None


def test_what_waits_for_the_next_stream_is_not_flushed(outbox: Outbox) -> None:
    line = open_line(outbox)
    put(outbox, b"answer")
    line.take()
    line.close()
    assert not outbox.wait_flushed(0)


def test_nobody_waits_for_a_flush_once_no_stream_will_follow(outbox: Outbox) -> None:
    put(outbox, b"answer")
    asleep = signal_waits(outbox._changed)
    waiter = in_thread(outbox.wait_flushed, TIMEOUT)
    assert asleep.acquire(timeout=TIMEOUT)
    outbox.close()
    assert waiter.result(TIMEOUT) is True


# Room


def test_there_is_room_until_more_than_sixteen_mebibytes_wait(outbox: Outbox) -> None:
    line = open_line(outbox)
    put(outbox, b"x" * ROOM)
    assert line.has_room()
    line.wait_for_room()
    put(outbox, b"y")
    assert not line.has_room()


@pytest.mark.parametrize("relief", ["the sender takes", "the line closes"])
def test_whoever_waits_for_room_wakes_when(outbox: Outbox, relief: str) -> None:
    line = open_line(outbox)
    put(outbox, b"x" * (ROOM + 1))
    asleep = signal_waits(outbox._changed)
    reader = in_thread(line.wait_for_room)
    assert asleep.acquire(timeout=TIMEOUT)
    assert not reader.done()
    if relief == "the sender takes":
        line.take()
    else:
        line.close()
    reader.result(TIMEOUT)


def test_answers_that_piled_up_do_not_keep_the_next_handshake_from_ending() -> None:
    outbox = Outbox(replay_bytes=2 * ROOM)
    put(outbox, b"x" * (ROOM + 1))
    line = outbox.open_line()
    line.wait_for_room()
    line.let_answers_through()
    assert not line.has_room()


def test_there_is_no_room_while_too_much_is_in_flight(outbox: Outbox) -> None:
    saturated = True
    outbox = Outbox(lambda: saturated)
    line = open_line(outbox)
    assert not line.has_room()
    asleep = signal_waits(outbox._changed)
    reader = in_thread(line.wait_for_room)
    assert asleep.acquire(timeout=TIMEOUT)
    saturated = False
    outbox.nudge()
    reader.result(TIMEOUT)
    assert line.take() == [], "a transport's sender learns of it too"


# Everything at once


def test_no_answer_is_lost_or_out_of_order_while_streams_break() -> None:
    outbox = Outbox(doubt=0.0)
    each, producers = 500, 4
    dice = random.Random(7)
    lines: list[Line] = []
    taken = threading.Semaphore(0)
    arrived: dict[bytes, None] = {}

    def produce(producer: int) -> None:
        for number in range(each):
            put(outbox, b"%d %d" % (producer, number))

    def break_lines() -> None:
        while len(arrived) < each * producers:
            taken.acquire(timeout=TIMEOUT)
            lines[-1].close()

    # Batches that left wholly arrived, in this test: nothing is in doubt.
    helpers = [in_thread(produce, producer) for producer in range(producers)]
    lines.append(open_line(outbox))
    helpers.append(in_thread(break_lines))
    while len(arrived) < each * producers:
        batch = lines[-1].take()
        if batch is None:
            lines.append(open_line(outbox))
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
