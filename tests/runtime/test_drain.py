"""Leaving a gateway that knows draining, over real sockets."""

from __future__ import annotations

import queue
import threading
import time
from typing import Callable

import grpc
import pytest

from revconn import Backoff, Connector, Request, State, supervisor
from revconn._proto.registry_pb2 import ConnectionStatus
from revconn.link import records
from tests.support.connectors import NEVER
from tests.support.scripted_gateway import Peer, ScriptedGateway
from tests.support.threads import in_thread
from tests.support.waiting import eventually

TIMEOUT = 60.0
LONG_BEFORE_A_QUIET_WAIT = 30.0


class Handler:
    """Holds every request until all are let go."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.let_go = threading.Event()

    def __call__(self, request: Request) -> bytes:
        self.entered.append(request.request_id)
        assert self.let_go.wait(TIMEOUT)
        return b"done"


@pytest.fixture
def handler():
    handler = Handler()
    yield handler
    handler.let_go.set()


@pytest.fixture
def connect(new_connector, handler) -> Callable[..., Connector]:
    def connect(*gateways: ScriptedGateway, **options) -> tuple[Connector, list[Peer]]:
        connector = new_connector([gateway.address for gateway in gateways], **options)
        connector.add_method("/echo.Echo/Say", handler)
        connector.start(block=False)
        peers = [gateway.accept_ready() for gateway in gateways]
        eventually(lambda: all(link.connection_id for link in connector.links))
        connector.wait_ready(TIMEOUT)
        return connector, peers

    return connect


def deliver(handler: Handler, connector: Connector, peer: Peer) -> None:
    """Have a request answered that its caller could wait for long."""
    handler.let_go.set()
    peer.request("answered", timeout_seconds=3600)
    assert peer.hears("response").request_id == "answered"
    peer.status(ConnectionStatus.DISCONNECTED, "id-1", "stopping")
    peer.end()
    eventually(lambda: not connector.links[0].connection_id)


def test_no_answer_waits_for_another_stream_that_a_gateway_which_leaves_has_had(
    connect, handler, gateway
) -> None:
    gateway.announces = {"revconn-features": "drain"}
    connector, (peer,) = connect(gateway, backoff=Backoff(**NEVER))
    deliver(handler, connector, peer)
    assert connector._supervisor.links[0].wait_flushed(0.0)


def test_what_a_gateway_that_does_not_drain_may_not_have_had_waits_for_another_stream(
    connect, handler, gateway
) -> None:
    connector, (peer,) = connect(gateway, backoff=Backoff(**NEVER))
    deliver(handler, connector, peer)
    assert not connector._supervisor.links[0].wait_flushed(0.0)


def test_the_goodbye_is_said_at_once_and_what_is_in_flight_is_answered_after_it(
    connect, handler, gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_QUIET_WAIT", TIMEOUT)
    gateway.announces = {"revconn-features": "drain"}
    connector, (peer,) = connect(gateway)
    peer.request("in flight")
    eventually(lambda: handler.entered == ["in flight"])
    began = time.monotonic()
    stopping = in_thread(connector.stop)
    assert peer.hears("status").status == ConnectionStatus.DISCONNECTED
    peer.request("on its way")
    eventually(lambda: handler.entered == ["in flight", "on its way"])
    handler.let_go.set()
    assert set(peer.answers(2)) == {"in flight", "on its way"}
    assert not stopping.done(), "the gateway says when all is settled"
    peer.end()
    stopping.result(TIMEOUT)
    assert time.monotonic() - began < LONG_BEFORE_A_QUIET_WAIT


def test_an_idle_connector_is_gone_as_soon_as_the_gateway_lets_it_go(
    connect, gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_QUIET_WAIT", TIMEOUT)
    gateway.announces = {"revconn-features": "drain"}
    connector, (peer,) = connect(gateway)
    began = time.monotonic()
    stopping = in_thread(connector.stop)
    peer.hears_goodbye()
    stopping.result(TIMEOUT)
    assert time.monotonic() - began < LONG_BEFORE_A_QUIET_WAIT


def test_what_is_in_flight_when_the_stream_breaks_is_answered_on_another(
    connect, handler, gateway
) -> None:
    gateway.announces = {"revconn-features": "drain"}
    connector, (peer,) = connect(gateway)
    peer.request("in flight")
    eventually(lambda: handler.entered == ["in flight"])
    stopping = in_thread(connector.stop)
    assert peer.hears("status").status == ConnectionStatus.DISCONNECTED
    peer.end(grpc.StatusCode.UNAVAILABLE, "the network is to blame")
    following = gateway.accept()
    assert list(following.hears("register").services) == []
    following.connected("id-2")
    eventually(lambda: connector.connection_id == "id-2")
    handler.let_go.set()
    assert following.answer("in flight").payload == b"done"
    following.hears_goodbye()
    stopping.result(TIMEOUT)


def test_what_came_before_a_break_is_answered_before_the_goodbye_on_the_next(
    connect, handler, gateway
) -> None:
    gateway.announces = {"revconn-features": "drain"}
    connector, (peer,) = connect(gateway)
    peer.request("came before")
    eventually(lambda: handler.entered == ["came before"])
    peer.end(grpc.StatusCode.UNAVAILABLE, "the network is to blame")
    following = gateway.accept_ready("id-2")
    eventually(lambda: connector.connection_id == "id-2")
    stopping = in_thread(connector.stop)
    with pytest.raises(queue.Empty):
        following.hears("status", timeout=0.5)
    handler.let_go.set()
    following.answer("came before")
    following.hears_goodbye()
    stopping.result(TIMEOUT)


def test_a_goodbye_said_late_leaves_time_for_what_is_on_its_way(
    connect, handler, gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LINGER", 3.0)
    gateway.announces = {"revconn-features": "cancel,chunks"}
    connector, (peer,) = connect(gateway)
    peer.request("long")
    eventually(lambda: handler.entered)
    began = time.monotonic()
    stopping = in_thread(connector.stop)
    time.sleep(max(0.0, began + 2.8 - time.monotonic()))
    handler.let_go.set()
    peer.answer("long")
    assert peer.hears("status").status == ConnectionStatus.DISCONNECTED
    time.sleep(0.4)  # the network is slow
    peer.request("on its way")
    peer.answer("on its way")
    peer.end()
    stopping.result(TIMEOUT)


def test_an_inline_handler_that_is_not_done_when_the_time_runs_out_is_given_up_as_others_are(
    new_connector, handler, gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_FLUSH_WAIT", TIMEOUT)
    gateway.announces = {"revconn-features": "drain"}
    connector = new_connector(gateway.address)
    connector.add_method("/echo.Echo/Say", handler, inline=True)
    connector.start(block=False)
    peer = gateway.accept_ready()
    connector.wait_ready(TIMEOUT)
    peer.request()
    eventually(lambda: handler.entered)
    stopping = in_thread(connector.stop, 0.1)
    assert peer.hears("status").status == ConnectionStatus.DISCONNECTED
    assert peer.answer().status_code == 503, "and that still leaves"
    handler.let_go.set()
    peer.end()
    stopping.result(TIMEOUT)


def test_a_gateway_that_does_not_let_go_is_left_all_the_same(connect, gateway) -> None:
    gateway.announces = {"revconn-features": "drain"}
    connector, (peer,) = connect(gateway)
    connector.stop(timeout=0.2)
    assert peer.hears("status").status == ConnectionStatus.DISCONNECTED
    peer.hears_hang_up()


def test_a_gateway_that_ends_no_stream_is_left_when_nothing_has_come_for_a_while(
    connect, gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LINGER", 0.2)
    monkeypatch.setattr(supervisor, "_FLUSH_WAIT", 0.1)
    gateway.announces = {"revconn-features": "drain"}
    connector, (peer,) = connect(gateway)
    began = time.monotonic()
    connector.stop(timeout=TIMEOUT)
    assert time.monotonic() - began < TIMEOUT / 2
    assert peer.hears("status").status == ConnectionStatus.DISCONNECTED
    peer.hears_hang_up()


def test_each_request_that_comes_after_the_goodbye_gives_its_gateway_that_while_anew(
    connect, gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LINGER", 2.0)
    gateway.announces = {"revconn-features": "drain"}
    connector, (peer,) = connect(gateway)
    connector.add_method("/echo.Echo/Say", lambda request: request.payload, replace=True)
    stopping = in_thread(connector.stop, TIMEOUT)
    assert peer.hears("status").status == ConnectionStatus.DISCONNECTED
    for request_id in ("late", "later"):  # the second comes when the first while would be over
        time.sleep(1.2)
        peer.request(request_id)
        peer.answer(request_id)
    peer.end()
    stopping.result(TIMEOUT)


def test_without_the_feature_the_goodbye_waits_until_what_is_in_flight_is_answered(
    connect, handler, gateway
) -> None:
    gateway.announces = {"revconn-features": "cancel,chunks"}
    connector, (peer,) = connect(gateway)
    peer.request()
    eventually(lambda: handler.entered)
    stopping = in_thread(connector.stop)
    eventually(lambda: connector.state.name == "DRAINING")
    handler.let_go.set()
    peer.answer()
    peer.hears_goodbye()
    stopping.result(TIMEOUT)


def test_the_goodbye_waits_for_an_inline_handler(new_connector, handler, gateway) -> None:
    gateway.announces = {"revconn-features": "cancel,chunks"}
    connector = new_connector(gateway.address)
    connector.add_method("/echo.Echo/Say", handler, inline=True)
    connector.start(block=False)
    peer = gateway.accept_ready()
    connector.wait_ready(TIMEOUT)
    peer.request()
    eventually(lambda: handler.entered)
    stopping = in_thread(connector.stop)
    with pytest.raises(queue.Empty):
        peer.hears("status", timeout=0.5)
    handler.let_go.set()
    peer.answer()
    peer.hears_goodbye()
    stopping.result(TIMEOUT)


def test_a_link_without_a_connection_leaves_though_another_gateways_requests_are_in_flight(
    connect, handler, gateway
) -> None:
    with ScriptedGateway() as other:
        connector, (plain, broken) = connect(gateway, other, backoff=Backoff(**NEVER))
        plain.request("busy")
        eventually(lambda: handler.entered)
        broken.end()
        lost = connector._supervisor.links[1]
        eventually(lambda: lost.state is State.BACKING_OFF)
        stopping = in_thread(connector.stop)
        eventually(lambda: lost.state is State.CLOSED)
        handler.let_go.set()
        plain.answer("busy")
        plain.hears_goodbye()
        stopping.result(TIMEOUT)


def test_of_two_gateways_only_the_one_that_drains_hears_the_goodbye_at_once(
    connect, handler, gateway
) -> None:
    gateway.announces = {"revconn-features": "drain"}
    with ScriptedGateway() as other:
        connector, (draining, plain) = connect(gateway, other)
        plain.request("busy")
        eventually(lambda: handler.entered)
        stopping = in_thread(connector.stop)
        draining.hears_goodbye()
        handler.let_go.set()
        plain.answer("busy")
        plain.hears_goodbye()
        stopping.result(TIMEOUT)
