from __future__ import annotations

import functools
import logging
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ForwardRequest,
    ForwardResponse,
    Heartbeat,
)
from revconn.core.framing import frame, unframe
from revconn.core.routing import Routes
from revconn.core.sending import Outbound
from revconn.core.status import StatusCode
from revconn.exceptions import RequestError
from revconn.messages import Request, Response
from revconn.serving.handlers import Answering
from tests.support.requests import request_of
from tests.support.texts import texts

METHOD = "/echo.Echo/Say"
LIMIT = 10_000
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too


def answer_to(
    handler: Callable[[Request], Any] | None,
    payload: bytes = b"",
    *,
    method: str = METHOD,
    limit: int = LIMIT,
) -> ForwardResponse:
    """What a request is answered with when this is the handler of its method."""
    routes: Routes[Callable[[Request], Any]] = Routes()
    if handler is not None:
        routes.add_method(METHOD, handler)
    message = ForwardRequest(request_id="r1", method_path=method, payload=payload)
    outbound = Outbound(logging.getLogger().error)
    outbound.agree(limit, chunks=False)
    outbound.put(Answering(routes, limit).answer(request_of(message)))
    (answer,) = outbound.take_answers(1)
    data = answer[0]
    assert len(data) <= limit
    response = ConnectionMessage.FromString(data).response
    assert response.request_id == "r1"
    return response


def returning(result: Any) -> Callable[[Request], Any]:
    def handler(request: Request) -> Any:
        return result

    return handler


def raising(error: BaseException) -> Callable[[Request], Any]:
    def handler(request: Request) -> Any:
        raise error

    return handler


def is_internal_error(response: ForwardResponse) -> bool:
    """Whether it says that something failed here, and nothing else."""
    return response == ForwardResponse(
        request_id="r1",
        status_code=500,
        error_message="internal error",
        headers={"grpc-status": "13", "grpc-message": "internal error"},
    )


# Results


@pytest.mark.parametrize(
    ("result", "payload"),
    [
        (b"bytes", b"bytes"),
        (bytearray(b"bytes"), b"bytes"),
        pytest.param(memoryview(b"bytes"), b"bytes", id="memoryview"),
        pytest.param(memoryview(b"b-y-t-e-s")[::2], b"bytes", id="memoryview with gaps"),
        (None, b""),
        (Heartbeat(timestamp=7), b"\x08\x07"),
        (Response(b"bytes"), b"bytes"),
        (Response(b"bytes", status=0), b"bytes"),
    ],
    ids=repr,
)
def test_each_kind_of_result_is_a_success(result: Any, payload: bytes) -> None:
    response = answer_to(returning(result))
    assert response == ForwardResponse(request_id="r1", status_code=200, payload=payload)


def test_a_handler_is_given_the_request() -> None:
    response = answer_to(lambda request: b"echo: " + request.payload, b"hello")
    assert response.payload == b"echo: hello"


def test_a_response_chooses_status_headers_and_words_of_a_success() -> None:
    response = answer_to(returning(Response(b"x", status=201, headers={"x-a": "b"}, error="note")))
    assert response == ForwardResponse(
        request_id="r1", status_code=201, payload=b"x", headers={"x-a": "b"}, error_message="note"
    )


def test_a_response_that_fails_carries_the_grpc_status_too() -> None:
    response = answer_to(
        returning(Response(b"details", status=409, headers={"x-a": "b"}, error="taken"))
    )
    assert (response.status_code, response.error_message) == (409, "taken")
    assert response.payload == b"details"
    assert dict(response.headers) == {"grpc-status": "10", "grpc-message": "taken", "x-a": "b"}


# Failures that a handler chose


@pytest.mark.parametrize(
    ("status", "http", "grpc"),
    [(404, 404, 5), (418, 418, 2), (StatusCode.NOT_FOUND, 404, 5), (StatusCode.DATA_LOSS, 500, 15)],
)
def test_a_request_error_fails_the_request_with_both_codes_and_no_log_line(
    status: int, http: int, grpc: int, caplog: pytest.LogCaptureFixture
) -> None:
    response = answer_to(raising(RequestError(status, "no such user: é")))
    assert response.status_code == http
    assert response.error_message == "no such user: é"
    assert dict(response.headers) == {
        "grpc-status": str(grpc),
        "grpc-message": "no such user: %C3%A9",
    }
    assert response.payload == b""
    assert not caplog.records


# Failures that it did not choose


