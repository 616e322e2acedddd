"""Calls of a connector to itself through a gateway, over sockets."""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from typing import Any, Callable

import grpc
import pytest

from revconn import Connector
from revconn._proto.registry_pb2 import ConnectionMessage, ForwardRequest, ForwardResponse
from revconn.gateway import Gateway
from tests.support.reference_gateway import ReferenceGateway
from tests.support.scripted_connector import ScriptedConnector
from tests.support.scripted_gateway import Peer
from tests.support.waiting import eventually

TIMEOUT = 60.0
# The timer looks as often as it beats. Only where silence is meant is there little patience.
PROBED: dict[str, Any] = {"probe_interval": 0.1, "heartbeat_interval": 0.1}
IMPATIENT: dict[str, Any] = {"keepalive_timeout": 1.0}


def forward(peer: Peer, probe: ForwardRequest) -> None:
    """Do what a gateway does with a call of a connector to itself."""
    peer.say(ConnectionMessage(request=probe))
    answer = peer.hears("response")
    assert answer.request_id == probe.request_id
    peer.say(ConnectionMessage(response=answer))


def refuse(peer: Peer, probe: ForwardRequest, status: int, error: str) -> None:
    response = ForwardResponse(request_id=probe.request_id, status_code=status, error_message=error)
    peer.say(ConnectionMessage(response=response))


@pytest.fixture
def serve(new_connector) -> Callable[..., Connector]:
    def serve(address: str, **options: Any) -> Connector:
        connector = new_connector(address, **{**PROBED, **options})
        connector.add_method("/echo.Echo/Say", lambda request: request.payload)
        connector.start(block=False)
        return connector

    return serve


def test_a_probe_is_a_call_of_what_is_served_and_no_handler_sees_it(serve, gateway) -> None:
    seen = []
    connector = serve(gateway.address)
    connector.add_service("echo.Echo", seen.append)
    peer = gateway.accept()
    assert list(peer.hears("register").services) == ["echo.Echo"]
    peer.connected()
    ids = set()
    for _ in range(3):
        probe = peer.hears("request")
        assert probe.method_path == "/echo.Echo/RevconnProbe"
        ids.add(uuid.UUID(probe.request_id))
        forward(peer, probe)
    assert len(ids) == 3
    assert 0 < eventually(lambda: connector.stats().get("probe_round_trip")) < TIMEOUT
    assert connector.stats()["accepted"] == 0
    assert connector.stats()["connections"] == 1
    assert not seen


def test_a_connector_that_does_not_probe_answers_others_that_do(serve, gateway) -> None:
    connector = serve(gateway.address, probe_interval=None)
    peer = gateway.accept_ready()
    peer.request("another's", method="/echo.Echo/RevconnProbe")
    answer = peer.answer("another's")
    assert answer.status_code == 200
    assert len(answer.payload) == 32
    assert connector.stats()["accepted"] == 0


def test_without_an_interval_there_is_no_probe_and_no_private_service(serve, gateway) -> None:
    connector = serve(gateway.address, probe_interval=None, heartbeat_interval=0.05)
    peer = gateway.accept()
    assert list(peer.hears("register").services) == ["echo.Echo"]
    peer.connected()
    for _ in range(5):
        assert peer.hears_any().WhichOneof("message_type") == "heartbeat"
    assert "probe_round_trip" not in connector.stats()


def test_an_unanswered_probe_retires_the_connection(serve, gateway, caplog) -> None:
    connector = serve(gateway.address, **IMPATIENT)
    first = gateway.accept_ready("id-1")
    forward(first, first.hears("request"))
    first.hears("request")  # and nothing comes of it
    second = gateway.accept_ready("id-2")
    forward(second, second.hears("request"))
    eventually(lambda: connector.connection_id == "id-2")
    reason = "a call to itself through the gateway (echo.Echo) was unanswered for 1 s"
    assert f"lost the connection: {gateway.address}: {reason}" in caplog.text


