"""Large requests taken apart by hand are what protobuf makes of them, or left to it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ForwardRequest,
    ForwardResponse,
    Heartbeat,
    MetadataEntry,
    ResponseStreamInfo,
    StreamFrame,
    StreamingInfo,
    StreamMetadata,
    StreamPiece,
    StreamStatus,
)
from revconn.core.connector_side import ConnectorConnection
from revconn.core.liveness import ConnectorLiveness
from revconn.core.metadata import encode_header
from revconn.core.requests import (
    STREAM_TAG,
    LargeAlone,
    cut_extension,
    encode_request,
    encode_varint,
    forward_request,
    split_frame,
    split_request,
    split_response,
)
from revconn.core.rope import Rope

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
REQUESTS = st.builds(
    ForwardRequest,
    request_id=TEXT,
    method_path=TEXT,
    headers=st.dictionaries(TEXT, TEXT, max_size=5),
    payload=st.binary(max_size=300),
    timeout_seconds=st.integers(0, 2**31 - 1),
    streaming_info=st.none() | st.builds(StreamingInfo, sequence_number=st.integers(0, 2**40)),
)


UNARY = StreamingInfo(is_stream_end=True)


def encoded(request: ForwardRequest) -> bytes:
    return ConnectionMessage(request=request).SerializeToString()


def two_bytes(size: int) -> bytes:
    return bytes([size & 0x7F | 0x80, size >> 7])


def joined(data: bytes) -> ForwardRequest | None:
    apart = split_request(data)
    if apart is None:
        return None
    request, payload = apart
    assert not request.payload
    request.payload = payload
    return request


@given(REQUESTS)
def test_whatever_has_a_payload_is_taken_apart(request: ForwardRequest) -> None:
    assert joined(encoded(request)) == (request if request.payload else None)


@given(REQUESTS, st.data())
def test_what_is_broken_is_read_as_protobuf_reads_it_or_not_at_all(
    request: ForwardRequest, data: st.DataObject
) -> None:
    broken = bytearray(encoded(request))
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    found = joined(bytes(broken))
    assert found is None or ConnectionMessage.FromString(bytes(broken)).request == found


@given(st.binary(max_size=60))
@example(b"")
@example(b"\x12")
@example(b"\x12\x02\x22\x05")
@example(b"\x12\xff\xff\xff\xff\xff\xff")
def test_garbage_is_left_to_protobuf(data: bytes) -> None:
    found = joined(data)
    assert found is None or ConnectionMessage.FromString(data).request == found


@pytest.mark.parametrize(
    "tail",
    [
        b"\x22\x01x",  # another payload
        b"\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a negative timeout
        b"\x3a\x01x",  # a field that nobody knows
        b"\x0a\x01\xff",  # no UTF-8
        b"\x1a\x02\x0a\x05",  # a header cut short
        b"\x1a\x00" * 99,  # more fields than anybody has
    ],
)
def test_what_nobody_sends_is_left_to_protobuf(tail: bytes) -> None:
    body = ForwardRequest(request_id="r1", payload=b"p").SerializeToString() + tail
    assert split_request(b"\x12" + two_bytes(len(body)) + body) is None


@pytest.mark.parametrize("depth", [1, 50, 97, 98, 99, 100, 101])
@pytest.mark.parametrize("tag", [b"\x1a", b"\x32"])
def test_what_nests_too_deep_for_protobuf_is_refused_at_the_same_depth(
    tag: bytes, depth: int
) -> None:
    nested = b"\x7b" * depth + b"\x7c" * depth  # the beginnings and ends of unknown groups
    body = ForwardRequest(request_id="r1", payload=b"p").SerializeToString()
    body += tag + two_bytes(len(nested)) + nested
    data = b"\x12" + two_bytes(len(body)) + body
    try:
        expected = ConnectionMessage.FromString(data).request
    except Exception:  # noqa: BLE001 - as the decoder has it
        expected = None
    assert joined(data) == expected


def test_a_payload_may_stand_anywhere() -> None:
    body = b"\x22\x01x" + ForwardRequest(request_id="r1", timeout_seconds=3).SerializeToString()
    assert joined(b"\x12" + bytes([len(body)]) + body) == ForwardRequest(
        request_id="r1", timeout_seconds=3, payload=b"x"
    )


def test_a_message_of_another_kind_is_left_to_protobuf() -> None:
    beat = ConnectionMessage(heartbeat=Heartbeat(timestamp=1)).SerializeToString()
    assert split_request(beat) is None
    assert split_request(encoded(ForwardRequest(request_id="r1", payload=b"p")) + beat) is None


def test_a_connection_brings_a_large_request_with_its_payload_beside_it() -> None:
    connection = ConnectorConnection(
        ConnectorLiveness(10.0, 30.0, None, lambda: "probe"), token="0" * 32
    )
    connection.register("key", ["a.B"], 0.0)
    payload = bytes(200_000)
    made = ForwardRequest(request_id="r1", method_path="/a.B/C", payload=payload)
    large = encoded(made)
    nameless = encoded(ForwardRequest(payload=payload))
    inbound = connection.receive([large, nameless, large[:-1]], 0.0)
    assert [arrival[1:] for arrival in inbound.requests] == [("r1", "/a.B/C", payload, len(large))]
    assert inbound.requests[0][0] == ForwardRequest(request_id="r1", method_path="/a.B/C")
    assert inbound.is_rare  # the nameless one
    assert inbound.end is not None  # what is no message at all


# Put together, and passed on, by hand

NAMES = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=200)


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=200),
    st.dictionaries(NAMES, NAMES, max_size=4),
    st.binary(max_size=300),
    st.integers(1, 2**31 - 1),
)
def test_a_request_made_by_hand_is_what_protobuf_makes(path, headers, payload, seconds) -> None:
    entries = b"".join(
        encode_header(name.encode(), value.encode()) for name, value in headers.items()
    )
    data = encode_request(b"id", path.encode(), entries, payload, seconds)
    assert ConnectionMessage.FromString(data).request == ForwardRequest(
        request_id="id",
        method_path=path,
        headers=headers,
        payload=payload,
        timeout_seconds=seconds,
        streaming_info=UNARY,
    )


@given(REQUESTS, st.integers(1, 2**31 - 1))
def test_a_request_that_is_passed_on_has_another_limit_and_all_else(request, seconds) -> None:
    request.ClearField("streaming_info")
    data = forward_request(encoded(request), seconds)
    request.timeout_seconds = seconds
    request.streaming_info.CopyFrom(UNARY)
    assert ConnectionMessage.FromString(data).request == request


@pytest.mark.parametrize(
    "data",
    [
        ConnectionMessage(heartbeat=Heartbeat(timestamp=1)).SerializeToString(),
        encoded(ForwardRequest(request_id="1")) + encoded(ForwardRequest(request_id="2")),
    ],
)
def test_what_is_written_in_an_unusual_way_is_left_to_protobuf(data) -> None:
    assert forward_request(data, 5) == b""


@given(
    TEXT,
    st.integers(-1, 600),
    st.dictionaries(TEXT, TEXT, max_size=3),
    st.binary(min_size=1, max_size=300),
    TEXT,
)
def test_a_response_is_taken_apart_like_a_request(number, status, headers, payload, error) -> None:
    response = ForwardResponse(
        request_id=number,
        status_code=status,
        headers=headers,
        payload=payload,
        error_message=error,
    )
    apart = split_response(ConnectionMessage(response=response).SerializeToString())
    if apart is None:  # a number below 0 takes more bytes than any size does
        assert status < 0
        return
    rest, large = apart
    assert not rest.payload
    rest.payload = bytes(large)
    assert rest == response


def test_a_chunk_is_not_taken_apart() -> None:
    info = ResponseStreamInfo(is_streamed=True)
    chunk = ForwardResponse(request_id="1", payload=b"x", response_stream_info=info)
    assert split_response(ConnectionMessage(response=chunk).SerializeToString()) is None


@pytest.mark.parametrize(
    ("name", "value", "header"),
    [
        (b"a", b"b", {"a": "b"}),
        (b"a" * 200, b"b" * 300, {"a" * 200: "b" * 300}),
        (b"a-bin", b"YQ==", {"a-bin": "YQ"}),
        (b"a", b"\xff", {}),
    ],
)
def test_a_header_becomes_an_entry_of_the_map(name, value, header) -> None:
    assert ForwardRequest.FromString(encode_header(name, value)).headers == header


ENTRIES = st.lists(st.builds(MetadataEntry, key=TEXT, value=st.binary(max_size=30)), max_size=4)


@given(REQUESTS, st.text("0123456789.", min_size=1, max_size=20), ENTRIES)
def test_what_feature_metadata_adds_is_read_too_and_cut_off(
    request: ForwardRequest, peer: str, entries: list[MetadataEntry]
) -> None:
    extension = ForwardRequest(peer=peer, metadata=entries).SerializeToString()
    path, payload = request.method_path.encode(), request.payload or b"x"
    parts = request.request_id.encode(), path, b"", payload, 7
    data = encode_request(*parts, extension)
    apart = joined(bytes(data))
    assert apart is not None
    assert (apart.peer, list(apart.metadata), apart.payload) == (peer, entries, payload)
    assert bytes(cut_extension(data, len(extension))) == bytes(encode_request(*parts))
    large = encode_request(*parts[:3], Rope((payload, payload)), 7, extension)
    plain = encode_request(*parts[:3], Rope((payload, payload)), 7)
    assert bytes(cut_extension(large, len(extension))) == bytes(plain)


LARGE = 16 << 10
FRAMES = st.builds(
    StreamFrame,
    stream_id=st.integers(1, 2**32 - 1),
    initial_metadata=st.none() | st.just(StreamMetadata(entries=[MetadataEntry(key="a")])),
    messages=st.lists(st.sampled_from([b"", b"x" * LARGE, b"y" * (LARGE + 7)]), max_size=2),
    piece=st.none()
    | st.builds(
        StreamPiece,
        data=st.sampled_from([b"", b"p", b"p" * LARGE, b"q" * 100_000]),
        missing=st.sampled_from([0, 1, 100_000]),
    ),
    half_close=st.booleans(),
    status=st.none() | st.just(StreamStatus(code=5, message="m")),
    credit=st.sampled_from([0, 7, 1 << 20]),
)


def put_together(data: bytes | Rope) -> StreamFrame | None:
    """The frame of which :func:`split_frame` has taken the large part."""
    apart = split_frame(data)
    if apart is None:
        return None
    frame, large = apart[0], bytes(apart[1])
    if isinstance(frame, LargeAlone):
        piece = None if frame.missing is None else StreamPiece(missing=frame.missing)
        frame = StreamFrame(stream_id=frame.stream_id, piece=piece)
    if frame.HasField("piece"):
        assert not frame.piece.data
        frame.piece.data = large
    else:
        assert not frame.messages
        frame.messages.append(large)
    return frame


@given(FRAMES, st.integers(1, 70_000))
@example(StreamFrame(stream_id=1, messages=[b"x" * LARGE]), 100)
@example(StreamFrame(stream_id=1, piece=StreamPiece(data=b"x" * LARGE, missing=3)), 20_000)
@example(StreamFrame(stream_id=1, piece=StreamPiece(data=b"x" * LARGE)), 20_000)
@example(StreamFrame(stream_id=1, piece=StreamPiece(missing=3)), 20_000)
def test_a_frame_with_one_large_part_is_taken_apart_and_no_other(
    frame: StreamFrame, cut: int
) -> None:
    data = ConnectionMessage(stream=frame).SerializeToString()
    parts = [*frame.messages, *([frame.piece.data] if frame.HasField("piece") else [])]
    together = put_together(data)
    if len(parts) == 1 and len(parts[0]) >= LARGE:
        assert together == frame
        assert put_together(Rope((data[:cut], data[cut:]))) == frame
    else:
        assert together is None


@given(st.integers(1, 20_100), st.sampled_from([b"", b"\x48\x07"]))
@example(12, b"")
@example(16, b"")
def test_the_bytes_of_a_piece_may_be_behind_what_is_missing(cut: int, behind: bytes) -> None:
    piece = b"\x10\x96\x01" + b"\x0a\xa0\x9c\x01" + b"x" * 20_000
    body = b"\x08\x01" + b"\x2a" + encode_varint(len(piece)) + piece + behind
    data = STREAM_TAG + encode_varint(len(body)) + body
    frame = ConnectionMessage.FromString(data).stream
    assert frame.piece.missing == 150
    assert put_together(data) == frame
    assert put_together(Rope((data[:cut], data[cut:]))) == frame


@pytest.mark.parametrize(
    ("frame", "alone"),
    [
        (StreamFrame(stream_id=7, messages=[b"x" * LARGE]), LargeAlone(7, None)),
        (StreamFrame(stream_id=7, piece=StreamPiece(data=b"x" * LARGE)), LargeAlone(7, 0)),
        (
            StreamFrame(stream_id=2**32 - 1, piece=StreamPiece(data=b"x" * LARGE, missing=9)),
            LargeAlone(2**32 - 1, 9),
        ),
        (StreamFrame(messages=[b"x" * LARGE]), None),
        (StreamFrame(stream_id=7, messages=[b"x" * LARGE], half_close=True), None),
        (StreamFrame(stream_id=7, messages=[b"x" * LARGE], credit=1), None),
        (StreamFrame(stream_id=7, messages=[b"x" * LARGE], status=StreamStatus()), None),
    ],
)
def test_no_message_is_made_of_a_frame_with_nothing_else_in_it(
    frame: StreamFrame, alone: LargeAlone | None
) -> None:
    apart = split_frame(ConnectionMessage(stream=frame).SerializeToString())
    assert apart is not None
    assert (apart[0] if isinstance(apart[0], LargeAlone) else None) == alone


@pytest.mark.parametrize(
    "body",
    [
        b"\x08\x81\x80\x80\x80\x10" + b"\x22\x80\x80\x01" + b"x" * LARGE,
        b"\x08\x01\x2a\x8a\x80\x01\x10\x81\x80\x80\x80\x10\x0a\x80\x80\x01" + b"x" * LARGE,
    ],
)
def test_a_number_that_is_too_large_is_what_protobuf_makes_of_it(body: bytes) -> None:
    data = STREAM_TAG + encode_varint(len(body)) + body
    assert put_together(data) == ConnectionMessage.FromString(data).stream


def test_a_large_message_does_not_keep_all_else_that_came_with_it() -> None:
    entries = [MetadataEntry(key="a", value=b"v" * 100_000)]
    frame = StreamFrame(
        stream_id=1, initial_metadata=StreamMetadata(entries=entries), messages=[b"x" * LARGE]
    )
    apart = split_frame(ConnectionMessage(stream=frame).SerializeToString())
    assert apart is not None
    assert isinstance(apart[1], memoryview)
    assert len(apart[1].obj) == LARGE


@pytest.mark.parametrize(
    "body",
    [
        b"\x08",
        b"\x22\x80",
        b"\x22\x80\x80\x01" + b"x",
        b"\x2a\x80\x80\x01" + b"\x10\x01" * 8192,
        b"\x2a\x80\x80\x01\x0a\x80\x90\x01" + b"x" * 16379,
        b"\x2a\x83\x80\x01\x0a\xfc\xff\x00" + b"x" * 16380 + b"\x18\x01"[:1] * 0 + b"\x18\x01",
        b"\x2a\x84\x80\x01\x0a\x80\x80\x01" + b"x" * LARGE,
        b"\x2a\x86\x80\x01\x0a\x80\x80\x01" + b"x" * LARGE + b"\x18\x01",
        b"\x2a\x87\x80\x01\x0a\x80\x80\x01" + b"x" * LARGE + b"\x10\x81\x01",
        b"\x2a\x88\x80\x01\x0a\x80\x80\x01" + b"x" * LARGE + b"\x10\x01\x10\x01",
        b"\x2a\x88\x80\x01\x10\x01\x0a\x80\x80\x01" + b"x" * LARGE + b"\x10\x02",
        b"\x2a\x86\x80\x01\x10\x01\x12\x80\x80\x01" + b"x" * LARGE,
        b"\x08\x01" * 101,
        b"\x0a\x01x" + b"\x22\x80\x80\x01" + b"\xff" * LARGE,
    ],
)
def test_a_frame_that_is_broken_or_unusual_is_left_to_protobuf(body: bytes) -> None:
    data = STREAM_TAG + encode_varint(len(body)) + body
    together = put_together(data)
    if together is not None:
        assert together == ConnectionMessage.FromString(data).stream
    assert split_frame(data[:-1]) is None
    assert split_frame(STREAM_TAG + encode_varint(len(body) + 1) + body) is None
