"""Calls that connectors make to one another through the gateway."""

from __future__ import annotations

import pytest

from revconn.core.status import decode_message
from tests.gateway.conftest import counted
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"


@pytest.fixture
def answerer(gateway, connect):
    return connect(gateway, "echo.Echo")


@pytest.fixture
def asker(gateway, connect):
    return connect(gateway)


def assert_failed(response, request_id, status, code, said) -> None:
    assert (response.request_id, response.status_code) == (request_id, status)
    assert response.payload == b""
    assert response.headers["grpc-status"] == str(code)
    assert decode_message(response.headers["grpc-message"]) == response.error_message
    assert said in response.error_message


def test_a_call_arrives_as_it_was_sent_except_for_its_timeout(answerer, asker) -> None:
    headers = {"authorization": "Bearer x", "Odd Name": "ü", "trace-bin": "AP8"}
    asker.ask("id 1", "echo.Echo/Say", b"\x00\x00\x00\x00\x01x", headers=headers, timeout_seconds=9)
    request = answerer.receive_request()
    assert request.request_id == "id 1"
    assert request.method_path == "echo.Echo/Say"
    assert dict(request.headers) == headers
    assert request.payload == b"\x00\x00\x00\x00\x01x"
    assert request.timeout_seconds == 9


def test_an_answer_comes_back_as_it_was_given(answerer, asker) -> None:
    asker.ask("1", SAY)
    answerer.receive_request()
    answerer.respond(
        "1", b"\x0a", status_code=418, headers={"X": "y", "grpc-status": "5"}, error_message="é"
    )
    response = asker.receive_response()
    assert (response.request_id, response.status_code, response.payload) == ("1", 418, b"\x0a")
    assert dict(response.headers) == {"X": "y", "grpc-status": "5"}
    assert response.error_message == "é"
    assert not response.HasField("response_stream_info")


def test_a_connector_may_call_itself(gateway, answerer) -> None:
    answerer.ask("1", SAY, b"\x0a")
    request = answerer.receive_request()
    assert (gateway.connections()[0].pending, gateway.connections()[0].asked) == (1, 1)
    answerer.respond(request.request_id, request.payload)
    assert answerer.receive_response().payload == b"\x0a"
    assert (gateway.connections()[0].pending, gateway.connections()[0].asked) == (0, 0)


def test_a_parent_of_the_service_and_a_name_without_a_dot_are_found(gateway, connect) -> None:
    connector = connect(gateway, "shop")
    for path in ("/shop.v1.Orders/Get", "/shop/Get"):
        connector.ask("1", path)
        assert connector.receive_request().method_path == path
        connector.respond("1")
        connector.receive_response()


@pytest.mark.parametrize(
    ("given", "headers", "kept"),
    [
        (0, {}, 7),
        (3, {}, 3),
        (300, {}, 7),
        (-1, {}, 7),
        (5, {"grpc-timeout": "1500m"}, 2),
        (0, {"grpc-timeout": "nonsense"}, 7),
    ],
)
def test_its_timeout_is_bounded_by_the_gateways(run_gateway, connect, given, headers, kept) -> None:
    connector = connect(run_gateway(request_timeout=7.0), "echo.Echo")
    connector.ask("1", SAY, timeout_seconds=given, headers=headers)
    assert connector.receive_request().timeout_seconds == kept


def test_its_timeout_does_not_depend_on_what_time_it_is(gateway, answerer, asker) -> None:
    loop = gateway._thread._loop
    real, began = loop.time, loop.time()
    # Seconds before a power of two, after which floats are half as fine.
    loop.time = lambda: 2.0**20 - 5.0 + (real() - began)
    for number in range(30):
        asker.ask(str(number), SAY, timeout_seconds=9)
        assert answerer.receive_request().timeout_seconds == 9


def test_a_service_nobody_serves_is_a_404(gateway, asker) -> None:
    asker.ask("1", "/other.Other/Get")
    assert_failed(asker.receive_response(), "1", 404, 5, "no connector serves other.Other")
    assert counted(gateway, "calls_unserved") == 1


@pytest.mark.parametrize("path", ["", "/", "/echo.Echo", "/echo.Echo/", "a/b/c"])
def test_a_path_that_names_no_method_is_a_400(asker, path) -> None:
    asker.ask("1", path)
    assert_failed(asker.receive_response(), "1", 400, 3, "not a method path")


def test_an_id_that_is_pending_is_refused_and_the_first_call_not_disturbed(
    gateway, connect, answerer, asker
) -> None:
    asker.ask("same", SAY, b"first")
    answerer.receive_request()
    other = connect(gateway)
    for connector in (other, asker):
        connector.ask("same", SAY, b"second")
        assert_failed(connector.receive_response(), "same", 409, 6, "'same' is pending already")
    answerer.respond("same", b"\x0a")
    assert asker.receive_response().payload == b"\x0a"
    asker.ask("same", SAY, b"third")  # it may be used again
    assert answerer.receive_request().payload == b"third"


