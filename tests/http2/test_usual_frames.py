"""Frames just like the last one, as heartbeats are: they are not taken apart, and just as heard."""

from __future__ import annotations

import pytest

from revconn.http2.frames import DATA, frame
from revconn.http2.streams import ErrorCode
from tests.http2.test_endpoint import pair
from tests.http2.test_large_frames import data, opened
from tests.support.scripted_http2 import message


def test_frames_just_like_the_last_one_are_heard_as_it_was() -> None:
    line = pair()
    stream_id, there = opened(line)
    for number in range(5):
        line.server.receive(data(stream_id, message(b"beat %d" % number)))
    assert there.messages == [b"beat %d" % number for number in range(5)]
    assert line.server.endpoint._usual_size > 0


def test_their_bytes_count_for_the_windows_which_open_again() -> None:
    line = pair(stream_window=400)
    stream_id, there = opened(line)
    for _ in range(100):
        line.server.receive(data(stream_id, message(bytes(35))))
        line.exchange()
    assert len(there.messages) == 100
    assert line.client.endpoint.streams[stream_id].send_window > 200


def test_small_ones_are_worth_no_more_than_they_cost() -> None:
    line = pair()
    stream_id, _ = opened(line)
    line.server.receive(data(stream_id, message(bytes(200))))
    before = line.server.endpoint.cost
    for _ in range(10):
        line.server.receive(data(stream_id, message(bytes(200))))
    assert line.server.endpoint.cost == before


def test_more_of_them_than_the_window_allows_resets_the_stream() -> None:
    line = pair(stream_window=100)
    stream_id, there = opened(line)
    there.stream.hold()
    for _ in range(3):
        line.server.receive(data(stream_id, message(bytes(35))))
    assert "broke a rule" in there.broken


@pytest.mark.parametrize("what", ["half", "deaf", "reset", "headers", "cut", "message"])
def test_in_the_middle_of_something_else_they_are_what_they_are(what: str) -> None:
    line = pair()
    (stream_id, there), (other_id, other) = opened(line), opened(line)
    beat = data(stream_id, message(bytes(30)))
    for _ in range(2):
        line.server.receive(beat)
    del there.messages[:]
    if what == "half":  # the first half of a frame that goes on with what looks like one
        line.server.receive(frame(DATA, 0, other_id, message(beat))[:14])
        line.server.receive(beat)
        assert (there.messages, other.messages) == ([], [beat])
    elif what == "deaf":
        there.stream.ignore()
        line.server.receive(beat)
        assert there.messages == []
    elif what == "reset":
        there.stream.reset(ErrorCode.CANCEL)
        line.server.receive(beat)
        assert there.messages == []
        assert not line.server.endpoint.is_ended
    elif what == "headers":
        line.server.receive(frame(1, 0, 5, b"\x82"))
        line.server.receive(beat)
        assert "in the middle of headers" in line.server.endpoint.end_reason
    elif what == "cut":
        line.server.endpoint.allow_frames(1 << 20)
        whole = data(other_id, message(bytes(20_000) + beat))
        line.server.receive(whole[: -len(beat)])
        line.server.receive(whole[-len(beat) :])
        assert (there.messages, other.messages) == ([], [bytes(20_000) + beat])
    else:  # a message of that stream goes on with what looks like one
        whole = bytes(30) + message(bytes(30))
        line.server.receive(data(stream_id, message(whole)[:35]))
        line.server.receive(beat)
        assert there.messages == [whole]
