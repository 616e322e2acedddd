from __future__ import annotations

import gzip
import time
from types import SimpleNamespace
from typing import Any

import pytest

from revconn._proto.registry_pb2 import ForwardRequest
from revconn.core.framing import frame
from revconn.exceptions import ProtocolError
from revconn.messages import Request, Response
from revconn.runtime import clock
from tests.support.requests import request_of, settle


def request(due: float | None = None, **fields: Any) -> Request:
    return request_of(ForwardRequest(**fields), due)


# Requests


def test_a_request_says_what_the_gateway_sent() -> None:
    made = request(
        request_id="r1", method_path="/echo.Echo/Say", headers={"x-a": "b"}, payload=b"hello"
    )
    assert made.request_id == "r1"
    assert made.method == "/echo.Echo/Say"
    assert made.headers == {"x-a": "b"}
    assert made.headers is made.headers, "read once"
    assert made.payload == b"hello"
    assert not made.framed


def test_a_framed_payload_comes_out_bare() -> None:
    made = request(payload=frame(b"hello"))
    assert made.framed
    assert made.payload == b"hello"


@pytest.mark.parametrize("payload", [b"\x00", frame(b"hello")[:-1], frame(b"hello") + b"!"])
def test_what_only_begins_like_a_frame_is_the_message_itself(payload: bytes) -> None:
    made = request(payload=payload)
    assert not made.framed
    assert made.payload == payload


def test_a_gzip_frame_comes_out_inflated_and_is_inflated_once() -> None:
    payload = b"\x01" + frame(gzip.compress(b"hello"))[1:]
    made = request(payload=payload, headers={"grpc-encoding": "gzip"})
    assert made.payload == b"hello"
    assert made.payload is made.payload


@pytest.mark.parametrize("headers", [{}, {"grpc-encoding": "gzip"}])
def test_a_frame_that_does_not_inflate_is_a_protocol_error(headers: dict[str, str]) -> None:
    made = request(payload=b"\x01\x00\x00\x00\x00", headers=headers)
    with pytest.raises(ProtocolError):
        made.payload  # noqa: B018


def test_the_remaining_time_is_counted_from_now_and_never_negative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clock, "with_suspend", lambda: 1000.0)
    assert request(due=1002.5).time_remaining() == 2.5
    assert request(due=999.0).time_remaining() == 0.0
    assert request().time_remaining() is None


def test_the_deadline_comes_nearer_while_the_machine_sleeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept = 0.0
    monkeypatch.setattr(clock, "with_suspend", lambda: 1000.0 + slept)
    monkeypatch.setattr(time, "monotonic", lambda: 10.0)
    made = request(due=1030.0)
    assert made.deadline == 40.0
    slept = 25.0
    assert (made.deadline, made.time_remaining(), made.is_active()) == (15.0, 5.0, True)
    slept = 31.0
    assert (made.deadline, made.time_remaining(), made.is_active()) == (9.0, 0.0, False)
    assert request().deadline is None


def test_a_request_is_active_until_it_is_settled() -> None:
    made = request()
    assert made.is_active()
    settle(made)
    assert not made.is_active()


def test_a_request_that_was_settled_is_not_active_because_another_came_with_its_id() -> None:
    made, another = request(request_id="a"), request(request_id="a")
    made._in_flight = another._in_flight
    assert another.is_active()
    assert not made.is_active()
    assert not made.add_callback(object)


def test_a_request_is_active_until_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(clock, "with_suspend", lambda: now)
    made = request(due=1002.0)
    assert made.is_active()
    now = 1002.0
    assert not made.is_active()


def test_callbacks_are_called_once_and_none_is_added_to_a_request_that_is_over() -> None:
    made = request()
    called: list[str] = []
    assert made.add_callback(lambda: called.append("one"))
    assert made.add_callback(lambda: called.append("two"))
    settle(made)
    assert not made.add_callback(lambda: called.append("late"))
    made._call_back()
    made._call_back()
    assert called == ["one", "two"]


def test_a_request_that_ends_just_before_a_callback_is_added_does_not_take_it() -> None:
    made = request()

    class EndsMeanwhile:
        def __enter__(self) -> None:
            settle(made)

        def __exit__(self, *exc_info: object) -> None:
            pass

    made._replies = SimpleNamespace(lock=EndsMeanwhile())
    assert made.is_active()
    assert not made.add_callback(lambda: pytest.fail("it was not taken"))
    made._call_back()


def test_the_repr_of_a_request_is_short_escaped_and_without_its_payload() -> None:
    shown = repr(request(request_id="r\n1", method_path="/a.B/" + "x" * 10_000, payload=b"secret"))
    assert shown.startswith("Request('/a.B/xxx")
    assert shown.endswith(r"request_id='r\n1')")
    assert len(shown) < 300
    assert "secret" not in shown


# Responses


def test_an_empty_response_is_a_success() -> None:
    response = Response()
    assert (response.payload, response.status, response.error) == (b"", 200, "")
    assert response.headers == {}
    assert response.ok


def test_a_response_keeps_what_it_is_given() -> None:
    response = Response(b"x", status=404, headers={"x-a": "b"}, error="gone")
    assert (response.payload, response.status, response.error) == (b"x", 404, "gone")
    assert response.headers == {"x-a": "b"}
    assert not response.ok
    assert repr(response) == "Response(1 bytes, status=404)"


@pytest.mark.parametrize("payload", [bytearray(b"x"), memoryview(b"x")])
def test_a_payload_may_be_any_bytes_and_is_copied(payload: Any) -> None:
    assert Response(payload).payload == b"x"
    assert type(Response(payload).payload) is bytes


@pytest.mark.parametrize("status", [0, 200, 204, 299, 302, 404, 599])
def test_zero_and_http_statuses_are_statuses(status: int) -> None:
    assert Response(status=status).ok == (status == 0 or status < 300)


@pytest.mark.parametrize("status", [-1, 1, 5, 100, 199, 600, 2.5, "200", None])
def test_any_other_status_is_refused(status: Any) -> None:
    with pytest.raises(ValueError, match="is no status; give 0 or 200 to 599"):
        Response(status=status)


@pytest.mark.parametrize("payload", ["text", 5, [b"x"], None])
def test_a_payload_that_is_no_bytes_is_refused(payload: Any) -> None:
    with pytest.raises(TypeError, match=f"payload is {type(payload).__name__}; give bytes"):
        Response(payload)


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, {b"a": "b"}, {"a": None}])
def test_headers_that_are_no_text_are_refused(headers: Any) -> None:
    with pytest.raises(TypeError, match="headers hold something that is not text"):
        Response(headers=headers)


@pytest.mark.parametrize("error", [5, None, b"gone", ValueError("gone")])
def test_an_error_that_is_no_text_is_refused(error: Any) -> None:
    with pytest.raises(TypeError, match=f"error is {type(error).__name__}; give a str"):
        Response(error=error)


def test_a_response_cannot_be_changed() -> None:
    headers = {"x-a": "b"}
    response = Response(headers=headers)
    headers["x-a"] = "changed"
    assert response.headers == {"x-a": "b"}
    with pytest.raises(AttributeError, match="make a new one to change status"):
        response.status = 500
    with pytest.raises(TypeError):
        response.headers["x-a"] = "changed"  # type: ignore[index]