@pytest.mark.parametrize("status", [404, 500])
def test_a_gateway_that_cannot_route_such_calls_is_soon_not_asked_any_more_and_named_once(
    serve, gateway, caplog, status
) -> None:
    connector = serve(gateway.address, heartbeat_interval=0.05)
    peer = gateway.accept_ready("id-1")
    for _ in range(16):  # any of these might have been another replica's answer
        refuse(peer, peer.hears("request"), status, "what\nis that?")
    eventually(lambda: "no probes any more" in caplog.text)
    for _ in range(10):
        assert peer.hears_any().WhichOneof("message_type") == "heartbeat"
    assert connector.stats()["connections"] == 1
    peer.end()
    second = gateway.accept_ready("id-2")
    for _ in range(10):
        assert second.hears_any().WhichOneof("message_type") == "heartbeat"
    (line,) = (r.getMessage() for r in caplog.records if "no probes" in r.getMessage())
    assert line == (
        f"{gateway.address}: no probes any more: the gateway does not route such calls"
        f" (echo.Echo): {status}, what is that?"
    )


def test_a_route_that_is_gone_retires_the_connection(serve, gateway, caplog) -> None:
    serve(gateway.address)
    peer = gateway.accept_ready("id-1")
    forward(peer, peer.hears("request"))
    for _ in range(2):
        refuse(peer, peer.hears("request"), 500, "No reverse connection found for service: ...")
    gateway.accept_ready("id-2")
    lost = "the gateway no longer routes requests to this connection (echo.Echo): 500, No reverse"
    assert lost in caplog.text


def test_a_service_that_gets_no_route_costs_one_connection_and_one_line(
    serve, gateway, caplog
) -> None:
    connector = serve(gateway.address)
    nobody = "No reverse connection found for service: echo.Echo"
    for connection_id in ("id-1", "id-2"):
        peer = gateway.accept_ready(connection_id)
        for _ in range(2):
            refuse(peer, peer.hears("request"), 500, nobody)
    for _ in range(4):
        refuse(peer, peer.hears("request"), 500, nobody)
    assert connector.connection_id == "id-2"
    lines = [record.getMessage() for record in caplog.records]
    said = [line for line in lines if "not on a new connection either" in line]
    assert said == [
        f"{gateway.address}: the gateway has no route of it, not on a new connection either"
        f" (echo.Echo): 500, {nobody}"
    ]


def test_while_requests_are_held_back_the_gateway_is_not_blamed(serve, gateway) -> None:
    let_go = threading.Event()
    connector = serve(gateway.address, max_in_flight_bytes=1000, keepalive_timeout=0.5)
    connector.add_method("/echo.Echo/Hold", lambda request: let_go.wait(TIMEOUT) and b"")
    peer = gateway.accept_ready("id-1")
    forward(peer, peer.hears("request"))
    peer.request("r1", method="/echo.Echo/Hold", payload=b"x" * 2000)
    eventually(lambda: connector.stats()["in_flight"] == 1)
    peer.hears("request")
    waited = threading.Event()
    assert not waited.wait(1.0)  # real time, twice the patience: it must not be lost meanwhile
    assert connector.stats()["connections"] == 1
    let_go.set()
    while (message := peer.hears_any()).WhichOneof("message_type") != "response":
        assert not message.HasField("status"), "a copy of the probe, at most"
    assert message.response.request_id == "r1"
    assert connector.connection_id == "id-1"


# At whole gateways


def test_the_embedded_gateway_routes_probes(serve) -> None:
    with Gateway(api_keys="key") as gateway:
        connector = serve(gateway.address)
        connector.wait_ready(TIMEOUT)
        assert 0 < eventually(lambda: connector.stats().get("probe_round_trip")) < TIMEOUT
        with grpc.insecure_channel(gateway.address) as channel:
            say = channel.unary_unary("/echo.Echo/Say")
            assert say(b"hello", timeout=TIMEOUT) == b"hello"
        connector.stop()
        assert connector.stats()["connections"] == 1


def test_a_connection_that_the_embedded_gateway_forgot_is_found(
    serve, revconn_gateway, revconn_faults
) -> None:
    connector = serve(revconn_gateway.address, api_key=revconn_gateway.api_key)
    eventually(lambda: connector.stats().get("probe_round_trip"))
    revconn_faults.forget()
    revconn_gateway.wait_connected()
    assert revconn_gateway.call("/echo.Echo/Say", b"hello") == b"hello"


