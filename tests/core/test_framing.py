from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto import registry_pb2
from revconn.core.errors import ProtocolError, RevconnError
from revconn.core.framing import (
    PREFIX_BYTES,
    MessageReader,
    frame,
    frame_all,
    gzip_inflater,
    is_framed,
    unframe,
)

LIMIT = 1000


@given(st.binary())
def test_a_framed_message_comes_back_whole(message: bytes) -> None:
    framed = frame(message)
    assert is_framed(framed)
    assert len(framed) == PREFIX_BYTES + len(message)
    assert unframe(framed) == message


def test_the_prefix_is_a_zero_flag_and_a_big_endian_length() -> None:
    assert frame(b"x" * 0x0102) == b"\x00\x00\x00\x01\x02" + b"x" * 0x0102


@given(st.text(), st.text())
def test_a_bare_protobuf_message_is_never_taken_for_a_framed_one(key: str, address: str) -> None:
    message = registry_pb2.RegisterRequest(api_key=key, address=address)
    assert not is_framed(message.SerializeToString())


def test_a_compressed_flag_counts_as_framed() -> None:
    assert is_framed(b"\x01\x00\x00\x00\x00")


@pytest.mark.parametrize("size", range(PREFIX_BYTES))
def test_a_prefix_cut_short_is_a_protocol_error(size: int) -> None:
    with pytest.raises(ProtocolError, match="cut short") as caught:
        unframe(frame(b"")[:size])
    assert caught.value.received == f"{size} bytes"


def test_a_compressed_message_is_refused_with_the_remedy() -> None:
    with pytest.raises(ProtocolError, match="send it uncompressed") as caught:
        unframe(b"\x01" + frame(b"x")[1:])
    assert caught.value.received == ""


@given(st.binary(min_size=1), st.integers(min_value=1, max_value=8))
def test_a_length_that_is_not_the_messages_is_refused(message: bytes, missing: int) -> None:
    framed = frame(message)
    with pytest.raises(ProtocolError, match="announces"):
        unframe(framed + b"\x00" * missing)
    if missing <= len(message):
        with pytest.raises(ProtocolError, match="announces"):
            unframe(framed[:-missing])


def test_a_protocol_error_says_which_rule_was_broken_and_what_came() -> None:
    error = ProtocolError("CONNECTED without an id", "status")
    assert isinstance(error, RevconnError)
    assert str(error) == "CONNECTED without an id (received status)"
    assert (error.reason, error.received) == ("CONNECTED without an id", "status")
    assert str(ProtocolError("silence")) == "silence"


@given(st.lists(st.binary(max_size=40), max_size=10), st.lists(st.integers(1, 50)))
def test_messages_come_out_whole_and_in_order_however_the_stream_is_cut(
    messages: list[bytes], sizes: list[int]
) -> None:
    stream = frame_all(messages)
    reader = MessageReader(LIMIT)
    received = []
    for size in sizes:
        piece, stream = stream[:size], stream[size:]
        received += reader.feed(piece)
    received += reader.feed(stream)
    assert received == messages
    assert not reader.mid_message


@pytest.mark.parametrize("size", [1, PREFIX_BYTES, PREFIX_BYTES + 3])
def test_a_stream_that_ends_inside_a_message_is_known_to(size: int) -> None:
    reader = MessageReader(LIMIT)
    assert reader.feed(frame(b"first") + frame(b"second")[:size]) == [b"first"]
    assert reader.mid_message


def test_a_message_over_the_limit_is_refused_at_its_prefix() -> None:
    assert MessageReader(LIMIT).feed(frame(b"x" * LIMIT)) == [b"x" * LIMIT]
    with pytest.raises(ProtocolError, match="message longer than 1,000 bytes") as caught:
        MessageReader(LIMIT).feed(frame(b"x" * (LIMIT + 1))[:PREFIX_BYTES])
    assert caught.value.received == "1,001"


def test_a_flag_that_grpc_does_not_know_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no gRPC message prefix") as caught:
        MessageReader(LIMIT).feed(b"\x02\x00\x00\x00\x00")
    assert caught.value.received == "flag byte 0x02"


def compressed(data: bytes) -> bytes:
    return b"\x01" + frame(data)[1:]


def test_a_compressed_message_that_no_encoding_announced_is_refused() -> None:
    with pytest.raises(ProtocolError, match="without grpc-encoding"):
        MessageReader(LIMIT).feed(compressed(gzip.compress(b"x")))


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=200))))
def test_compressed_and_plain_messages_mix_on_a_stream(messages: list[tuple[bool, bytes]]) -> None:
    stream = b"".join(
        compressed(gzip.compress(data)) if zipped else frame(data) for zipped, data in messages
    )
    reader = MessageReader(LIMIT, gzip_inflater(LIMIT))
    assert reader.feed(stream) == [data for _, data in messages]


def test_a_message_that_inflates_beyond_the_limit_is_refused() -> None:
    inflate = gzip_inflater(LIMIT)
    assert inflate(gzip.compress(b"x" * LIMIT)) == b"x" * LIMIT
    with pytest.raises(ProtocolError, match="longer than 1,000 bytes"):
        inflate(gzip.compress(b"x" * (LIMIT + 1)))


def test_a_gzip_message_that_was_cut_short_is_refused() -> None:
    with pytest.raises(ProtocolError, match="cut short"):
        gzip_inflater(LIMIT)(gzip.compress(b"message")[:-1])


def test_what_is_no_gzip_is_refused() -> None:
    with pytest.raises(ProtocolError, match="does not inflate"):
        gzip_inflater(LIMIT)(b"message")
