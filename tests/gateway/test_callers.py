"""Calls of ordinary gRPC clients, through the gateway to a connector and back."""

from __future__ import annotations

import queue
import uuid
from contextlib import ExitStack

import grpc
import pytest

from revconn._proto.registry_pb2 import ResponseStreamInfo, StreamingInfo
from revconn.core.deadline import parse_grpc_timeout
from revconn.core.framing import frame
from revconn.core.status import StatusCode, encode_message, http_status
from revconn.gateway import Gateway, callers
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"


@pytest.fixture
def connector(gateway, connect):
    return connect(gateway, "echo.Echo")


# What the connector is sent


def test_a_call_arrives_as_a_request_and_its_answer_goes_back(gateway, connector, call) -> None:
    pending = call(gateway, SAY, b"\x0a\x02hi")
    request = connector.receive_request()
    assert request.method_path == SAY
    assert request.payload == b"\x0a\x02hi"
    assert str(uuid.UUID(request.request_id)) == request.request_id
    assert request.streaming_info == StreamingInfo(is_stream_end=True)
    connector.respond(request.request_id, b"\x0a\x05there")
    assert pending.result() == b"\x0a\x05there"
    assert pending.code() is grpc.StatusCode.OK
    assert gateway.connections()[0].pending == 0


def test_empty_and_large_payloads_pass_unchanged(run_gateway, connect, call) -> None:
    gateway = run_gateway(max_message_bytes=8_000_000)
    connector = connect(gateway, "echo.Echo")
    for payload in (b"", b"\x0a" * 5_000_000):
        pending = call(gateway, SAY, payload)
        request = connector.receive_request()
        assert request.payload == payload
        connector.respond(request.request_id, request.payload)
        assert pending.result() == payload


def test_metadata_arrives_as_headers(gateway, connector, call) -> None:
    metadata = [("authorization", "Bearer x"), ("a", "1"), ("a", "2"), ("trace-bin", b"\x00\xff")]
    call(gateway, SAY, metadata=metadata)
    headers = connector.receive_request().headers
    assert headers["authorization"] == "Bearer x"
    assert headers["a"] == "1,2"
    assert headers["trace-bin"] == "AP8"
    assert headers["content-type"] == "application/grpc"
    assert headers["user-agent"].startswith("grpc-python")
    assert not any(name.startswith(":") for name in headers)


def test_the_callers_deadline_is_passed_on(gateway, connector, call) -> None:
    call(gateway, SAY, timeout=5.5)
    request = connector.receive_request()
    assert 5 < parse_grpc_timeout(request.headers["grpc-timeout"]) < 5.6
    assert request.timeout_seconds == 6


def test_the_callers_deadline_is_capped(run_gateway, connect, call) -> None:
    gateway = run_gateway(request_timeout=7.0)
    connector = connect(gateway, "echo.Echo")
    call(gateway, SAY, timeout=50.0)
    request = connector.receive_request()
    assert request.timeout_seconds == 7
    assert parse_grpc_timeout(request.headers["grpc-timeout"]) > 40


def test_a_caller_without_a_deadline_gets_the_gateways(run_gateway, connect, call) -> None:
    gateway = run_gateway(request_timeout=1.0)
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, SAY, timeout=None)
    request = connector.receive_request()
    assert request.timeout_seconds == 1
    assert "grpc-timeout" not in request.headers
    assert pending.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "did not answer in time" in pending.details()
    eventually(lambda: gateway.connections()[0].pending == 0)


# Routing


def test_connections_of_one_service_take_turns(gateway, connect, call) -> None:
    connectors = [connect(gateway, "echo.Echo") for _ in range(3)]
    for connector in connectors * 2:
        pending = call(gateway, SAY)
        connector.respond(connector.receive_request().request_id, b"it was my turn")
        assert pending.result() == b"it was my turn"


