"""Connector and embedded gateway together: what they can do because both announced it."""

from __future__ import annotations

import threading
import time

import grpc
import pytest

from revconn import Connector, Request
from revconn.gateway import ConnectionInfo
from revconn.link import records
from revconn.testing import TestGateway
from tests.support.waiting import eventually

METHOD = "/echo.Echo/Say"
TIMEOUT = 60.0


def serve(new_connector, gateway: TestGateway, handler) -> Connector:
    connector = new_connector(gateway.address, api_key=gateway.api_key)
    connector.add_method(METHOD, handler)
    connector.start(block=False)
    connector.wait_ready(TIMEOUT)
    return connector


def test_an_answer_of_20_mb_reaches_its_caller(revconn_gateway, new_connector) -> None:
    payload = b"\x0a" + bytes(range(250)) * 80_000
    serve(new_connector, revconn_gateway, lambda request: payload)
    assert revconn_gateway.call(METHOD, timeout=TIMEOUT) == payload


def test_a_caller_that_gives_up_stops_the_handler(revconn_gateway, new_connector) -> None:
    running, over = threading.Event(), threading.Event()

    def handle(request: Request) -> bytes:
        request.add_callback(over.set)
        running.set()
        assert over.wait(TIMEOUT)
        assert not request.is_active()
        return b""

    connector = serve(new_connector, revconn_gateway, handle)
    call = revconn_gateway.call_future(METHOD, timeout=TIMEOUT)
    assert running.wait(TIMEOUT)
    call.cancel()
    eventually(lambda: connector.stats()["late"] == 1)
    assert connector.stats()["cancelled"] == 1


def test_a_connector_leaves_under_load_at_once_and_loses_nothing(
    revconn_gateway, new_connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_QUIET_WAIT", TIMEOUT)

    def handle(request: Request) -> bytes:
        time.sleep(0.01)  # so that there is always something in flight
        return request.payload

    first = serve(new_connector, revconn_gateway, handle)
    serve(new_connector, revconn_gateway, handle)
    enough = threading.Event()
    failures: list[grpc.RpcError] = []
    counts = [0] * 8

    def call(caller: int) -> None:
        while not enough.is_set():
            try:
                revconn_gateway.call(METHOD, b"hello", timeout=TIMEOUT)
                counts[caller] += 1
            except grpc.RpcError as error:
                failures.append(error)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(len(counts))]
    for caller in callers:
        caller.start()
    eventually(lambda: first.stats()["answered"] > 20)
    began = time.monotonic()
    first.stop()
    took = time.monotonic() - began
    before = sum(counts)
    eventually(lambda: sum(counts) > before + 20)
    enough.set()
    for caller in callers:
        caller.join(TIMEOUT)
    assert failures == []
    assert took < TIMEOUT / 2, "no wait for a quiet moment"


def has_beaten(connection: ConnectionInfo) -> bool:
    return connection.heartbeat_age < connection.age


def test_the_gateways_patience_is_met(make_revconn_gateway, new_connector) -> None:
    gateway = make_revconn_gateway(heartbeat_timeout=4.5)
    connector = serve(new_connector, gateway, lambda request: b"")
    (link,) = connector._supervisor.links
    assert next(iter(link._sessions)).terms.heartbeat_interval == pytest.approx(1.5)
    first = connector.connection_id
    heard = eventually(lambda: [each for each in gateway.connections() if has_beaten(each)])
    assert [each.connection_id for each in heard] == [first]
    assert heard[0].age < 4.5
