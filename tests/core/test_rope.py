"""A rope is the bytes that it was made of, wherever they were cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardRequest, ForwardResponse
from revconn.core.requests import encode_request, encode_varint, split_request, split_response
from revconn.core.rope import Rope
from revconn.serving.handlers import encode_success

PARTS = st.lists(st.binary(max_size=20) | st.binary(max_size=20).map(memoryview), max_size=8)


def cut_up(data: bytes, places: list[int]) -> Rope:
    """The same bytes, cut there."""
    ends = sorted({min(place, len(data)) for place in places} | {len(data)})
    return Rope(data[start:end] for start, end in zip([0, *ends], ends))


@given(PARTS, st.integers(0, 170), st.integers(0, 170))
def test_it_is_as_long_and_is_cut_and_looked_into_as_the_bytes_are(
    parts: list[bytes | memoryview], start: int, end: int
) -> None:
    whole = b"".join(parts)
    rope = Rope(parts)
    assert (len(rope), bytes(rope), bool(rope)) == (len(whole), whole, bool(whole))
    assert bytes(rope.cut(start, end)) == whole[start:end]
    assert bytes(rope[index] for index in range(len(rope))) == whole
    with pytest.raises(IndexError):
        rope[len(whole)]


def test_what_is_cut_out_as_a_whole_piece_is_that_piece() -> None:
    parts = [b"first", b"second", b"third"]
    assert Rope(parts).cut(5, 11).parts[0] is parts[1]


@given(
    st.builds(
        ForwardRequest,
        request_id=st.text(max_size=9),
        method_path=st.text(max_size=200),
        headers=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
        payload=st.binary(max_size=300),
        timeout_seconds=st.integers(0, 2**31 - 1),
    ),
    st.lists(st.integers(0, 600), max_size=9),
)
def test_a_request_is_taken_apart_wherever_it_was_cut(
    request: ForwardRequest, places: list[int]
) -> None:
    data = ConnectionMessage(request=request).SerializeToString()
    assert split_request(cut_up(data, places)) == split_request(data)


@given(st.data(), st.lists(st.integers(0, 60), max_size=5))
def test_of_bytes_that_are_no_message_a_rope_is_none_either(
    choices: st.DataObject, places: list[int]
) -> None:
    message = ConnectionMessage()
    if choices.draw(st.booleans()):
        message.request.CopyFrom(ForwardRequest(request_id="id", method_path="/a/B", payload=b"p"))
    else:
        message.response.CopyFrom(ForwardResponse(request_id="id", status_code=200, payload=b"p"))
    data = bytearray(message.SerializeToString())
    for _ in range(choices.draw(st.integers(1, 3))):
        data[choices.draw(st.integers(0, len(data) - 1))] = choices.draw(st.integers(0, 255))
    del data[choices.draw(st.integers(1, len(data))) :]
    whole = bytes(data)
    rope = cut_up(whole, places)
    assert split_request(rope) == split_request(whole)
    found, expected = split_response(rope), split_response(whole)
    assert (found and (found[0], bytes(found[1]))) == (
        expected and (expected[0], bytes(expected[1]))
    )


@given(st.binary(min_size=1, max_size=300), st.lists(st.integers(0, 300), max_size=9))
def test_a_request_with_a_rope_in_it_is_encoded_as_with_its_bytes(
    payload: bytes, places: list[int]
) -> None:
    made = encode_request(b"id", b"/a.B/C", b"", cut_up(payload, places), 30)
    assert isinstance(made, Rope)
    assert bytes(made) == encode_request(b"id", b"/a.B/C", b"", payload, 30)


RESPONSES = st.builds(
    ForwardResponse,
    request_id=st.text(max_size=9),
    status_code=st.integers(0, 600),
    headers=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
    payload=st.binary(max_size=300),
    error_message=st.text(max_size=200),
)


@given(RESPONSES, st.lists(st.integers(0, 600), max_size=9))
def test_a_response_is_taken_apart_wherever_it_was_cut(
    response: ForwardResponse, places: list[int]
) -> None:
    data = ConnectionMessage(response=response).SerializeToString()
    found, expected = split_response(cut_up(data, places)), split_response(data)
    if not response.payload:
        assert found is expected is None
    else:
        assert found is not None
        assert expected is not None
        assert (found[0], bytes(found[1])) == (expected[0], response.payload)


def test_a_small_payload_does_not_keep_a_large_message() -> None:
    response = ForwardResponse(payload=b"zz", error_message="x" * 100_000)
    data = ConnectionMessage(response=response).SerializeToString()
    for whole in (data, cut_up(data, [40_000, 80_000])):
        found = split_response(whole)
        assert found is not None
        assert isinstance(found[1], memoryview)
        assert len(found[1].obj) == 2


def test_fields_behind_thousands_of_pieces_are_found_in_no_time() -> None:
    class Counted(list):  # type: ignore[type-arg]
        looks = 0

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            Counted.looks += 1
            return super().__getitem__(index)

        def __iter__(self):  # type: ignore[no-untyped-def]
            Counted.looks += len(self)
            return super().__iter__()

    payload = ForwardResponse(request_id="r", payload=bytes(2 << 20)).SerializeToString()
    body = payload + b"\x2a\x80\x80\x80\x80\x00" * 90
    data = b"\x1a" + encode_varint(len(body)) + body
    rope = cut_up(data, list(range(0, len(data), 1025)))
    rope.parts = Counted(rope.parts)
    assert split_response(rope) is not None
    assert Counted.looks < 10 * 2050  # and not for each of the 600 bytes of the fields


def test_the_payload_of_a_large_answer_is_not_copied() -> None:
    payload = b"x" * 100_000
    answer = encode_success("id", payload)
    assert isinstance(answer, Rope)
    assert answer.parts[-1] is payload