def test_a_child_of_a_registered_service_is_served_under_its_own_path(
    gateway, connect, call
) -> None:
    connector = connect(gateway, "shop")
    call(gateway, "/shop.v1.Orders/Get")
    assert connector.receive_request().method_path == "/shop.v1.Orders/Get"


@pytest.mark.parametrize("path", ["/other.Service/Say", "/echo.EchoEcho/Say", "/echo/Say"])
def test_a_service_nobody_serves_is_unavailable_by_name(gateway, connector, call, path) -> None:
    pending = call(gateway, path)
    assert pending.code() is grpc.StatusCode.UNAVAILABLE
    assert pending.details() == f"no connector serves {path.split('/')[1]}"


def test_a_service_whose_connector_left_is_unavailable(run_gateway, connect, call) -> None:
    gateway = run_gateway(reconnect_grace=0)
    connector = connect(gateway, "echo.Echo")
    connector.disconnect()
    connector.ended()
    assert call(gateway, SAY).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("path", ["/echo.Echo", "/echo.Echo/", "/a/b/c"])
def test_a_path_that_names_no_method_is_unimplemented(gateway, connector, call, path) -> None:
    pending = call(gateway, path)
    assert pending.code() is grpc.StatusCode.UNIMPLEMENTED
    assert path in pending.details()


def test_the_gateways_own_service_is_not_forwarded(gateway, connect, call) -> None:
    connect(gateway, "RegistryService")  # by its last part
    pending = call(gateway, "/registry.RegistryService/Register")
    assert pending.code() is grpc.StatusCode.UNAUTHENTICATED
    assert pending.details() == "Invalid token"


# What comes back


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
def test_the_exact_status_and_message_come_back(gateway, connector, call, code) -> None:
    pending = call(gateway, SAY)
    connector.respond(
        connector.receive_request().request_id,
        b"ignored",
        status_code=http_status(code),
        headers={
            "grpc-status": str(int(code)),
            "grpc-message": encode_message("größer: 100 %\nthan before"),
            "x-detail": "more",
        },
        error_message="something else",
    )
    assert pending.code().value[0] == code
    assert pending.details() == "größer: 100 %\nthan before"
    assert ("x-detail", "more") in pending.trailing_metadata()


def test_a_failure_without_grpc_headers_is_translated(gateway, connector, call) -> None:
    pending = call(gateway, SAY)
    connector.respond(
        connector.receive_request().request_id, status_code=404, error_message="no such method"
    )
    assert pending.code() is grpc.StatusCode.NOT_FOUND
    assert pending.details() == "no such method"


def test_a_failure_without_a_message_says_its_status(gateway, connector, call) -> None:
    pending = call(gateway, SAY)
    connector.respond(connector.receive_request().request_id, status_code=302)
    assert pending.code() is grpc.StatusCode.UNKNOWN
    assert pending.details() == "the connector answered with status 302"


@pytest.mark.parametrize("status", [0, 200, 204])
def test_zero_and_every_2xx_are_successes(gateway, connector, call, status) -> None:
    pending = call(gateway, SAY)
    connector.respond(connector.receive_request().request_id, b"\x0a", status_code=status)
    assert pending.result() == b"\x0a"


def test_a_framed_payload_is_returned_bare(gateway, connector, call) -> None:
    pending = call(gateway, SAY)
    connector.respond(
        connector.receive_request().request_id,
        frame(b"\x0a\x01x"),
        headers={"content-type": "application/grpc", "grpc-status": "0"},
    )
    assert pending.result() == b"\x0a\x01x"


def test_a_payload_that_does_not_inflate_is_an_internal_failure(gateway, connector, call) -> None:
    pending = call(gateway, SAY)
    connector.respond(connector.receive_request().request_id, b"\x01\x00\x00\x00\x01x")
    assert pending.code() is grpc.StatusCode.INTERNAL
    assert "the connector's payload" in pending.details()


