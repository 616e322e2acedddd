from __future__ import annotations

import threading
from typing import Callable

import grpc
import pytest

from revconn import ConfigurationError, Connector, RequestError, State, StatusCode
from revconn._proto.demo_pb2 import HelloRequest
from revconn._proto.registry_pb2 import RegisterRequest
from revconn.testing import TestGateway
from tests.support.backend import Backend
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"


@pytest.fixture
def connector(revconn_gateway: TestGateway, new_connector: Callable[..., Connector]) -> Connector:
    connector = new_connector(revconn_gateway.address, api_key=revconn_gateway.api_key)
    connector.add_method(SAY, lambda request: b"Echo: " + request.payload)
    connector.start(block=False)
    connector.wait_ready(10.0)
    return connector


def test_a_call_is_answered(revconn_gateway: TestGateway, connector: Connector) -> None:
    assert revconn_gateway.call(SAY, b"hello") == b"Echo: hello"


def test_messages_are_encoded(revconn_gateway: TestGateway, connector: Connector) -> None:
    answer = revconn_gateway.call(SAY, HelloRequest(name="you"))
    assert answer == b"Echo: " + HelloRequest(name="you").SerializeToString()


def test_headers_travel(revconn_gateway: TestGateway, connector: Connector) -> None:
    connector.add_method("/echo.Echo/Who", lambda request: request.headers["x-user"].encode())
    assert revconn_gateway.call("/echo.Echo/Who", headers={"x-user": "ann"}) == b"ann"


def test_a_failure_has_its_status(revconn_gateway: TestGateway, connector: Connector) -> None:
    @connector.method("/echo.Echo/Fail")
    def fail(request):
        raise RequestError(StatusCode.NOT_FOUND, "no such order")

    with pytest.raises(grpc.RpcError) as failed:
        revconn_gateway.call("/echo.Echo/Fail")
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert failed.value.details() == "no such order"


def test_stubs_call_over_the_channel(revconn_gateway: TestGateway, connector: Connector) -> None:
    say = revconn_gateway.channel.unary_unary(
        SAY, HelloRequest.SerializeToString, lambda answer: answer
    )
    assert say(HelloRequest(), timeout=60.0) == b"Echo: "


def test_a_connector_with_another_key_is_refused(
    revconn_gateway: TestGateway, new_connector: Callable[..., Connector]
) -> None:
    with pytest.raises(Exception, match="Invalid token"):
        new_connector(revconn_gateway.address, api_key="another").start()


@pytest.mark.parametrize("times", [1, 2])
def test_a_connector_comes_back_to_the_same_address_after_a_restart(
    revconn_gateway: TestGateway, connector: Connector, times: int
) -> None:
    address, before = revconn_gateway.address, connector.connection_id
    assert revconn_gateway.call(SAY, b"hello") == b"Echo: hello"
    for _ in range(times):
        revconn_gateway.restart()
    (connection,) = revconn_gateway.wait_connected()
    assert connection.connection_id != before
    assert revconn_gateway.address == address
    assert revconn_gateway.call(SAY, b"hello") == b"Echo: hello"


def test_during_an_outage_nobody_is_connected_and_a_call_waits(
    revconn_gateway: TestGateway, connector: Connector
) -> None:
    assert revconn_gateway.call(SAY) == b"Echo: "
    revconn_gateway.stop()
    eventually(lambda: connector.state is not State.READY)
    assert revconn_gateway.connections() == ()
    waiting = revconn_gateway.call_future("/registry.RegistryService/Nothing")
    with pytest.raises(grpc.FutureTimeoutError):
        waiting.result(timeout=0.1)
    revconn_gateway.start()
    revconn_gateway.wait_connected()
    assert waiting.exception().code() is grpc.StatusCode.UNAVAILABLE  # it is no service of ours


def test_calls_under_way_are_answered_in_the_grace_of_a_stop(
    revconn_gateway: TestGateway, connector: Connector
) -> None:
    running, let_go = threading.Event(), threading.Event()

    @connector.method("/echo.Echo/Wait")
    def wait(request):
        running.set()
        let_go.wait(10.0)
        return b"done"

    waiting = revconn_gateway.call_future("/echo.Echo/Wait")
    assert running.wait(10.0)
    threading.Timer(0.1, let_go.set).start()
    revconn_gateway.stop(grace=10.0)
    assert waiting.result() == b"done"


def test_a_wait_for_connectors_that_do_not_come_says_how_many_there_are(
    revconn_gateway: TestGateway, connector: Connector
) -> None:
    problem = f"0.01 seconds 1 of 2 connectors are connected to {connector.links[0].target}; 0 att"
    with pytest.raises(TimeoutError, match=problem):
        revconn_gateway.wait_connected(2, timeout=0.01)


def test_a_connector_that_leaves_does_not_count(
    revconn_gateway: TestGateway, connector: Connector
) -> None:
    connector.stop()
    eventually(lambda: revconn_gateway.connections() == ())


def test_options_are_the_gateways(
    make_revconn_gateway: Callable[..., TestGateway], new_connector: Callable[..., Connector]
) -> None:
    gateway = make_revconn_gateway(api_key="mine", request_timeout=0.1)
    connector = new_connector(gateway.address, api_key="mine")
    let_go = threading.Event()
    connector.add_method(SAY, lambda request: let_go.wait(10.0) and b"")
    connector.start(block=False)
    gateway.wait_connected()
    with pytest.raises(grpc.RpcError) as failed:
        gateway.call(SAY, timeout=60.0)
    let_go.set()
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_several_gateways_do_not_disturb_each_other(
    make_revconn_gateway: Callable[..., TestGateway], new_connector: Callable[..., Connector]
) -> None:
    first, second = make_revconn_gateway(), make_revconn_gateway()
    connector = new_connector([first.address, second.address], api_key=first.api_key)
    connector.add_method(SAY, lambda request: b"here")
    connector.start(block=False)
    first.wait_connected()
    second.wait_connected()
    first.stop()
    assert second.call(SAY) == b"here"


@pytest.mark.parametrize("option", ["address", "api_keys", "tls"])
def test_an_option_that_it_chooses_itself_is_refused(option: str) -> None:
    with pytest.raises(ConfigurationError, match=option):
        TestGateway(**{option: None})


def test_an_option_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="request_timeout"):
        TestGateway(request_timeout=-1)
    with pytest.raises(ConfigurationError, match="api_key"):
        TestGateway(api_key="")


def test_its_repr_names_the_address_and_not_the_key(revconn_gateway: TestGateway) -> None:
    assert repr(revconn_gateway) == f"<TestGateway {revconn_gateway.address}>"


def test_closing_twice_is_once(revconn_gateway: TestGateway) -> None:
    revconn_gateway.close()
    revconn_gateway.close()


def test_a_service_of_the_test_that_listens_itself_is_dialled(
    revconn_gateway: TestGateway,
) -> None:
    with Backend() as backend:
        request = RegisterRequest(
            api_key=revconn_gateway.api_key, address=backend.address, services=["own.Own"]
        )
        revconn_gateway.call("/registry.RegistryService/Register", request)
        assert revconn_gateway.call("/own.Own/Say", b"x") == b"x"
