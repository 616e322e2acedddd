from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardResponse
from revconn.core.framing import frame
from revconn.core.responses import encode_failure, encode_response
from revconn.core.status import StatusCode, decode_message, response_code
from tests.support.texts import texts

FAILING_CODES = [code for code in StatusCode if code is not StatusCode.OK]


def decoded(data: bytes) -> ForwardResponse:
    message = ConnectionMessage.FromString(data)
    assert message.WhichOneof("message_type") == "response"
    return message.response


def test_a_success_is_200_with_the_bare_payload_and_no_headers() -> None:
    assert decoded(encode_response("r1", b"hello")) == ForwardResponse(
        request_id="r1", status_code=200, payload=b"hello"
    )


def test_status_headers_and_error_are_sent_as_given() -> None:
    response = decoded(encode_response("r1", b"", status=204, headers={"x-a": "b"}, error="note"))
    assert response == ForwardResponse(
        request_id="r1", status_code=204, headers={"x-a": "b"}, error_message="note"
    )


@pytest.mark.parametrize("payload", [b"", b"hello"])
def test_a_framed_success_is_framed_even_when_empty_and_carries_grpcs_headers(
    payload: bytes,
) -> None:
    response = decoded(encode_response("r1", payload, framed=True))
    assert response.payload == frame(payload)
    assert response.status_code == 200
    assert dict(response.headers) == {"content-type": "application/grpc", "grpc-status": "0"}


def test_headers_of_a_handler_stand_before_those_of_the_framing() -> None:
    response = decoded(
        encode_response("r1", b"", headers={"content-type": "text/plain", "x": "y"}, framed=True)
    )
    assert dict(response.headers) == {"content-type": "text/plain", "grpc-status": "0", "x": "y"}


@pytest.mark.parametrize("message", ["no such thing", ""])
def test_a_framed_failure_without_a_payload_has_nothing_to_frame(message: str) -> None:
    response = decoded(encode_failure("r1", StatusCode.NOT_FOUND, message, framed=True))
    assert response.payload == b""
    assert response.headers["content-type"] == "application/grpc"
    assert response.headers["grpc-status"] == "5"


def test_a_framed_failure_with_a_payload_has_it_framed() -> None:
    response = decoded(
        encode_failure("r1", StatusCode.ABORTED, "why", payload=b"details", framed=True)
    )
    assert response.payload == frame(b"details")


def test_a_failure_carries_its_http_status_and_its_words() -> None:
    response = decoded(encode_failure("r1", StatusCode.UNAVAILABLE, "try later: 50 % full"))
    assert response.request_id == "r1"
    assert response.status_code == 503
    assert response.error_message == "try later: 50 % full"
    assert response.headers["grpc-message"] == "try later: 50 %25 full"


def test_a_failures_http_status_can_be_chosen() -> None:
    response = decoded(encode_failure("r1", StatusCode.UNIMPLEMENTED, "unknown", status=404))
    assert response.status_code == 404
    assert response.headers["grpc-status"] == "12"


@pytest.mark.parametrize("framed", [False, True])
def test_lone_surrogates_cost_neither_the_status_nor_the_rest_of_the_words(framed: bool) -> None:
    odd = {"x-\udcff": "a\ud800b"}
    failure = decoded(
        encode_failure("r1", StatusCode.NOT_FOUND, "no \udcff here", headers=odd, framed=framed)
    )
    assert response_code(failure.status_code, failure.headers) is StatusCode.NOT_FOUND
    assert failure.error_message == "no \\udcff here"
    assert decode_message(failure.headers["grpc-message"]) == "no \\udcff here"
    assert failure.headers["x-\\udcff"] == "a\\ud800b"
    success = decoded(encode_response("r1", b"x", headers=odd, error="\udcff", framed=framed))
    assert (success.status_code, success.error_message) == (200, "\\udcff")


@given(st.sampled_from(FAILING_CODES), texts(), st.booleans())
def test_the_exact_code_and_message_survive_the_trip(
    code: StatusCode, message: str, framed: bool
) -> None:
    response = decoded(encode_failure("r1", code, message, framed=framed))
    assert response_code(response.status_code, response.headers) is code
    assert response.error_message == message
    assert decode_message(response.headers["grpc-message"]) == message