def test_the_payload_of_a_failure_does_not_matter(gateway, connector, call) -> None:
    pending = call(gateway, SAY)
    connector.respond(connector.receive_request().request_id, b"\x00", status_code=404)
    assert pending.code() is grpc.StatusCode.NOT_FOUND


def test_headers_come_back_as_trailing_metadata_and_bad_ones_do_no_harm(
    gateway, connector, call
) -> None:
    pending = call(gateway, SAY)
    connector.respond(
        connector.receive_request().request_id,
        b"\x0a",
        headers={
            "X-Kept": "yes",
            "kept-bin": "AP8",
            "grpc-status": "0",
            "content-length": "99",
            ":status": "200",
            "bad name": "1",
            "bad-value": "a\nb",
            "bad-bin": "%%%",
            "huge": "x" * 100_000,
        },
    )
    assert pending.result() == b"\x0a"
    metadata = dict(pending.trailing_metadata())
    assert metadata == {"x-kept": "yes", "kept-bin": b"\x00\xff"}


def test_an_endless_error_message_does_not_hide_the_status(gateway, connector, call) -> None:
    pending = call(gateway, SAY)
    connector.respond(
        connector.receive_request().request_id,
        status_code=404,
        error_message="ü" * 100_000,
        headers={f"h{number}": "x" * 1000 for number in range(20)},
    )
    assert pending.code() is grpc.StatusCode.NOT_FOUND
    assert pending.details().startswith("üüü")


def test_a_chunked_answer_fails_that_call_alone(gateway, connector, call) -> None:
    chunked, whole = call(gateway, "/echo.Echo/Chunked"), call(gateway, SAY)
    received = [connector.receive_request() for _ in range(2)]
    requests = {request.method_path: request for request in received}
    info = ResponseStreamInfo(is_streamed=True, is_final_chunk=True)
    connector.respond(requests["/echo.Echo/Chunked"].request_id, b"x", response_stream_info=info)
    assert chunked.code() is grpc.StatusCode.INTERNAL
    assert "chunks" in chunked.details()
    connector.respond(requests[SAY].request_id, b"\x0a")
    assert whole.result() == b"\x0a"


def test_answers_come_in_any_order(gateway, connector, call) -> None:
    pending = [call(gateway, SAY, bytes([10 + number])) for number in range(10)]
    requests = [connector.receive_request() for _ in pending]
    for request in reversed(requests):
        connector.respond(request.request_id, request.payload)
    assert [one.result() for one in pending] == [bytes([10 + number]) for number in range(10)]


def test_a_second_answer_is_counted_and_harmless(gateway, connector, call) -> None:
    pending = call(gateway, SAY)
    request = connector.receive_request()
    connector.respond(request.request_id, b"\x0a")
    connector.respond(request.request_id, b"\x0b")
    assert pending.result() == b"\x0a"
    eventually(lambda: gateway.connections()[0].unmatched == 1)


# Limits, and callers that go away


def test_more_than_may_be_pending_is_refused(run_gateway, connect, call) -> None:
    gateway = run_gateway(max_pending=2)
    connector = connect(gateway, "echo.Echo")
    pending = [call(gateway, SAY) for _ in range(2)]
    requests = [connector.receive_request() for _ in pending]
    refused = call(gateway, SAY)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for request in requests:
        connector.respond(request.request_id)
    assert [one.result() for one in pending] == [b"", b""]
    call(gateway, SAY)
    connector.receive_request()


def test_a_request_larger_than_allowed_is_refused_before_it_is_forwarded(
    run_gateway, connect, call
) -> None:
    gateway = run_gateway(max_message_bytes=10_000)
    connector = connect(gateway, "echo.Echo")
    assert call(gateway, SAY, b"x" * 20_000).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    call(gateway, "/echo.Echo/Next")
    assert connector.receive_request().method_path == "/echo.Echo/Next"


