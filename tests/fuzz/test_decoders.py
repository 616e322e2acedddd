"""Whatever a peer's words are, each decoder returns or raises an error of its own."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
    ResponseStreamInfo,
)
from revconn._proto.web_pb2 import Header, RequestPart, ResponseHead, ResponsePart
from revconn._proto.web_pb2 import RequestHead as WebRequestHead
from revconn.core.framing import frame
from tests.fuzz.decoders import DECODERS, OWN_ERRORS, decode_all

TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=300)
HEADERS = st.dictionaries(st.sampled_from(["grpc-timeout", "grpc-status", "x-bin"]) | TEXTS, TEXTS)
NUMBERS = st.integers(-(2**31), 2**31 - 1)

MESSAGES = st.one_of(
    st.builds(
        ForwardRequest,
        request_id=TEXTS,
        method_path=TEXTS,
        headers=HEADERS,
        payload=st.binary(),
        timeout_seconds=NUMBERS,
    ).map(lambda request: ConnectionMessage(request=request)),
    st.builds(
        ForwardResponse,
        request_id=st.just("probe") | TEXTS,
        status_code=NUMBERS,
        headers=HEADERS,
        payload=st.binary(max_size=20),
        error_message=TEXTS,
        response_stream_info=st.builds(
            ResponseStreamInfo,
            is_streamed=st.booleans(),
            chunk_index=st.integers(-2, 2) | NUMBERS,
            is_final_chunk=st.booleans(),
            chunk_size=st.integers(0, 20),
            total_size=NUMBERS,
        ),
    ).map(lambda response: ConnectionMessage(response=response)),
    st.builds(ConnectionStatus, connection_id=TEXTS, status=st.integers(0, 4), message=TEXTS).map(
        lambda status: ConnectionMessage(status=status)
    ),
    st.builds(ConnectionRegister, api_key=st.just("key") | TEXTS, services=st.lists(TEXTS)).map(
        lambda register: ConnectionMessage(register=register)
    ),
    st.builds(CancelRequest, request_id=TEXTS, reason=TEXTS).map(
        lambda cancel: ConnectionMessage(cancel=cancel)
    ),
).map(ConnectionMessage.SerializeToString)

NAMES = st.sampled_from([b"host", b"content-length", b"connection", b"proxy"]) | st.binary()
LINES = st.lists(st.builds(Header, name=NAMES, value=st.binary(max_size=20)), max_size=4)
WEB = st.one_of(
    st.builds(
        WebRequestHead,
        method=TEXTS,
        target=st.binary(),
        scheme=TEXTS,
        authority=TEXTS,
        version=TEXTS,
        headers=LINES,
    ).map(lambda head: RequestPart(head=head)),
    st.builds(ResponseHead, status=NUMBERS, headers=LINES).map(
        lambda head: ResponsePart(head=head)
    ),
).map(lambda part: part.SerializeToString())

WORDS = st.sampled_from(
    [
        b":status\x00200\x00content-type\x00application/grpc\x00",
        b"grpc-status\x005\x00grpc-message\x00%0D%0A\x00",
        b"revconn-features\x00cancel\x00revconn-heartbeat-timeout\x00",
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",  # SETTINGS, as HTTP/2 begins
        b"\x01\x00\x00\x00",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 407 \r\n\r\n",
    ]
)
PLAIN = st.binary(max_size=300) | MESSAGES | WEB | TEXTS.map(str.encode)
ANYTHING = st.one_of(
    PLAIN,
    st.lists(WORDS | st.binary(max_size=20)).map(b"".join),
    PLAIN.map(gzip.compress),
    PLAIN.map(frame),
    PLAIN.map(gzip.compress).map(lambda data: b"\x01" + frame(data)[1:]),
)


@pytest.mark.filterwarnings("ignore:Unexpected end-group tag")  # old protobuf's word for garbage
@pytest.mark.parametrize("name", DECODERS)
@given(data=ANYTHING)
def test_whatever_comes_it_decodes_or_says_what_is_wrong(name: str, data: bytes) -> None:
    problem = ""
    try:
        DECODERS[name](data)
    except OWN_ERRORS as error:
        problem = str(error)
    assert problem.isprintable()


def test_the_fuzzer_feeds_all_of_them() -> None:
    decode_all(b"anything")