def test_a_gateway_that_locked_up_is_found_though_it_answers_pings(serve, caplog) -> None:
    with ReferenceGateway(max_message_bytes=64 << 20) as gateway:
        connector = serve(gateway.address, keepalive_interval=0.05, **IMPATIENT)
        eventually(lambda: connector.stats().get("probe_round_trip"))
        gateway._locked_up.set()
        eventually(lambda: "unanswered for 1 s: requests may not come" in caplog.text)
        assert "no answer to a ping" not in caplog.text


def test_a_gateway_with_too_many_pending_requests_is_not_left_for_it(serve, caplog) -> None:
    caplog.set_level(logging.DEBUG, "revconn.core.connector_side")
    with ReferenceGateway(max_pending=1) as gateway:
        connector = serve(gateway.address)
        eventually(lambda: connector.stats().get("probe_round_trip"))
        let_go = threading.Event()
        connector.add_method("/echo.Echo/Hold", lambda request: let_go.wait(TIMEOUT) and b"held")
        while (held := gateway.call("/echo.Echo/Hold")).done():
            pass  # a probe was pending just then
        refused = "a probe of echo.Echo came to nothing: 500, Too many pending requests"
        eventually(lambda: caplog.text.count(refused) >= 3)
        let_go.set()
        assert held.result(TIMEOUT).payload == b"held"
        assert connector.stats()["connections"] == 1


def test_a_half_forgotten_service_is_found_though_the_others_are_there(serve, caplog) -> None:
    with ReferenceGateway() as gateway:
        connector = serve(gateway.address, services=["echo.Echo", "other.Other"])
        eventually(lambda: connector.stats().get("probe_round_trip"))
        gateway.half_forget("echo.Echo")
        lost = "no longer routes requests to this connection (echo.Echo)"
        eventually(lambda: lost in caplog.text)
        eventually(lambda: connector.stats()["connections"] == 2)
        eventually(lambda: gateway.routes("echo.Echo"))
        assert gateway.call("/echo.Echo/Say", b"hello").result(TIMEOUT).payload == b"hello"


def test_replicas_prove_each_their_own_route(serve) -> None:
    with ReferenceGateway() as gateway:
        replicas = [serve(gateway.address) for _ in range(3)]
        for replica in replicas:
            eventually(lambda replica=replica: replica.stats().get("probe_round_trip"))
        assert not threading.Event().wait(1.0)  # real time: ten rounds in which none may be lost
        assert [replica.stats()["connections"] for replica in replicas] == [1, 1, 1]


def test_a_replica_whose_route_is_gone_is_found_while_the_others_answer(serve, caplog) -> None:
    with ReferenceGateway() as gateway:
        first, second = serve(gateway.address), serve(gateway.address)
        for replica in (first, second):
            eventually(lambda replica=replica: replica.stats().get("probe_round_trip"))
        with gateway._lock:
            gateway._unroute(first.connection_id, "echo.Echo")
        eventually(lambda: first.stats()["connections"] == 2)
        eventually(lambda: len(gateway.routes("echo.Echo")) == 2)
        assert second.stats()["connections"] == 1
        assert "(echo.Echo): 200, answered by others" in caplog.text


def test_beside_replicas_that_know_no_probes_none_is_lost(serve) -> None:
    """Older ones, or ones in another language."""
    with ReferenceGateway() as gateway, ScriptedConnector(gateway.address) as older:
        older.register("echo.Echo")

        def answer() -> None:
            with contextlib.suppress(Exception):  # until the end
                while True:
                    request_id = older.receive_request().request_id
                    older.respond(request_id, status_code=404, error_message="unknown method")

        answering = threading.Thread(target=answer)
        answering.start()
        connector = serve(gateway.address)
        eventually(lambda: connector.stats().get("probe_round_trip"))
        assert not threading.Event().wait(1.0)  # real time: ten rounds
        assert connector.stats()["connections"] == 1
        connector.stop()
    answering.join(TIMEOUT)
