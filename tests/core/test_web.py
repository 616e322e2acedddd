"""The parts that HTTP travels in over streaming calls."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from revconn._proto.web_pb2 import (
    Header,
    RequestHead,
    RequestPart,
    ResponseHead,
    ResponsePart,
)
from revconn.core.rope import Rope
from revconn.core.status import ProtocolError
from revconn.core.web import (
    body_parts,
    is_bodiless,
    read_request_part,
    read_response_part,
    request_part,
    response_part,
    travelling,
)

NAME = st.from_regex(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}", fullmatch=True)
VALUE = st.binary(max_size=40).map(lambda value: value.translate(None, b"\0\r\n").strip(b" \t"))
OF_A_CONNECTION = [
    b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te",
    b"trailer", b"http2-settings",
]  # fmt: skip


@given(st.binary(max_size=200_000) | st.integers(60_000, 200_000).map(bytes))
@example(bytes(65_536))
@example(bytes(65_537))
def test_a_body_is_the_same_after_its_travel(body: bytes) -> None:
    parts = list(body_parts(body))
    assert all(parts)
    for read, kind in ((read_request_part, RequestPart), (read_response_part, ResponsePart)):
        assert b"".join(bytes(read(part)) for part in parts) == body
        assert b"".join(bytes(read(Rope((part[:3], part[3:])))) for part in parts) == body
        assert b"".join(kind.FromString(part).body for part in parts) == body


@given(st.binary(max_size=300))
def test_a_part_that_another_encoder_made_is_read_as_well(body: bytes) -> None:
    assert bytes(read_request_part(RequestPart(body=body).SerializeToString())) == body
    twice = ResponsePart(body=b"first").SerializeToString()
    twice += ResponsePart(body=body).SerializeToString()
    assert bytes(read_response_part(twice)) == body  # the last one counts


@given(st.integers(200, 999), st.lists(st.tuples(NAME, VALUE), max_size=5))
def test_the_head_of_a_response_is_the_same_after_its_travel(
    status: int, headers: list[tuple[bytes, bytes]]
) -> None:
    head = read_response_part(response_part(status, headers))
    assert isinstance(head, ResponseHead)
    assert head.status == status
    assert [(line.name, line.value) for line in head.headers] == headers


@given(st.text(max_size=10), st.binary(max_size=50), st.lists(st.tuples(NAME, VALUE), max_size=5))
def test_the_head_of_a_request_is_the_same_after_its_travel(
    method: str, target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    lines = [Header(name=name, value=value) for name, value in headers]
    head = RequestHead(method=method, target=target, headers=lines)
    assert read_request_part(request_part(head)) == head


@given(st.binary(max_size=60))
@example(b"\x12")
@example(b"\x12\xff\xff\xff\xff\xff\xff\xff")
@example(b"\x12\x80\x80\x80\x80\x80\x01a")
@example(b"\x12\x05abc")
@example(b"\x12\x01ab")
@example(b"\x0a\x03\x0a\x01\xff")
def test_what_is_no_part_is_refused_and_nothing_else_happens(data: bytes) -> None:
    for read, head in ((read_request_part, RequestHead), (read_response_part, ResponseHead)):
        try:
            part = read(data)
        except ProtocolError:
            continue
        assert isinstance(part, (head, bytes, memoryview))


def test_a_part_of_nothing_is_a_body_of_nothing() -> None:
    assert bytes(read_request_part(b"")) == b""
    assert bytes(read_response_part(memoryview(b""))) == b""
    assert list(body_parts(b"")) == []


@given(st.lists(st.tuples(NAME, VALUE), max_size=8))
def test_headers_travel_in_order_in_lower_case(headers: list[tuple[bytes, bytes]]) -> None:
    ordinary = [(n, v) for n, v in headers if n.lower() not in OF_A_CONNECTION]
    assert list(travelling(ordinary)) == [(name.lower(), value) for name, value in ordinary]


@pytest.mark.parametrize("name", OF_A_CONNECTION)
def test_headers_of_a_connection_stay_there(name: bytes) -> None:
    headers = [(name.upper(), b"x"), (b"A", b"1")]
    assert list(travelling(headers)) == [(b"a", b"1")]


def test_headers_that_a_connection_names_stay_there() -> None:
    headers = [(b"X-One", b"1"), (b"Connection", b"close, X-One ,x-two"), (b"x-two", b"2")]
    assert list(travelling([*headers, (b"X-Three", b"3")])) == [(b"x-three", b"3")]


@given(NAME, VALUE, VALUE, st.sampled_from([b"\r", b"\n", b"\r\n", b"\0"]))
def test_nothing_can_be_put_in_by_a_header(
    name: bytes, before: bytes, after: bytes, end: bytes
) -> None:
    for line in ((name, before + end + after), (name + end, after), (end + name, after)):
        with pytest.raises(ProtocolError):
            list(travelling([(b"a", b"b"), line]))


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"\xe9", b" a", b"a\t", b"(a)"])
def test_what_is_no_name_is_refused(name: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(travelling([(name, b"x")]))


def test_space_around_a_value_is_none_of_it() -> None:
    assert list(travelling([(b"a", b" \tb c\t ")])) == [(b"a", b"b c")]


def test_some_responses_have_no_body_whatever_they_say() -> None:
    assert is_bodiless(b"HEAD", 200)
    assert is_bodiless(b"GET", 204)
    assert is_bodiless(b"GET", 304)
    assert not is_bodiless(b"GET", 200)