@pytest.mark.parametrize(
    "error",
    [ValueError("secret"), SystemExit("secret"), KeyboardInterrupt("secret"), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_is_500_with_its_traceback_in_the_log_and_nothing_of_it_in_the_answer(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_internal_error(answer_to(raising(error)))
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert METHOD in record.getMessage()
    assert "request_id='r1'" in record.getMessage()
    assert "raising.<locals>.handler failed" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("result", ["text", 5, {"a": 1}, True, [b"x"]], ids=repr)
def test_a_wrong_type_is_500_and_the_log_names_handler_and_type(
    result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_internal_error(answer_to(returning(result)))
    [record] = caplog.records
    message = record.getMessage()
    assert f"returning.<locals>.handler returned {type(result).__name__};" in message
    assert "return bytes, a protobuf message, a Response or None" in message
    assert "request_id='r1'" in message


class Unspeakable:
    def __call__(self, request: Request) -> bytes:
        return b""[0]  # type: ignore[return-value]

    def __repr__(self) -> str:
        raise SystemExit("no name")


@pytest.mark.parametrize(
    ("handler", "name"),
    [
        (functools.partial(returning("text"), Request), "returning.<locals>.handler"),
        (Unspeakable(), "Unspeakable.__call__"),
        (Unspeakable().__call__, "Unspeakable.__call__"),
        (functools.partial(Unspeakable()), "Unspeakable.__call__"),
    ],
    ids=["partial", "object", "method", "partial of an object"],
)
def test_a_handler_is_logged_by_its_name_and_never_by_its_repr(
    handler: Callable[..., Any], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_internal_error(answer_to(handler))
    assert f"handler {name} failed" in caplog.text


def test_a_message_class_in_place_of_a_message_is_500(caplog: pytest.LogCaptureFixture) -> None:
    assert is_internal_error(answer_to(returning(Heartbeat)))
    assert len(caplog.records) == 1


def test_what_cannot_be_encoded_fails_alone_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    error = RequestError(404, b"bytes")  # type: ignore[arg-type]
    assert is_internal_error(answer_to(raising(error)))
    [record] = caplog.records
    assert "request_id='r1'" in record.getMessage()
    assert "the answer cannot be encoded" in record.getMessage()
    assert record.exc_info


# Sizes


@pytest.mark.parametrize(
    "outcome",
    [
        returning(b"x" * LIMIT),
        returning(Response(headers={"x-a": "x" * LIMIT})),
        raising(RequestError(404, "x" * LIMIT)),
    ],
)
def test_an_answer_that_is_too_large_fails_alone_and_says_the_sizes(
    outcome: Callable[[Request], Any], caplog: pytest.LogCaptureFixture
) -> None:
    response = answer_to(outcome)
    assert response.status_code == 500
    assert response.headers["grpc-status"] == "13"
    assert response.error_message.startswith(f"{METHOD}: message of ")
    assert "is larger than the limit of 10,000 bytes" in response.error_message
    [record] = caplog.records
    said = f"{METHOD} request_id='r1': the answer was not sent: message of "
    assert record.getMessage().startswith(said)


def test_the_limit_counts_the_whole_message() -> None:
    handler = returning(b"x" * 1000)
    size = ConnectionMessage(response=answer_to(handler)).ByteSize()
    assert answer_to(handler, limit=size).status_code == 200
    assert answer_to(handler, limit=size - 1).status_code == 500


# Methods that nobody handles


@pytest.mark.parametrize(
    "method", ["/echo.Echo/Shout", "/other.Other/Say", "", "/", "no slash", "/echo.Echo/", "//"]
)
def test_an_unknown_or_malformed_method_is_404_and_unimplemented(method: str) -> None:
    response = answer_to(returning(b""), method=method)
    assert response.status_code == 404
    assert response.headers["grpc-status"] == "12"
    assert response.error_message == f"unknown method {method}"


def test_an_endless_method_is_not_repeated_at_full_length() -> None:
    assert len(answer_to(None, method="/a.B/" + "x" * 5000).error_message) < 250


@pytest.mark.parametrize("method", ["echo.Echo/Say", METHOD])
def test_a_method_is_found_with_and_without_its_first_slash(method: str) -> None:
    assert answer_to(returning(b"found"), method=method).payload == b"found"


# gRPC's prefix


def test_a_framed_request_is_answered_in_kind() -> None:
    response = answer_to(lambda request: b"echo: " + request.payload, frame(b"hello"))
    assert unframe(response.payload) == b"echo: hello"
    assert response.status_code == 200
    assert dict(response.headers) == {"content-type": "application/grpc", "grpc-status": "0"}


@pytest.mark.parametrize("message", ["gone", ""])
def test_a_framed_requests_failure_is_headers_alone(message: str) -> None:
    response = answer_to(raising(RequestError(404, message)), frame(b"hello"))
    assert response.payload == b""
    assert dict(response.headers) == {
        "content-type": "application/grpc",
        "grpc-status": "5",
        "grpc-message": message,
    }


def test_a_frame_that_does_not_inflate_is_400_and_never_reaches_the_handler() -> None:
    payload = b"\x01" + frame(b"hello")[1:]
    response = answer_to(raising(AssertionError("it was called")), payload)
    assert response.status_code == 400
    assert response.headers["grpc-status"] == "3"
    assert "compressed gRPC message" in response.error_message


@pytest.mark.parametrize(
    "handler",
    [
        raising(RequestError(404, "no \udcff")),
        returning(Response(status=404, error="no \udcff", headers={"x-a": "\udcff"})),
    ],
    ids=["raised", "returned"],
)
def test_any_text_keeps_the_status_that_the_handler_chose(handler) -> None:
    response = answer_to(handler)
    assert response.status_code == 404
    assert response.headers["grpc-status"] == "5"
    assert response.error_message == "no \\udcff"


# Whatever comes


@given(
    st.binary(max_size=20),
    texts(max_size=20),
    st.one_of(
        st.binary(),
        st.none(),
        texts(),
        st.integers(),
        st.builds(
            Response,
            st.binary(),
            status=st.sampled_from([0, 200, 302, 404, 500, 599]),
            headers=st.dictionaries(ANY_TEXT, ANY_TEXT),
            error=ANY_TEXT,
        ),
    ),
)
def test_nothing_that_a_gateway_sends_or_a_handler_returns_raises(
    payload: bytes, method: str, result: Any
) -> None:
    for path in (method, METHOD):
        response = answer_to(returning(result), payload, method=path, limit=1000)
        assert response.status_code >= 200
