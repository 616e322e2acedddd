from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardResponse, ResponseStreamInfo
from revconn.core import chunks as chunking
from revconn.core.chunks import ChunkJoiner, split
from revconn.core.status import ProtocolError
from tests.support.texts import texts

SMALL_TEXT = texts(max_size=20)


def chunk(
    index: int, payload: bytes = b"", *, final: bool = False, size: int | None = None, **fields
) -> ForwardResponse:
    info = ResponseStreamInfo(
        is_streamed=True,
        chunk_index=index,
        is_final_chunk=final,
        chunk_size=len(payload) if size is None else size,
        **fields,
    )
    return ForwardResponse(request_id="1", payload=payload, response_stream_info=info)


@given(
    payload=st.binary(max_size=3000),
    headers=st.dictionaries(SMALL_TEXT, SMALL_TEXT, max_size=3),
    error=SMALL_TEXT,
    room=st.integers(1, 5000),
    random=st.randoms(use_true_random=False),
)
def test_what_is_split_fits_and_is_joined_again(payload, headers, error, room, random) -> None:
    response = ForwardResponse(
        request_id="1", status_code=200, headers=headers, payload=payload, error_message=error
    )
    limit = response.ByteSize() - len(payload) + chunking._STREAM_INFO + room
    chunks = [ForwardResponse.FromString(c.SerializeToString()) for c in split(response, limit)]
    assert all(ConnectionMessage(response=each).ByteSize() <= limit for each in chunks)
    assert [c.response_stream_info.chunk_index for c in chunks] == list(range(len(chunks)))

    first = chunks[:-1]
    random.shuffle(first)
    joiner = ChunkJoiner(max_bytes=len(payload))
    assert [joiner.add(each) for each in first] == [None] * len(first)
    assert joiner.held_bytes == len(payload) - len(chunks[-1].payload)
    assert joiner.add(chunks[-1]) == response


def test_only_the_last_chunk_carries_headers_and_error() -> None:
    response = ForwardResponse(
        request_id="1", status_code=500, headers={"a": "b"}, payload=b"x" * 1000, error_message="e"
    )
    *first, last = split(response, 400)
    assert len(first) > 1
    assert {(c.status_code, len(c.headers), c.error_message) for c in first} == {(500, 0, "")}
    assert (dict(last.headers), last.error_message) == ({"a": "b"}, "e")
    assert {c.response_stream_info.total_size for c in (*first, last)} == {1000}


def test_the_response_that_is_split_stays_as_it_was() -> None:
    response = ForwardResponse(request_id="1", payload=b"x" * 1000)
    before = response.SerializeToString()
    assert list(split(response, 300))
    assert response.SerializeToString() == before


def test_headers_that_leave_no_room_are_an_error_at_once() -> None:
    response = ForwardResponse(request_id="1", headers={"a": "b" * 1000}, payload=b"x")
    with pytest.raises(ValueError, match="of headers does not go into chunks of at most 1,000"):
        split(response, 1000)


def test_more_chunks_than_anybody_takes_are_an_error_at_once(monkeypatch) -> None:
    monkeypatch.setattr(chunking, "MAX_CHUNKS", 2)
    with pytest.raises(ValueError, match="a response with 1,000 bytes of payload"):
        split(ForwardResponse(request_id="1", payload=b"x" * 1000), 300)


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ([chunk(0), chunk(0)], "chunk 0 came twice"),
        ([chunk(0, b"a"), chunk(2, b"c", final=True)], "the final chunk came without chunk 1"),
        ([chunk(1, b"b", final=True)], "the final chunk came without chunk 0"),
        ([chunk(0), chunk(2), chunk(1, final=True)], "chunk 2 came although 1 is the final one"),
        ([chunk(2), chunk(1, final=True)], "chunk 2 came although 1 is the final one"),
        ([chunk(-1)], "chunk -1: there may be 16,384, counted from 0"),
        ([chunk(16_384)], "chunk 16384: there may be"),
        ([chunk(0, b"abc", size=4)], r"chunk 0 is said to hold 4 bytes \(received 3\)"),
        ([chunk(0, b"abc", size=0)], "chunk 0 is said to hold 0 bytes"),
        ([chunk(0, total_size=3), chunk(1, total_size=4)], "total_size was 3, and then 4"),
        ([chunk(0, total_size=11)], "a response of 11 bytes exceeds the 10 that it may hold"),
        ([chunk(0, b"x" * 6), chunk(1, b"x" * 6)], "exceed the 10 bytes that a response may hold"),
        ([chunk(0, b"abc", total_size=2)], "exceed the 2 bytes that they are said to hold"),
        ([chunk(0, b"a", total_size=-1)], "exceed the -1 bytes"),
        (
            [chunk(0, b"abc", total_size=4), chunk(1, final=True)],
            r"the chunks are said to hold 4 bytes \(received 3\)",
        ),
    ],
)
def test_chunks_that_are_wrong_say_what_is_wrong(chunks, said) -> None:
    joiner = ChunkJoiner(max_bytes=10)
    *before, wrong = chunks
    for each in before:
        assert joiner.add(each) is None
    with pytest.raises(ProtocolError, match=said):
        joiner.add(wrong)


def test_the_total_need_not_be_stated() -> None:
    joiner = ChunkJoiner(max_bytes=10)
    joiner.add(chunk(0, b"a"))
    assert joiner.add(chunk(1, b"b", final=True)).payload == b"ab"


@given(
    st.lists(
        st.just(ForwardResponse())
        | st.builds(
            chunk,
            st.integers(-2, 5),
            st.binary(max_size=4),
            final=st.booleans(),
            size=st.none() | st.integers(0, 4),
            total_size=st.integers(-1, 12),
        ),
        max_size=8,
    )
)
def test_no_chunks_hold_more_than_they_may_or_raise_anything_else(chunks) -> None:
    joiner = ChunkJoiner(max_bytes=10)
    for each in chunks:
        try:
            whole = joiner.add(each)
        except ProtocolError:
            break
        assert joiner.held_bytes <= 10
        if whole is not None:
            assert len(whole.payload) == joiner.held_bytes
            break


INDICES = range(4)


@pytest.mark.parametrize("last", INDICES)
def test_chunks_are_joined_if_all_are_there_and_no_other(last: int) -> None:
    for count in range(4):
        for before in itertools.product(INDICES, repeat=count):
            joiner = ChunkJoiner(max_bytes=10)
            try:
                for index in before:
                    assert joiner.add(chunk(index, b"%d" % index)) is None
                whole = joiner.add(chunk(last, b"%d" % last, final=True))
            except ProtocolError:
                whole = None
            if sorted([*before, last]) == list(range(last + 1)):
                assert whole is not None
                assert whole.payload == b"0123"[: last + 1]
            else:
                assert whole is None
