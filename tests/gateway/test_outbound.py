from __future__ import annotations

import pytest

from revconn.core.rope import Data
from revconn.gateway.limits import Limits
from revconn.gateway.outbound import STALL_AFTER, Outbound


def make(**limits: int) -> Outbound:
    return Outbound(Limits(**limits))


def drain(outbound: Outbound) -> list[Data]:
    """Everything that waits, as the stream would get it, one by one."""
    outbound.close()
    taken = []
    while outbound.has_more:
        taken += outbound.take(1)
    return taken


def test_messages_leave_in_order_and_events_after_them() -> None:
    outbound = make()
    outbound.put_event(b"event")
    outbound.put(b"1")
    outbound.put(b"2")
    assert drain(outbound) == [b"1", b"2", b"event"]


def test_a_message_that_is_withdrawn_does_not_leave() -> None:
    outbound = make(max_queued_bytes=3)
    outbound.put(b"1")
    withdrawn = outbound.put_request(b"22")
    assert outbound.is_full
    outbound.withdraw(withdrawn)
    outbound.withdraw(withdrawn)
    assert not outbound.is_full
    assert drain(outbound) == [b"1"]


def test_what_is_withdrawn_by_the_thousand_leaves_nothing_behind() -> None:
    outbound = make()
    first = outbound.put_request(b"first")
    for number in range(10_000):
        outbound.withdraw(outbound.put_request(b"%d" % number))
    assert len(outbound._messages) < 200
    assert first.data == b"first"
    assert drain(outbound) == [b"first"]


def test_a_message_that_left_cannot_be_withdrawn() -> None:
    outbound = make()
    left = outbound.put_request(b"1")
    outbound.put(b"2")
    assert drain(outbound) == [b"1", b"2"]
    assert left.data is None
    outbound.withdraw(left)


def test_the_oldest_events_make_room_for_the_newest() -> None:
    outbound = make(max_queued_events=2)
    assert [outbound.put_event(b"%d" % number) for number in range(4)] == [0, 0, 1, 1]
    assert drain(outbound) == [b"2", b"3"]


def test_events_are_bounded_in_bytes_and_do_not_count_as_messages() -> None:
    outbound = make(max_queued_bytes=5)
    assert outbound.put_event(b"123") == 0
    assert outbound.put_event(b"456") == 1
    assert outbound.put_event(b"too large") == 2
    assert not outbound.is_full
    assert drain(outbound) == []


def test_a_closed_one_takes_nothing_more_and_a_discarded_one_gives_nothing() -> None:
    outbound = make()
    outbound.put(b"1")
    outbound.close()
    outbound.put(b"2")
    assert outbound.put_event(b"3") == 0
    assert drain(outbound) == [b"1"]
    discarded = make()
    discarded.put(b"1")
    discarded.discard()
    assert drain(discarded) == []


@pytest.mark.parametrize("put", [Outbound.put, Outbound.put_event])
def test_a_stream_is_told_of_what_there_is_to_take(put) -> None:
    outbound, seen = make(), []
    outbound.on_put = lambda: seen.extend(outbound.take(1))
    put(outbound, b"1")
    put(outbound, b"2")
    assert seen == [b"1", b"2"]
    assert not outbound.has_more


def test_as_much_is_taken_as_there_is_room_for_but_one_message_at_least() -> None:
    outbound = make()
    for data in (b"12345", b"6", b"7", b"89"):
        outbound.put(data)
    outbound.put_event(b"event")
    assert outbound.take(0) == []
    assert outbound.take(3) == [b"12345"]
    assert outbound.take(3) == [b"6", b"7", b"89"]
    assert outbound.has_more
    assert outbound.take(100) == [b"event"]
    assert not outbound.has_more
    assert outbound.take(100) == []


@pytest.mark.parametrize("relief", ["some are taken", "they are withdrawn"])
def test_its_stream_is_told_when_it_is_not_crowded_any_more(relief) -> None:
    outbound = make(max_pending_per_connection=100)
    waiting = [outbound.put_request(b"x") for _ in range(201)]
    assert outbound.is_crowded
    told: list[bool] = []
    outbound.on_put = lambda: told.append(outbound.is_crowded)
    if relief == "some are taken":
        assert len(outbound.take(1)) == 1
    else:
        for each in waiting:
            outbound.withdraw(each)
        assert told[-1] is False
    assert not outbound.is_crowded


def test_it_stalls_when_nothing_moves_and_no_longer_when_something_does() -> None:
    outbound = make()
    outbound.note_progress(10.0, moved=True)
    outbound.note_progress(10.9, moved=False)
    assert not outbound.is_stalled(10.0 + STALL_AFTER)
    assert outbound.is_ready(10.0 + STALL_AFTER)
    assert outbound.is_stalled(10.1 + STALL_AFTER)
    assert not outbound.is_ready(10.1 + STALL_AFTER)
    outbound.note_progress(11.5, moved=True)
    assert not outbound.is_stalled(11.5 + STALL_AFTER)
    outbound.note_progress(None, moved=False)
    assert not outbound.is_stalled(1e9)
