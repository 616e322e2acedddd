"""A success, put together by hand: the bytes that protobuf gives it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.responses import encode_response
from revconn.serving import handlers
from revconn.serving.handlers import encode_success
from tests.core.test_framing import LOOKALIKES
from tests.support.texts import texts

IDS = texts(min_size=1, max_size=256)  # no request has an empty one
LENGTHS = [0, 1, 2, 127, 128, 255, 256, 16_383, 16_384, 2_097_151, 2_097_152]
PAYLOADS = st.one_of(
    st.binary(),
    LOOKALIKES,
    st.builds(lambda first, size: first + bytes(size), st.binary(), st.sampled_from(LENGTHS)),
)


@given(IDS, PAYLOADS)
def test_a_success_by_hand_has_the_bytes_that_protobuf_gives_it(name: str, payload: bytes) -> None:
    assert bytes(encode_success(name, payload)) == encode_response(name, payload)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["r", "r" * 127, "r" * 128, "\u20ac" * 128])
def test_so_it_has_at_each_length_where_a_number_takes_one_byte_more(
    name: str, length: int
) -> None:
    around = [b"\x0a" * each for each in range(max(0, length - 160), length + 2)]
    for payload in around if length < 20_000 else [around[0], *around[-2:]]:
        assert bytes(encode_success(name, payload)) == encode_response(name, payload)


def test_of_lengths_that_came_no_more_than_a_thousand_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes: dict[tuple[int, int], tuple[bytes, bytes]] = {}
    monkeypatch.setattr(handlers, "_shapes", shapes)
    for length in range(1, 2500):
        payload = b"x" * length
        assert encode_success("r1", payload) == encode_response("r1", payload)
        assert len(shapes) <= handlers._MOST_SHAPES
