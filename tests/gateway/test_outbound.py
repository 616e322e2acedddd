from __future__ import annotations

import asyncio

import pytest

from revconn.gateway.limits import Limits
from revconn.gateway.routes import Outbound


def make(**limits: int) -> Outbound:
    return Outbound(Limits(**limits))


def drain(outbound: Outbound) -> list[bytes]:
    """Everything that waits, as a writer would get it."""

    async def scenario() -> list[bytes]:
        outbound.close()
        taken = []
        while (data := await outbound.next()) is not None:
            taken.append(data)
        return taken

    return asyncio.run(scenario())


def test_messages_leave_in_order_and_events_after_them() -> None:
    outbound = make()
    outbound.put_event(b"event")
    outbound.put(b"1")
    outbound.put(b"2")
    assert drain(outbound) == [b"1", b"2", b"event"]


def test_a_message_that_is_withdrawn_does_not_leave() -> None:
    outbound = make(max_queued_bytes=3)
    outbound.put(b"1")
    withdrawn = outbound.put(b"22")
    assert outbound.is_full
    outbound.withdraw(withdrawn)
    outbound.withdraw(withdrawn)
    assert not outbound.is_full
    assert drain(outbound) == [b"1"]


def test_what_is_withdrawn_by_the_thousand_leaves_nothing_behind() -> None:
    outbound = make()
    first = outbound.put(b"first")
    for number in range(10_000):
        outbound.withdraw(outbound.put(b"%d" % number))
    assert len(outbound._messages) < 200
    assert first.data == b"first"
    assert drain(outbound) == [b"first"]


def test_a_message_that_left_cannot_be_withdrawn() -> None:
    outbound = make()
    left = outbound.put(b"1")
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
def test_a_writer_that_waits_is_woken(put) -> None:
    async def scenario() -> bytes | None:
        outbound = make()
        writer = asyncio.ensure_future(outbound.next())
        await asyncio.sleep(0)
        put(outbound, b"1")
        put(outbound, b"2")
        return await writer

    assert asyncio.run(scenario()) == b"1"


@pytest.mark.parametrize("relief", ["the writer takes some", "they are withdrawn", "it is closed"])
def test_who_waits_for_room_is_let_go(relief) -> None:
    async def scenario() -> None:
        outbound = make(max_pending_per_connection=100)
        waiting = [outbound.put(b"x") for _ in range(201)]
        rooms = [asyncio.ensure_future(outbound.room()) for _ in range(2)]
        await asyncio.sleep(0)
        assert outbound.is_crowded
        assert not any(room.done() for room in rooms)
        if relief == "the writer takes some":
            await outbound.next()
        elif relief == "they are withdrawn":
            for each in waiting:
                outbound.withdraw(each)
        else:
            outbound.close()
        await asyncio.wait_for(asyncio.gather(*rooms), 10)

    asyncio.run(scenario())