def test_a_caller_that_gives_up_leaves_nothing_pending(gateway, connector, call) -> None:
    pending = call(gateway, SAY)
    request = connector.receive_request()
    pending.cancel()
    eventually(lambda: gateway.connections()[0].pending == 0)
    connector.respond(request.request_id, b"too late")
    eventually(lambda: gateway.connections()[0].unmatched == 1)


def test_a_caller_whose_deadline_passes_leaves_nothing_pending(gateway, connector, call) -> None:
    pending = call(gateway, SAY, timeout=5.0)
    connector.receive_request()
    assert pending.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: gateway.connections()[0].pending == 0)


# Calls that are not unary


class Stream:
    """A call whose caller says what the test tells it to, in any number of messages."""

    def __init__(self, gateway: Gateway, path: str, resources: ExitStack) -> None:
        self._messages: queue.SimpleQueue = queue.SimpleQueue()
        channel = resources.enter_context(grpc.insecure_channel(gateway.address))
        self.call = channel.stream_stream(path)(iter(self._messages.get, None), timeout=60)
        resources.callback(self.half_close)

    def say(self, *messages: bytes) -> None:
        for message in messages:
            self._messages.put(message)

    def half_close(self) -> None:
        self._messages.put(None)


@pytest.fixture
def stream(resources):
    def stream(gateway: Gateway, path: str = SAY) -> Stream:
        return Stream(gateway, path, resources)

    return stream


def test_a_second_message_is_refused_at_once(gateway, connector, stream) -> None:
    caller = stream(gateway)
    caller.say(b"1", b"2")
    assert caller.call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "the method does not stream" in caller.call.details()


def test_a_request_without_a_message_is_refused(gateway, connector, stream) -> None:
    caller = stream(gateway)
    caller.half_close()
    assert caller.call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "not exactly one message" in caller.call.details()


def test_a_stream_that_is_never_half_closed_is_refused_long_before_its_deadline(
    gateway, connector, stream, monkeypatch
) -> None:
    monkeypatch.setattr(callers, "_MOST_LOOKS", 1)
    caller = stream(gateway)
    caller.say(b"1")
    assert caller.call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "the method does not stream" in caller.call.details()


def test_a_stream_that_says_nothing_is_given_up(run_gateway, connect, stream) -> None:
    gateway = run_gateway(request_timeout=0.2)
    connect(gateway, "echo.Echo")
    caller = stream(gateway)
    assert caller.call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "only unary calls" in caller.call.details()


def test_a_stream_to_a_service_nobody_serves_is_refused_before_it_says_anything(
    gateway, stream
) -> None:
    caller = stream(gateway, "/grpc.reflection.v1.ServerReflection/Info")
    assert caller.call.code() is grpc.StatusCode.UNAVAILABLE


def test_a_server_streaming_call_gets_its_one_answer(gateway, connector, stream) -> None:
    caller = stream(gateway)
    caller.say(b"\x0a")
    caller.half_close()
    connector.respond(connector.receive_request().request_id, b"\x0b")
    assert list(caller.call) == [b"\x0b"]


def test_a_failure_is_sent_without_a_message_before_it(gateway, stream) -> None:
    received = iter(stream(gateway, "/other.Service/Say").call)
    with pytest.raises(grpc.RpcError, match="no connector serves other.Service"):
        next(received)


def test_a_service_is_found_by_the_last_part_of_its_name_when_nothing_else_matches(
    gateway, connect, call
) -> None:
    last, parent = connect(gateway, "PostService"), connect(gateway, "blog")
    for path, found in [("/post.PostService/Get", last), ("/blog.PostService/Get", parent)]:
        pending = call(gateway, path)
        request = found.receive_request()
        assert request.method_path == path
        found.respond(request.request_id, b"\x0a")
        assert pending.result() == b"\x0a"
    parent.ask("1", "/post.PostService/Get")  # a connector's key may call what it names
    assert parent.receive_response().status_code == 404
