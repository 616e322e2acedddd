from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto import registry_pb2
from revconn.core.framing import (
    PREFIX_BYTES,
    GzipInflater,
    frame,
    is_framed,
    pack,
    unframe,
)
from revconn.core.status import ProtocolError, RevconnError
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


# Compression


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


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_is_compressed_in_no_such_way_is_refused(encoding: str) -> None:
    with pytest.raises(ProtocolError, match=f"{encoding} message does not inflate"):
        GzipInflater(LIMIT, encoding)(b"message")


def test_deflate_is_bounded_like_gzip() -> None:
    inflate = GzipInflater(LIMIT, "deflate")
    assert inflate(zlib.compress(b"x" * LIMIT)) == b"x" * LIMIT
    with pytest.raises(ProtocolError, match="deflate messages inflate to more than 1,000 bytes"):
        inflate(zlib.compress(b"x"))
    with pytest.raises(ProtocolError, match="deflate message cut short"):
        inflate(zlib.compress(b"")[:-1])
