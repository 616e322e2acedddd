from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.status import Speaker, StatusCode, encode_message
from revconn.http2.grpc import (
    StreamEnd,
    decode_metadata,
    encode_metadata,
    end_by_reset,
    end_by_trailers,
    refusal,
    who_ended,
)
from tests.support.texts import texts

GRPC = {":status": "200", "content-type": "application/grpc"}


# Metadata


def test_metadata_is_sent_as_headers_binary_values_in_base64_without_padding() -> None:
    headers = encode_metadata({"a": "text", "b": b"bytes", "c-bin": b"\x00\xff", "d-bin": "ab"})
    assert headers == [(b"a", b"text"), (b"b", b"bytes"), (b"c-bin", b"AP8"), (b"d-bin", b"YWI")]


@given(st.binary(), st.booleans())
def test_binary_metadata_is_read_with_padding_and_without(value: bytes, padded: bool) -> None:
    encoded = base64.b64encode(value)
    if not padded:
        encoded = encoded.rstrip(b"=")
    assert decode_metadata([(b"x-bin", encoded)]) == {"x-bin": value}


def test_what_is_no_base64_or_no_text_does_no_harm() -> None:
    headers = [(b"x-bin", b"%%%"), (b"y-bin", b"A"), (b"z", b"\xff"), (b"\xffn", b"v")]
    assert decode_metadata(headers) == {"z": "\ufffd", "\ufffdn": "v"}


@given(st.dictionaries(st.sampled_from(["a-bin", "b-bin"]), st.binary()))
def test_binary_metadata_travels(metadata: dict[str, bytes]) -> None:
    assert decode_metadata(encode_metadata(metadata)) == metadata


# Response headers


@pytest.mark.parametrize(
    "content_type",
    ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"],
)
def test_a_grpc_answer_opens_the_stream(content_type: str) -> None:
    assert refusal({**GRPC, "content-type": content_type}) is None


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("400", StatusCode.INTERNAL),
        ("401", StatusCode.UNAUTHENTICATED),
        ("403", StatusCode.PERMISSION_DENIED),
        ("404", StatusCode.UNIMPLEMENTED),
        ("429", StatusCode.UNAVAILABLE),
        ("502", StatusCode.UNAVAILABLE),
        ("503", StatusCode.UNAVAILABLE),
        ("504", StatusCode.UNAVAILABLE),
        ("418", StatusCode.UNKNOWN),
        ("302", StatusCode.UNKNOWN),
    ],
)
def test_a_proxys_page_has_the_code_that_grpc_maps_its_status_to(
    status: str, code: StatusCode
) -> None:
    end = refusal({":status": status, "content-type": "text/html"})
    assert end is not None
    assert end.code is code
    assert f"no gRPC server: HTTP status {status}, content-type 'text/html'" in end.details


@pytest.mark.parametrize(
    "content_type", ["text/html", "application/grpc-web+proto", "application/grpcx", "json\n"]
)
def test_a_200_that_is_not_grpc_is_no_stream(content_type: str) -> None:
    end = refusal({":status": "200", "content-type": content_type})
    assert end is not None
    assert end.code is StatusCode.UNKNOWN
    assert "a login page?" in end.details
    assert end.details.isprintable()


def test_an_answer_without_a_content_type_is_no_stream() -> None:
    end = refusal({":status": "200"})
    assert end is not None
    assert "HTTP status 200, no content-type" in end.details


@pytest.mark.parametrize("status", ["", "abc", "²", "99999999999"])
def test_an_http_status_that_is_no_number_is_no_stream(status: str) -> None:
    end = refusal({":status": status, "content-type": "application/grpc"})
    assert end is not None
    assert end.code is StatusCode.UNKNOWN


def test_a_status_in_the_headers_is_the_end() -> None:
    answer = {**GRPC, "grpc-status": "16", "grpc-message": "Invalid token"}
    assert refusal(answer) == StreamEnd(StatusCode.UNAUTHENTICATED, "Invalid token")


def test_one_without_words_is_not_laid_to_the_gateway() -> None:
    bare = refusal({**GRPC, "grpc-status": "16"})
    assert bare == StreamEnd(StatusCode.UNAUTHENTICATED, "no reason given")


# Trailers


