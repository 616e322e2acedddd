from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import Iterator
from typing import Callable

import pytest
from hyperframe.frame import HeadersFrame
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.framing import PREFIX_BYTES, GzipInflater, frame
from revconn.core.status import ProtocolError
from revconn.http2.frames import DATA, FrameSplitter, data_header
from revconn.http2.grpc import MessageReader, Pieces, frame_all
from tests.http2.test_frames import SETTINGS

LIMIT = 1000
MIB = 1 << 20


# Streams of messages


def read(reader: MessageReader, data: bytes) -> list[bytes]:
    messages: list[bytes] = []
    reader.feed(data, 0, len(data), messages)
    return messages


def pieces(stream: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The stream cut into pieces of these sizes, and the rest."""
    for size in sizes:
        yield stream[:size]
        stream = stream[size:]
    yield stream


def flat(runs: list[memoryview]) -> bytes:
    return b"".join(runs)


@given(st.lists(st.binary(max_size=40), max_size=10), st.lists(st.integers(0, 50)))
def test_messages_come_out_whole_and_in_order_however_the_stream_is_cut(
    messages: list[bytes], sizes: list[int]
) -> None:
    reader = MessageReader(LIMIT)
    received = []
    for piece in pieces(b"".join(map(frame, messages)), sizes):
        received += read(reader, piece)
    assert received == messages
    assert not reader.mid_message


@given(st.binary(), st.binary(), st.lists(st.integers(1, 50)))
def test_only_the_part_of_a_buffer_that_is_named_is_read(
    before: bytes, after: bytes, sizes: list[int]
) -> None:
    messages: list[bytes] = []
    reader = MessageReader(LIMIT)
    for piece in pieces(frame(b"first") + frame(b"x" * 90), sizes):
        reader.feed(before + piece + after, len(before), len(before + piece), messages)
    assert messages == [b"first", b"x" * 90]


@pytest.mark.parametrize("size", [1, PREFIX_BYTES, PREFIX_BYTES + 3])
def test_a_stream_that_ends_inside_a_message_is_known_to(size: int) -> None:
    reader = MessageReader(LIMIT)
    assert read(reader, frame(b"first") + frame(b"second")[:size]) == [b"first"]
    assert reader.mid_message


def test_a_message_over_the_limit_is_refused_at_its_prefix() -> None:
    assert read(MessageReader(LIMIT), frame(b"x" * LIMIT)) == [b"x" * LIMIT]
    with pytest.raises(ProtocolError, match="message longer than 1,000 bytes") as caught:
        read(MessageReader(LIMIT), frame(b"x" * (LIMIT + 1))[:PREFIX_BYTES])
    assert caught.value.received == "1,001"


def test_a_flag_that_grpc_does_not_know_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no gRPC message prefix") as caught:
        read(MessageReader(LIMIT), b"\x02\x00\x00\x00\x00")
    assert caught.value.received == "flag byte 0x02"


def test_what_came_before_an_error_is_not_lost() -> None:
    messages: list[bytes] = []
    data = frame(b"good") + b"\x02\x00\x00\x00\x00"
    with pytest.raises(ProtocolError):
        MessageReader(LIMIT).feed(data, 0, len(data), messages)
    assert messages == [b"good"]


@given(st.lists(st.sampled_from([0, 1, 100, 5_000, 20_000]), max_size=8))
def test_messages_to_send_are_framed_in_few_runs_and_large_ones_not_copied(
    sizes: list[int],
) -> None:
    messages = [bytes(size) for size in sizes]
    runs = frame_all(messages)
    assert flat(runs) == b"".join(map(frame, messages))
    large = [message for message in messages if len(message) >= 16 << 10]
    assert [run.obj for run in runs if any(run.obj is message for message in large)] == large
    assert len(runs) <= 2 * len(large) + 1
    assert all(run for run in runs)


def seconds_for(body: Callable[[], object]) -> float:
    """The thread's time for it: the least of a few, since a machine does other things too."""
    times = []
    for _ in range(4):
        started = time.thread_time()
        body()
        times.append(time.thread_time() - started)
    return min(times)


def test_a_message_64_times_as_large_takes_about_64_times_as_long() -> None:
    def read_in_frames(size: int) -> None:
        reader, framed, piece = MessageReader(size), frame(bytes(size)), 16 << 10
        messages: list[bytes] = []
        for start in range(0, len(framed), piece):
            reader.feed(framed, start, min(start + piece, len(framed)), messages)
        assert len(messages[0]) == size

    small = seconds_for(lambda: [read_in_frames(MIB // 4) for _ in range(8)]) / 8
    large = seconds_for(lambda: read_in_frames(16 * MIB))
    # A quadratic reader takes 64 times as much again, a processor's cache a few times.
    assert large < 64 * small * 16


def compressed(data: bytes) -> bytes:
    return b"\x01" + frame(data)[1:]


def test_a_compressed_message_that_no_encoding_announced_is_refused() -> None:
    with pytest.raises(ProtocolError, match="without grpc-encoding"):
        read(MessageReader(LIMIT), compressed(gzip.compress(b"x")))


@given(
    st.lists(st.tuples(st.booleans(), st.binary(max_size=100)), max_size=8),
    st.lists(st.integers(0, 50)),
)
def test_compressed_and_plain_messages_mix_on_a_stream(
    messages: list[tuple[bool, bytes]], sizes: list[int]
) -> None:
    stream = b"".join(
        compressed(gzip.compress(data)) if zipped else frame(data) for zipped, data in messages
    )
    reader = MessageReader(LIMIT)
    reader.inflate_with(GzipInflater(LIMIT))
    received = []
    for piece in pieces(stream, sizes):
        received += read(reader, piece)
    assert received == [data for _, data in messages]


# Pieces


SIZES = st.sampled_from([0, 1, 7, 1000, 1024, 1025, 5000, 70_000])


@given(st.lists(st.tuples(SIZES, SIZES)))
def test_pieces_of_any_size_come_out_as_one_in_their_order(cuts: list[tuple[int, int]]) -> None:
    pieces = Pieces()
    expected = b""
    for number, (before, size) in enumerate(cuts):
        piece = bytes([number % 256]) * size
        view = memoryview(b"x" * before + piece + b"y")[before : before + size]
        assert pieces.extend([view]) == size
        expected += piece
    assert bool(pieces) == bool(expected)
    assert bytes(pieces.take()) == expected
    assert (pieces.take(), bool(pieces)) == (b"", False)


def test_small_pieces_run_together_but_not_without_end() -> None:
    pieces = Pieces()
    for _ in range(200):
        pieces.extend([memoryview(bytes(1000))])
    assert 2 <= len(pieces._parts) <= 4
    assert bytes(pieces.take()) == bytes(200_000)


SEGMENTS = 40_000  # what a test before leaves to be collected is small beside it


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


@pytest.mark.costly
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
