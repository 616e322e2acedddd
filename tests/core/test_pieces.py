from __future__ import annotations

import tracemalloc

import pytest
from hyperframe.frame import HeadersFrame
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.frames import DATA, FrameSplitter, data_header
from revconn.core.framing import MessageReader, frame
from revconn.core.pieces import Pieces
from tests.core.test_frames import SETTINGS

SIZES = st.sampled_from([0, 1, 7, 1000, 1024, 1025, 5000, 70_000])


@given(st.lists(st.tuples(SIZES, SIZES)))
def test_pieces_of_any_size_come_out_as_one_in_their_order(cuts: list[tuple[int, int]]) -> None:
    pieces = Pieces()
    expected = b""
    for number, (before, size) in enumerate(cuts):
        piece = bytes([number % 256]) * size
        pieces.add(b"x" * before + piece + b"y", before, before + size)
        expected += piece
    assert bool(pieces) == bool(cuts)
    assert pieces.size == len(expected)
    assert pieces.peek() == expected
    assert pieces.take() == expected
    assert (pieces.take(), pieces.size, bool(pieces)) == (b"", 0, False)


def test_small_pieces_run_together_but_not_without_end() -> None:
    pieces = Pieces()
    for _ in range(200):
        pieces.add(bytes(1000), 0, 1000)
    assert 2 <= len(pieces._parts) <= 4
    assert pieces.take() == bytes(200_000)


SEGMENTS = 12_000


def reader_fed(segment: int) -> None:
    reader, messages, data = MessageReader(SEGMENTS), [], b"x" * segment
    start = frame(bytes(SEGMENTS))[:5]
    reader.feed(start, 0, len(start), messages)
    for _ in range(SEGMENTS // segment):
        reader.feed(bytes(bytearray(data)), 0, segment, messages)  # a buffer of its own, as recv's
    assert len(messages[0]) == SEGMENTS


def splitter_fed(segment: int) -> None:
    splitter = FrameSplitter(SEGMENTS)
    list(splitter.feed(SETTINGS))
    header = HeadersFrame(1, bytes(SEGMENTS)).serialize()[:9]
    list(splitter.feed(header))
    for _ in range(SEGMENTS // segment):
        frames = list(splitter.feed(bytes(bytearray(segment))))
    assert len(frames) == 1


@pytest.mark.parametrize("fed", [reader_fed, splitter_fed])
@pytest.mark.parametrize("segment", [1, 10])
def test_tiny_segments_cost_about_as_much_memory_as_they_bring(fed, segment: int) -> None:
    tracemalloc.start()
    try:
        fed(segment)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * SEGMENTS


def test_the_data_of_a_frame_still_comes_out_as_it_arrives() -> None:
    splitter = FrameSplitter(SEGMENTS)
    list(splitter.feed(SETTINGS))
    pieces = list(splitter.feed(data_header(1000, 1) + b"ab")) + list(splitter.feed(b"c"))
    assert [(kind, buffer[start:end]) for kind, _, _, buffer, start, end in pieces] == [
        (DATA, b"ab"),
        (DATA, b"c"),
    ]
