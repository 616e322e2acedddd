from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.status import (
    StatusCode,
    decode_message,
    encode_message,
    http_status,
    is_success,
    response_code,
    status_code,
)
from tests.support.texts import texts

HTTP_OF_CODE = {  # as google.rpc.Code's comments give it
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}


def test_the_codes_are_grpcs_own_in_name_and_number() -> None:
    assert {code.name: code.value for code in StatusCode} == {
        code.name: code.value[0] for code in grpc.StatusCode
    }


@pytest.mark.parametrize("code", StatusCode)
def test_a_code_has_the_http_status_of_google_rpc_code(code: StatusCode) -> None:
    assert http_status(code) == HTTP_OF_CODE[code.name]


@pytest.mark.parametrize("code", StatusCode)
def test_a_code_stays_a_success_or_a_failure_through_http(code: StatusCode) -> None:
    back = status_code(http_status(code))
    assert (back is StatusCode.OK) == (code is StatusCode.OK)
    assert http_status(back) == http_status(code)


@pytest.mark.parametrize(
    ("status", "success"),
    [(0, True), (200, True), (204, True), (299, True), (300, False), (199, False), (-1, False)],
)
def test_zero_and_2xx_are_the_successes(status: int, success: bool) -> None:
    assert is_success(status) is success


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (0, StatusCode.OK),
        (204, StatusCode.OK),
        (404, StatusCode.NOT_FOUND),
        (408, StatusCode.DEADLINE_EXCEEDED),
        (502, StatusCode.UNAVAILABLE),
        (302, StatusCode.UNKNOWN),
        (418, StatusCode.UNKNOWN),
        (-7, StatusCode.UNKNOWN),
    ],
)
def test_a_status_has_the_nearest_code(status: int, code: StatusCode) -> None:
    assert status_code(status) is code


@pytest.mark.parametrize("code", StatusCode)
def test_the_exact_code_survives_in_the_grpc_status_header(code: StatusCode) -> None:
    headers = {"grpc-status": str(int(code))}
    assert response_code(http_status(code), headers) is code


@pytest.mark.parametrize(
    ("status", "header", "code"),
    [
        (200, "5", StatusCode.OK),
        (404, "0", StatusCode.NOT_FOUND),
        (404, "17", StatusCode.NOT_FOUND),
        (404, "-1", StatusCode.NOT_FOUND),
        (404, "NOT_FOUND", StatusCode.NOT_FOUND),
        (404, "", StatusCode.NOT_FOUND),
    ],
)
def test_a_header_that_contradicts_or_is_no_code_is_not_believed(
    status: int, header: str, code: StatusCode
) -> None:
    assert response_code(status, {"grpc-status": header}) is code


def test_without_the_header_the_status_gives_the_code() -> None:
    assert response_code(503, {}) is StatusCode.UNAVAILABLE


@given(st.integers(-(2**31), 2**31 - 1), texts())
def test_any_response_has_a_code_that_agrees_with_its_status(status: int, header: str) -> None:
    code = response_code(status, {"grpc-status": header})
    assert (code is StatusCode.OK) == is_success(status)


@given(texts())
def test_a_message_survives_its_encoding(message: str) -> None:
    assert decode_message(encode_message(message)) == message


@given(texts())
def test_an_encoded_message_is_printable_ascii(message: str) -> None:
    assert all(" " <= character <= "~" for character in encode_message(message))


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, blacklist_characters="%")))
def test_printable_ascii_but_the_percent_sign_stays_as_it_is(message: str) -> None:
    assert encode_message(message) == message


@pytest.mark.parametrize(
    ("value", "message"),
    [("100%", "100%"), ("%zz", "%zz"), ("%E5%AF%86", "密"), ("%FF", "\N{REPLACEMENT CHARACTER}")],
)
def test_a_message_that_was_not_encoded_rightly_is_still_read(value: str, message: str) -> None:
    assert decode_message(value) == message