def test_more_than_may_be_pending_is_a_429(run_gateway, connect) -> None:
    gateway = run_gateway(max_pending=1)
    connector = connect(gateway, "echo.Echo")
    connector.ask("1", SAY)
    connector.ask("2", SAY)
    assert connector.receive_request().request_id == "1"
    assert_failed(connector.receive_response(), "2", 429, 8, "max_pending")
    assert counted(gateway, "refused_max_pending") == 1


def test_an_answer_that_does_not_come_in_time_is_a_504(gateway, answerer, asker) -> None:
    asker.ask("1", SAY, headers={"grpc-timeout": "50m"})
    assert_failed(asker.receive_response(), "1", 504, 4, "did not answer in time")
    answerer.receive_request()
    answerer.respond("1", b"late")
    eventually(lambda: counted(gateway, "answers_late") == 1)


def test_a_call_under_way_when_the_gateway_stops_is_a_503(run_gateway, connect) -> None:
    gateway = run_gateway()
    connector = connect(gateway, "echo.Echo")
    connector.ask("1", SAY)
    connector.receive_request()
    connector.disconnect()  # so that its stream ends in order, with the answer before the end
    eventually(lambda: gateway.connections()[0].draining)
    gateway.stop(grace=0.0)
    assert_failed(connector.receive_response(), "1", 503, 14, "the gateway is stopping")


def test_large_metadata_is_a_429(run_gateway, connect) -> None:
    gateway = run_gateway(max_metadata_bytes=2000)
    connector = connect(gateway, "echo.Echo")
    connector.ask("1", SAY, headers={"a": "x" * 2000})
    assert_failed(connector.receive_response(), "1", 429, 8, "exceed 2,000 (the gateway's max_m")
    connector.ask("2", SAY, headers={"a": "x" * 1000})
    assert connector.receive_request().request_id == "2"


def test_a_key_calls_only_what_it_may(run_gateway, connect) -> None:
    gateway = run_gateway(api_keys={"key": None, "limited": ["own.*", "echo.Echo"]})
    connect(gateway, "echo.Echo", "bank.Bank")
    asker = connect(gateway, "own.Service", api_key="limited")
    asker.ask("1", "/bank.Bank/Rob")
    assert_failed(asker.receive_response(), "1", 403, 7, "may not call 'bank.Bank'")
    asker.ask("2", SAY)
    eventually(lambda: gateway.connections()[0].pending == 1)


def test_an_endless_id_is_not_answered(answerer, asker, caplog) -> None:
    asker.ask("x" * 257, SAY)
    asker.ask("x" * 256, SAY)
    assert answerer.receive_request().request_id == "x" * 256
    assert "ignored a request with no id or an endless one" in caplog.text


def test_calls_of_many_run_side_by_side(gateway, answerer, connect) -> None:
    askers = [connect(gateway) for _ in range(3)]
    for number, asker in enumerate(askers):
        for call in range(20):
            asker.ask(f"{number}/{call}", SAY, bytes([number, call]))
    requests = [answerer.receive_request() for _ in range(60)]
    for request in reversed(requests):
        answerer.respond(request.request_id, request.payload)
    for number, asker in enumerate(askers):
        answers = [asker.receive_response() for _ in range(20)]
        assert {answer.request_id: answer.payload for answer in answers} == {
            f"{number}/{call}": bytes([number, call]) for call in range(20)
        }


def test_nobody_waits_for_the_answers_to_a_connector_that_is_gone(gateway, answerer, asker) -> None:
    asker.ask("1", SAY)
    answerer.receive_request()
    asker.cancel()
    eventually(lambda: gateway.connections()[0].pending == 0)
    answerer.respond("1")
    eventually(lambda: counted(gateway, "answers_late") == 1)


def test_a_connector_that_leaves_gets_the_answers_to_its_calls_first(answerer, asker) -> None:
    asker.ask("1", SAY)
    asker.disconnect()
    answerer.receive_request()
    answerer.respond("1", b"\x0a")
    assert asker.receive_response().payload == b"\x0a"
    assert asker.ended()[0].name == "OK"


@pytest.mark.parametrize("features", [None, "chunks"])
def test_an_answer_too_large_for_whoever_asked_names_its_method(
    gateway, connect, answerer, features
) -> None:
    asker = connect(gateway, features=features, max_message_bytes=500)
    asker.ask("1", SAY)
    headers = {"x": "y" * 600}  # which no chunk can do without
    answerer.respond(answerer.receive_request().request_id, b"x" * 600, headers=headers)
    response = asker.receive_response()
    assert response.status_code == 429
    assert response.error_message.startswith(f"{SAY}: ")
    assert response.error_message.endswith("(the gateway's max_sent_message_bytes)")