@given(st.sampled_from(StatusCode), texts(max_size=100))
def test_trailers_say_status_and_message(code: StatusCode, message: str) -> None:
    trailers = {"grpc-status": str(int(code)), "grpc-message": encode_message(message)}
    end = end_by_trailers(trailers)
    assert end.code is code
    assert end.details.isprintable()
    if message.isprintable() and message:
        assert end.details == message


def test_a_status_without_a_message_gets_words() -> None:
    assert end_by_trailers({"grpc-status": "0"}).details == "the gateway ended the stream"


def test_details_in_binary_are_passed_over() -> None:
    end = end_by_trailers({"grpc-status": "5", "grpc-status-details-bin": b"\x08\x05"})
    assert end.code is StatusCode.NOT_FOUND


def test_trailers_without_a_status_are_unknown() -> None:
    end = end_by_trailers({"grpc-message": "bye"})
    assert end == StreamEnd(StatusCode.UNKNOWN, "bye (without a status)")


@pytest.mark.parametrize("status", ["17", "-1", "x", "", "1" * 30])
def test_a_status_that_grpc_does_not_know_is_unknown_and_shown(status: str) -> None:
    end = end_by_trailers({"grpc-status": status})
    assert end.code is StatusCode.UNKNOWN
    assert f"with grpc-status {status[:20]!r}" in end.details


def test_a_message_is_one_line_of_bounded_length() -> None:
    end = end_by_trailers({"grpc-status": "2", "grpc-message": "a%0Ab" + "x" * 5000})
    assert end.details.startswith("a b")
    assert len(end.details) == 1000


# Resets


@pytest.mark.parametrize(
    ("error_code", "name", "code"),
    [
        (0x0, "NO_ERROR", StatusCode.INTERNAL),
        (0x1, "PROTOCOL_ERROR", StatusCode.INTERNAL),
        (0x2, "INTERNAL_ERROR", StatusCode.INTERNAL),
        (0x3, "FLOW_CONTROL_ERROR", StatusCode.INTERNAL),
        (0x4, "SETTINGS_TIMEOUT", StatusCode.INTERNAL),
        (0x5, "STREAM_CLOSED", StatusCode.UNKNOWN),
        (0x6, "FRAME_SIZE_ERROR", StatusCode.INTERNAL),
        (0x7, "REFUSED_STREAM", StatusCode.UNAVAILABLE),
        (0x8, "CANCEL", StatusCode.CANCELLED),
        (0x9, "COMPRESSION_ERROR", StatusCode.INTERNAL),
        (0xA, "CONNECT_ERROR", StatusCode.INTERNAL),
        (0xB, "ENHANCE_YOUR_CALM", StatusCode.RESOURCE_EXHAUSTED),
        (0xC, "INADEQUATE_SECURITY", StatusCode.PERMISSION_DENIED),
        (0xD, "HTTP_1_1_REQUIRED", StatusCode.UNKNOWN),
        (0x99, "code 0x99", StatusCode.UNKNOWN),
    ],
)
def test_a_reset_has_the_code_that_grpc_maps_it_to(
    error_code: int, name: str, code: StatusCode
) -> None:
    assert end_by_reset(error_code) == StreamEnd(code, f"the gateway reset the stream ({name})")


# Whose word the end is


@pytest.mark.parametrize(
    ("headers", "trailers", "expected"),
    [
        ({**GRPC, "grpc-status": "16", "grpc-message": "Invalid%20token"}, None, Speaker.GATEWAY),
        ({**GRPC, "grpc-status": "7", "revconn-features": ""}, None, Speaker.GATEWAY),
        ({**GRPC, "revconn-features": ""}, {"grpc-status": "12"}, Speaker.GATEWAY),
        (GRPC, {"grpc-status": "16"}, Speaker.GATEWAY),
        (GRPC, {"grpc-status": "0"}, Speaker.STRANGER),  # nobody's: it refuses nothing
        ({**GRPC, "grpc-status": "16"}, None, Speaker.STRANGER),
        ({**GRPC, "grpc-status": "99", "grpc-message": "x"}, None, Speaker.STRANGER),
        ({**GRPC, ":status": "204", "grpc-status": "3"}, None, Speaker.STRANGER),
        ({":status": "401", "content-type": "text/html"}, None, Speaker.STRANGER),
        (GRPC, {}, Speaker.STRANGER),
    ],
)
def test_whose_word_an_end_is(headers, trailers, expected: Speaker) -> None:
    assert who_ended(headers, trailers) is expected
