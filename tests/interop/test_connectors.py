"""Connectors that are programs of their own: registered, alive, refused, and leaving."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from revconn.gateway import Gateway
from tests.interop.conftest import Interop, new_gateway
from tests.interop.peers import CONNECTORS, connector_command, needed
from tests.support.apps import App
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("connector", CONNECTORS)


def has_beaten(gateway: Gateway) -> bool:
    (connection,) = gateway.connections()
    return connection.heartbeat_age < connection.age


def test_a_connector_registers_its_service_and_sends_heartbeats(
    interop: Interop, connector: str
) -> None:
    gateway = interop.gateway(connector)
    eventually(lambda: has_beaten(gateway))
    (connection,) = gateway.connections()
    assert connection.services == ("demo.Greeter",)


def test_a_connector_takes_its_leave_when_it_is_told_to_end(
    interop: Interop, connector: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "revconn.gateway")
    with new_gateway() as gateway:
        app = interop.start_connector(connector, gateway)
        try:
            eventually(lambda: has_beaten(gateway))  # it knows its id then
            app.signal(signal.SIGTERM)
            assert app.wait() == 0, app.output
        finally:
            app.kill()
        eventually(lambda: not gateway.connections())
    assert " is leaving" in caplog.text


def test_a_connector_with_a_wrong_key_is_told_so(
    interop: Interop, connector: str, tmp_path: Path
) -> None:
    interop.workshop.needs(needed(connector))
    with new_gateway() as gateway:
        app = App(connector_command(connector, gateway.address, "a-wrong-key"), tmp_path)
        try:
            assert app.wait() != 0
        finally:
            app.kill()
    assert "Invalid token" in app.output
