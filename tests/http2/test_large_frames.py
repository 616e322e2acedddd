"""Messages of many frames, and frames that are larger than what is read at once."""

from __future__ import annotations

import pytest

from revconn.http2.frames import DATA, END_HEADERS, HEADERS, frame
from revconn.http2.streams import ErrorCode
from tests.http2.test_endpoint import Heard, Pair, pair
from tests.support.scripted_http2 import message

MIB = 1 << 20


def large() -> Pair:
    """Two sides, of which the client may send frames of 1 MiB."""
    line = pair(message_limit=MIB)
    line.server.endpoint.allow_frames(MIB)
    return line


def opened(line: Pair) -> tuple[int, Heard]:
    """A stream of the client's: its id, and what the server hears on it."""
    stream_id = line.client.open().stream.id
    line.exchange()
    return stream_id, line.server.heard[stream_id]


def data(stream_id: int, payload: bytes) -> bytes:
    return frame(DATA, 0, stream_id, payload)


def test_of_a_large_frame_that_is_cut_nothing_is_held() -> None:
    line = large()
    stream_id, there = opened(line)
    said = data(stream_id, message(b"small") + message(b"x" * 100_000))
    for start in range(0, len(said), 33_000):
        line.server.receive(said[start : start + 33_000])
        assert not line.server.endpoint._held
    assert there.messages == [b"small", b"x" * 100_000]


def test_frames_of_messages_that_take_turns_are_taken_together() -> None:
    line = large()
    calls = [opened(line) for _ in range(3)]
    sent = [message(bytes([number]) * 300_000) for number in range(3)]
    said = b"".join(
        data(stream_id, whole[start : start + 16_384])
        for start in range(0, len(sent[0]), 16_384)
        for (stream_id, _), whole in zip(calls, sent)
    )
    line.server.endpoint.receive(said)
    assert [there.messages for _, there in calls] == [[whole[5:]] for whole in sent]


def test_what_is_kept_of_a_read_of_many_streams_does_not_keep_all_of_it() -> None:
    line = large()
    (first, there), (second, _) = opened(line), opened(line)
    part = message(bytes(60_000))[:20_000]
    line.server.receive(data(first, part) + data(second, part))
    said = data(first, bytes(2_000)) + data(second, bytes(30_000))
    line.server.receive(said)
    assert there.stream._reader is not None
    assert all(len(each.obj) < 30_000 for each in there.stream._reader._pieces._parts)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("begun", [0, 60_000])
def test_a_stream_that_is_reset_amid_a_frame_takes_the_rest_with_it(begun: int) -> None:
    line = large()
    (stream_id, there), (other_id, other) = opened(line), opened(line)
    whole = message(bytes(120_000))
    if begun:
        line.server.receive(data(stream_id, whole[:begun]))
    last = data(stream_id, whole[begun:])
    line.server.receive(last[:20_000])
    there.stream.reset(ErrorCode.CANCEL)
    line.server.receive(last[20_000:] + data(other_id, message(b"after")))
    assert (there.messages, other.messages) == ([], [b"after"])
    assert not line.server.endpoint.is_ended


def test_a_frame_longer_than_was_allowed_ends_the_connection() -> None:
    line = large()
    stream_id, _ = opened(line)
    line.server.receive(data(stream_id, bytes(MIB + 1)))
    assert "longer than is allowed" in line.server.endpoint.end_reason


def test_headers_are_no_longer_than_ever_where_frames_may_be() -> None:
    line = large()
    line.server.receive(frame(HEADERS, END_HEADERS, 1, bytes(129 << 10)))
    assert "longer than is allowed" in line.server.endpoint.end_reason


@pytest.mark.parametrize("size", [40_000, 100])
def test_a_frame_of_data_amid_headers_ends_the_connection_also_if_it_is_cut(size: int) -> None:
    line = large()
    stream_id, _ = opened(line)
    whole = message(bytes(100_000))
    line.server.receive(data(stream_id, whole[:20_000]))
    line.server.receive(frame(HEADERS, 0, 3, b"\x82"))
    last = data(stream_id, whole[20_000 : 20_000 + size])
    line.server.receive(last[:60])
    line.server.receive(last[60:])
    assert "in the middle of headers" in line.server.endpoint.end_reason


def test_a_frame_whose_header_alone_has_come_asks_for_nothing() -> None:
    line = large()
    stream_id, there = opened(line)
    said = data(stream_id, message(bytes(100_000)))
    line.server.receive(said[:4])
    line.server.receive(said[4:9])
    assert line.server.wishes == []
    line.server.receive(said[9:])
    assert there.messages == [bytes(100_000)]


def test_more_than_content_length_said_breaks_a_stream_off() -> None:
    line = large()
    stream_id, there = opened(line)
    there.stream.content_left = 40_000
    whole = message(bytes(60_000))
    for start in range(0, 60_000, 16_000):
        line.server.receive(data(stream_id, whole[start : start + 16_000]))
    assert there.broken
    assert there.messages == []


def test_more_than_the_window_allows_in_a_frame_that_is_cut_resets_its_stream() -> None:
    line = pair(message_limit=MIB, stream_window=100_000)
    line.server.endpoint.allow_frames(MIB)
    line.server.gives_credit = False
    stream_id, there = opened(line)
    said = data(stream_id, message(bytes(200_000)))
    for start in range(0, len(said), 40_000):
        line.server.receive(said[start : start + 40_000])
    assert "broke a rule" in there.broken
    assert not line.server.endpoint.is_ended
