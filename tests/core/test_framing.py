from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import Iterator
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto import registry_pb2
from revconn.core.errors import ProtocolError, RevconnError
from revconn.core.framing import (
    PREFIX_BYTES,
    GzipInflater,
    MessageReader,
    frame,
    frame_all,
    is_framed,
    pack,
    unframe,
)
from tests.support.texts import texts

LIMIT = 1000
MIB = 1 << 20


@given(st.binary())
def test_a_framed_message_comes_back_whole(message: bytes) -> None:
    framed = frame(message)
    assert is_framed(framed)
    assert len(framed) == PREFIX_BYTES + len(message)
    assert unframe(framed) == message


def test_the_prefix_is_a_zero_flag_and_a_big_endian_length() -> None:
    assert frame(b"x" * 0x0102) == b"\x00\x00\x00\x01\x02" + b"x" * 0x0102


@given(texts(), texts())
def test_a_bare_protobuf_message_is_never_taken_for_a_framed_one(key: str, address: str) -> None:
    message = registry_pb2.RegisterRequest(api_key=key, address=address)
    assert not is_framed(message.SerializeToString())


def flagged(message: bytes) -> bytes:
    """With the prefix of a compressed message."""
    return b"\x01" + frame(message)[1:]


LOOKALIKES = st.one_of(
    st.binary(max_size=20),
    st.builds(bytes.__add__, st.sampled_from([b"\0", b"\x01", b"\0\0\0\0"]), st.binary(max_size=9)),
    st.binary(max_size=20).map(frame),
    st.binary(max_size=20).map(frame).map(frame),
    st.binary(max_size=20).map(flagged),
)
"""Messages of any bytes, most of which begin as a prefix does."""


@given(LOOKALIKES, st.booleans())
def test_whatever_the_bytes_a_packed_message_is_read_back(message: bytes, framed: bool) -> None:
    payload = pack(message, framed=framed)
    assert (unframe(payload) if is_framed(payload) else payload) == message
    assert payload in (message, frame(message))
    assert not framed or payload == frame(message)


@pytest.mark.parametrize(
    "message",
    [b"", b"\0", b"\x01", b"\0\0\0\0", b"\0\0\0\0\x01", b"\0\0\0\0\x01ab", b"\x02\0\0\0\x01a"],
)
def test_what_is_not_exactly_a_prefix_and_its_message_is_bare(message: bytes) -> None:
    assert not is_framed(message)
    assert pack(message) == message


@pytest.mark.parametrize("encoding", ["", "identity", "snappy" * 100])
def test_a_compressed_message_of_another_encoding_is_refused_with_the_remedy(encoding: str) -> None:
    assert is_framed(flagged(b"x"))
    with pytest.raises(ProtocolError, match="use gzip, or send it uncompressed") as caught:
        unframe(flagged(b"x"), encoding)
    assert len(str(caught.value)) < 200


def test_a_gzip_message_is_inflated_as_far_as_the_limit_goes() -> None:
    payload = flagged(gzip.compress(b"x" * LIMIT))
    assert unframe(payload, "gzip", LIMIT) == b"x" * LIMIT
    with pytest.raises(ProtocolError, match="more than 999 bytes"):
        unframe(payload, "gzip", LIMIT - 1)


def test_a_protocol_error_says_which_rule_was_broken_and_what_came() -> None:
    error = ProtocolError("CONNECTED without an id", "status")
    assert isinstance(error, RevconnError)
    assert str(error) == "CONNECTED without an id (received status)"
    assert (error.reason, error.received) == ("CONNECTED without an id", "status")
    assert str(ProtocolError("silence")) == "silence"


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


# Compression


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
    reader = MessageReader(LIMIT, GzipInflater(LIMIT))
    received = []
    for piece in pieces(stream, sizes):
        received += read(reader, piece)
    assert received == [data for _, data in messages]


def test_a_message_that_inflates_beyond_the_limit_is_refused() -> None:
    assert GzipInflater(LIMIT)(gzip.compress(b"x" * LIMIT)) == b"x" * LIMIT
    with pytest.raises(ProtocolError, match="more than 1,000 bytes"):
        GzipInflater(LIMIT)(gzip.compress(b"x" * (LIMIT + 1)))


def test_a_bomb_is_refused_before_it_is_inflated() -> None:
    bomb = gzip.compress(bytes(30 * MIB))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="more than"):
            GzipInflater(MIB)(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * MIB


def test_many_messages_together_inflate_no_further_than_one() -> None:
    inflate = GzipInflater(LIMIT)
    for _ in range(4):
        inflate(gzip.compress(b"x" * (LIMIT // 4)))
    assert inflate(gzip.compress(b"")) == b""
    with pytest.raises(ProtocolError, match="more than 1,000 bytes"):
        inflate(gzip.compress(b"x"))
    inflate.renew()
    assert inflate(gzip.compress(b"x" * LIMIT)) == b"x" * LIMIT


def test_what_inflates_far_beyond_its_size_has_a_weight_and_text_has_none() -> None:
    inflate = GzipInflater(4 * MIB)
    inflate(gzip.compress(b"".join(b"%d" % number for number in range(100_000))))
    assert inflate.take_weight() == 0
    inflate(gzip.compress(bytes(MIB)))
    assert 14 <= inflate.take_weight() <= 16
    assert inflate.take_weight() == 0


@pytest.mark.parametrize(
    "broken",
    [gzip.compress(b"message")[:-1], gzip.compress(b"message") + b"more"],
    ids=["too short", "too long"],
)
def test_a_gzip_message_of_a_wrong_length_is_refused(broken: bytes) -> None:
    with pytest.raises(ProtocolError, match="cut short, or followed by more"):
        GzipInflater(LIMIT)(broken)


def test_what_is_no_gzip_is_refused() -> None:
    with pytest.raises(ProtocolError, match="does not inflate"):
        GzipInflater(LIMIT)(b"message")
