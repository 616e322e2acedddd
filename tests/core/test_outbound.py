from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from revconn.core.outbound import Answer, Outbound

NOW = 1000.0
MESSAGES = st.lists(st.binary(max_size=20), max_size=20)


def answer(message: bytes, deadline: float | None = None) -> Answer:
    return Answer(message, deadline)


def holding(*answers: Answer) -> Outbound:
    outbound = Outbound()
    for each in answers:
        outbound.put(each)
    return outbound


def taken(outbound: Outbound, enough_bytes: int = 1 << 20) -> list[bytes]:
    return [each.message for each in outbound.take_answers(enough_bytes)]


def test_control_messages_are_taken_apart_from_answers_each_in_the_order_of_arrival() -> None:
    outbound = Outbound()
    outbound.put(answer(b"a1"))
    outbound.put_control(b"c1")
    outbound.put(answer(b"a2"))
    outbound.put_control(b"c2")
    assert len(outbound) == 4
    assert outbound.take_control() == [b"c1", b"c2"]
    assert outbound.take_control() == []
    assert taken(outbound) == [b"a1", b"a2"]
    assert not outbound


def test_a_batch_ends_with_the_answer_that_makes_it_large_enough() -> None:
    outbound = holding(answer(b"12345"), answer(b"6789"), answer(b"x"))
    assert taken(outbound, enough_bytes=6) == [b"12345", b"6789"]
    assert taken(outbound, enough_bytes=6) == [b"x"]


def test_an_answer_larger_than_a_batch_travels_alone() -> None:
    outbound = holding(answer(b"x" * 100), answer(b"y"))
    assert taken(outbound, enough_bytes=10) == [b"x" * 100]


@given(MESSAGES, st.integers(min_value=1, max_value=50))
def test_taking_in_batches_loses_and_reorders_nothing(messages: list[bytes], enough: int) -> None:
    outbound = holding(*map(answer, messages))
    assert outbound.answer_bytes == sum(map(len, messages))
    arrived = []
    while outbound:
        arrived += taken(outbound, enough)
    assert arrived == messages
    assert outbound.answer_bytes == 0


@given(MESSAGES, st.integers(min_value=1, max_value=50))
def test_what_is_put_back_comes_out_again_first_and_in_order(
    messages: list[bytes], enough: int
) -> None:
    outbound = holding(*map(answer, messages))
    outbound.put_back(outbound.take_answers(enough))
    assert outbound.answer_bytes == sum(map(len, messages))
    assert taken(outbound, sum(map(len, messages)) + 1) == messages


def test_a_new_connection_starts_without_the_last_ones_control_messages() -> None:
    outbound = holding(answer(b"a"))
    outbound.put_control(b"old heartbeat")
    outbound.start_over(NOW)
    assert outbound.take_control() == []
    assert taken(outbound) == [b"a"]


def test_a_new_connection_drops_and_counts_answers_that_nobody_waits_for_any_more() -> None:
    outbound = holding(
        answer(b"late", NOW - 1),
        answer(b"in time", NOW + 1),
        answer(b"just late", NOW),
        answer(b"patient", None),
    )
    outbound.start_over(NOW)
    assert outbound.undelivered == 2
    assert outbound.answer_bytes == len(b"in time" + b"patient")
    assert taken(outbound) == [b"in time", b"patient"]


def test_on_a_living_connection_a_late_answer_is_still_sent() -> None:
    outbound = holding(answer(b"late", NOW - 1))
    assert taken(outbound) == [b"late"]
    assert outbound.undelivered == 0
