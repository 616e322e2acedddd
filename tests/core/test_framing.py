from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto import registry_pb2
from revconn.core.errors import ProtocolError, RevconnError
from revconn.core.framing import PREFIX_BYTES, frame, is_framed, unframe


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
