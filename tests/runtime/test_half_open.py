"""Links whose other end is gone, or deaf, without a word: found in the time that was promised."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from revconn import Connector, State
from revconn.testing import Fault
from revconn.transport import http2
from tests.support.apps import App
from tests.support.connectors import QUICK
from tests.support.network_namespace import NetworkNamespace
from tests.support.scripted_gateway import ScriptedGateway
from tests.support.threads import TIMEOUT
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
KEEPALIVE = {"keepalive_interval": 0.8, "keepalive_timeout": 0.7}
PROMISED = 1.5
SLOW_MACHINE = 1.5
MIB = 1 << 20


def time_to_find(connector: Connector) -> float:
    """Seconds until the connector serves no longer."""
    began = time.monotonic()
    eventually(lambda: connector.state is not State.READY)
    return time.monotonic() - began


@pytest.mark.parametrize("fault", [Fault.STALL, Fault.BLACK_HOLE], ids=lambda fault: fault.name)
def test_a_frozen_proxy_is_found_in_time(new_connector, gateway, proxy, fault) -> None:
    connector = new_connector(proxy.address, **KEEPALIVE)
    connector.start(block=False)
    gateway.accept_ready("id-1")
    connector.wait_ready(TIMEOUT)
    proxy.fault = fault
    assert time_to_find(connector) < PROMISED + SLOW_MACHINE
    proxy.fault = Fault.REFUSE
    proxy.reset_all()  # what was opened meanwhile has lost some of what was said
    proxy.fault = Fault.NONE
    gateway.accept_ready("id-2")
    eventually(lambda: connector.connection_id == "id-2")


def test_a_gateway_that_finds_pings_too_frequent_is_pinged_less_often(
    new_connector, caplog
) -> None:
    caplog.set_level(logging.INFO, "revconn")
    with ScriptedGateway(tolerates_pings=False) as gateway:
        connector = new_connector(gateway.address, keepalive_interval=0.05)
        connector.start(block=False)
        gateway.accept_ready("id-1")
        connector.wait_ready(TIMEOUT)
        gateway.accept_ready("id-2")
        eventually(lambda: connector.connection_id == "id-2")
        connector.abort()
    assert "finds keepalive pings too frequent: the interval is 0.1 s from now on" in caplog.text


@pytest.fixture
def other_host() -> Iterator[NetworkNamespace]:
    try:
        namespace = NetworkNamespace()
    except OSError as error:
        pytest.skip(f"no packets can be dropped here: {error}")
    with namespace:
        yield namespace


def test_a_pulled_cable_is_found_in_time_and_the_link_is_back_with_it(
    new_connector, other_host
) -> None:
    address = f"{other_host.address}:50051"
    serve = [sys.executable, "-m", "revconn", "gateway", f"--address={address}", "--api-key=key"]
    gateway = App(other_host.command(*serve), ROOT)
    try:
        gateway.hears("gateway listening on")
        connector = new_connector(address, tls=False, **{**KEEPALIVE, "connect_timeout": 1.0})
        connector.start(block=False)
        connector.wait_ready(TIMEOUT)
        other_host.pull_the_cable()
        assert time_to_find(connector) < PROMISED + SLOW_MACHINE
        other_host.plug_in()
        connector.wait_ready(TIMEOUT)
        assert connector.stats()["connections"] == 2
        connector.stop(TIMEOUT)
    finally:
        gateway.kill()


def test_a_peer_that_reads_nothing_is_found_without_pings_and_heartbeats(
    gateway, proxy, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(http2, "_SEND_STALL", 0.5)
    options = {**QUICK, "heartbeat_interval": 0.2, "liveness_timeout": None}
    connector = Connector(proxy.address, transport="http2", keepalive_interval=None, **options)
    let_go = threading.Event()
    connector.add_method("/echo.Echo/Say", lambda request: let_go.wait(TIMEOUT) and bytes(3 * MIB))
    connector.start(block=False)
    try:
        gateway.accept_ready("id-1").requests(*"abcdef")
        eventually(lambda: connector.stats()["in_flight"] == 6)
        proxy.fault = Fault.STALL
        let_go.set()
        eventually(lambda: "the gateway has read nothing for" in caplog.text)
        proxy.reset_all()
        proxy.fault = Fault.NONE
        gateway.accept_ready("id-2")
        eventually(lambda: connector.connection_id == "id-2")
    finally:
        let_go.set()
        connector.abort()
