"""Frames with more messages than may be taken in one turn: the others are for a turn to come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.http2.frames import DATA, END_STREAM, PADDED, frame
from revconn.http2.streams import ErrorCode
from tests.http2.test_endpoint import Heard, Pair, pair
from tests.http2.test_large_frames import opened
from tests.support.scripted_http2 import message

MESSAGES = st.lists(
    st.sampled_from([0, 1, 30, 300, 20_000]).map(bytes) | st.binary(max_size=60),
    min_size=1,
    max_size=60,
)


def hear(line: Pair, data: bytes, turn: int) -> int:
    """Take that in, so much in each turn; how many turns it took."""
    turns = 0
    while data:
        turns += 1
        left = line.server.endpoint.receive(data, turn)
        assert left != data
        data = left
    return turns


def begun(line: Pair) -> tuple[int, Heard]:
    stream_id, there = opened(line)
    line.server.endpoint.allow_frames(256 << 10)
    return stream_id, there


@given(
    MESSAGES,
    st.lists(st.tuples(st.integers(1, 70_000), st.none() | st.integers(0, 255)), max_size=4),
    st.integers(0, 200_000),
    st.integers(1, 9),
    st.booleans(),
)
def test_in_whatever_frames_reads_and_turns_they_come_all_messages_are_heard(
    messages: list[bytes],
    cuts: list[tuple[int, int | None]],
    read: int,
    turn: int,
    ended: bool,
) -> None:
    line = pair(stream_window=1 << 20)
    stream_id, there = begun(line)
    whole = b"".join(map(message, messages))
    said, spent = b"", 0
    for size, padding in [*cuts, (len(whole) + 1, None)]:
        part, whole = whole[:size], whole[size:]
        flags = END_STREAM if ended and not whole else 0
        if padding is not None and len(part) < 16_000:
            flags, part = flags | PADDED, bytes((padding,)) + part + bytes(padding)
        said += frame(DATA, flags, stream_id, part)
        spent += len(part)
        if not whole:
            break
    hear(line, said[:read], turn)
    hear(line, said[read:], turn)
    assert (there.messages, there.has_ended) == (messages, ended)
    assert line.server.endpoint.end_reason == there.broken == ""
    line.exchange()
    client, server = line.client.endpoint, line.server.endpoint
    assert client.send_window - spent == server.receive_window
    if not ended:
        assert client.streams[stream_id].send_window - spent == there.stream.receive_window


def test_as_many_are_taken_in_a_turn_as_may_be() -> None:
    line = pair()
    stream_id, there = begun(line)
    data = frame(DATA, 0, stream_id, message(bytes(40)) * 60)
    data = line.server.endpoint.receive(data, 8)
    assert len(there.messages) == 8
    data = line.server.endpoint.receive(data, 8)
    assert len(there.messages) == 16
    assert hear(line, data, 8) == 6
    assert there.messages == [bytes(40)] * 60


def test_a_frame_that_is_cut_is_divided_as_well() -> None:
    line = pair(stream_window=1 << 20)
    stream_id, there = begun(line)
    data = frame(DATA, 0, stream_id, message(b"small") * 6000)
    assert hear(line, data[:30_000], 8) > 100
    taken = len(there.messages)
    assert 2_900 < taken < 3_000
    assert hear(line, data[30_000:], 8) > 100
    assert there.messages == [b"small"] * 6000


@pytest.mark.parametrize("what", ["reset", "deaf", "lost"])
def test_what_is_left_of_one_is_nobodys_if_nobody_wants_it_any_more(what: str) -> None:
    line = pair()
    stream_id, there = begun(line)
    data = frame(DATA, 0, stream_id, message(b"small") * 60)
    data = line.server.endpoint.receive(data, 8)
    if what == "reset":
        there.stream.reset(ErrorCode.CANCEL)
    elif what == "deaf":
        there.stream.ignore()
    else:
        line.server.endpoint.lose("gone")
    hear(line, data, 8)
    assert len(there.messages) == 8


def test_more_padding_than_payload_is_no_frame() -> None:
    line = pair()
    stream_id, _ = begun(line)
    line.server.receive(frame(DATA, PADDED, stream_id, b"\xff" * 255))
    line.server.receive(frame(DATA, PADDED, stream_id, b"\xff" + bytes(255)))
    assert "more padding than payload" in line.server.endpoint.end_reason


def test_more_than_the_window_allows_is_noticed_in_one_that_is_divided() -> None:
    line = pair(stream_window=500)
    stream_id, there = begun(line)
    there.stream.hold()
    hear(line, frame(DATA, 0, stream_id, message(b"small") * 60), 8)
    assert "broke a rule" in there.broken
