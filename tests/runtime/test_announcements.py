"""What a connector and a gateway announce as the stream opens, over real sockets."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from revconn import Connector
from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardResponse,
    Heartbeat,
)
from revconn.runtime import clock
from tests.support.waiting import eventually


def start(new_connector, gateway, **options) -> Connector:
    connector = new_connector(gateway.address, **options)
    connector.add_method("/echo.Echo/Say", lambda request: request.payload)
    connector.start(block=False)
    return connector


def test_a_connector_announces_its_features_in_the_streams_metadata(new_connector, gateway) -> None:
    start(new_connector, gateway)
    assert gateway.accept().metadata["revconn-features"] == "cancel,chunks,drain,metadata,streams"


def test_a_gateway_that_announced_nothing_hears_the_published_protocol_byte_for_byte(
    new_connector, gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = start(new_connector, gateway)
    peer = gateway.accept_ready()
    connector.wait_ready(10.0)
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    (link,) = connector._supervisor.links
    session = next(iter(link._sessions))
    session._look(clock.with_suspend() + 30.0)  # a heartbeat is due by then
    peer.hears("heartbeat")
    peer.request("r1", payload=b"hello")
    peer.answer("r1")
    stopping = threading.Thread(target=connector.stop)
    stopping.start()
    peer.hears_goodbye()
    stopping.join()
    published = [
        ConnectionMessage(register=ConnectionRegister(api_key="key", services=["echo.Echo"])),
        ConnectionMessage(heartbeat=Heartbeat(timestamp=1_700_000_000, connection_id="id-1")),
        ConnectionMessage(
            response=ForwardResponse(request_id="r1", status_code=200, payload=b"hello")
        ),
        ConnectionMessage(
            status=ConnectionStatus(connection_id="id-1", status=ConnectionStatus.DISCONNECTED)
        ),
    ]
    assert peer.heard_bytes == [message.SerializeToString() for message in published]


def test_heartbeats_come_as_often_as_the_gateways_patience_asks_for(
    new_connector, gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.announces = {"revconn-heartbeat-timeout": "1.5"}
    with caplog.at_level(logging.INFO, "revconn"):
        start(new_connector, gateway)
        peer = gateway.accept_ready()
        for _ in range(3):
            peer.hears("heartbeat")
    assert (
        "heartbeat_interval 0.5 s, not 30, liveness_timeout 1.125 s, not 90:"
        " the gateway forgets a connection after 1.5 s" in caplog.text
    )


def test_what_gave_way_is_logged_once_and_again_when_it_changes(
    new_connector, gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.announces = {"revconn-max-message-bytes": "2048"}
    with caplog.at_level(logging.INFO, "revconn"):
        connector = start(new_connector, gateway)
        for limit in ("2048", "4096"):
            peer = gateway.accept_ready()
            gateway.announces = {"revconn-max-message-bytes": limit}
            peer.end()
        gateway.accept_ready()
        eventually(lambda: "max_message_bytes 4,096" in caplog.text)
        assert connector.stats()["connections"] == 3
    said = [record.getMessage() for record in caplog.records if "max_message" in record.message]
    assert [line.partition(": ")[2] for line in said] == [
        "max_message_bytes 2,048, not 4,194,304: the gateway takes nothing larger",
        "max_message_bytes 4,096, not 4,194,304: the gateway takes nothing larger",
    ]


def test_an_announcement_that_makes_no_sense_is_logged_and_changes_nothing(
    new_connector, gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.announces = {
        "revconn-features": ",,;?," + "x" * 2000,
        "revconn-heartbeat-timeout": "soon",
        "revconn-max-message-bytes": "-1",
    }
    with caplog.at_level(logging.INFO, "revconn"):
        start(new_connector, gateway)
        peer = gateway.accept_ready()
        peer.request("r1", payload=b"hello")
        assert peer.answer("r1").payload == b"hello"
    assert "ignored the gateway's revconn-heartbeat-timeout: 'soon' cannot be" in caplog.text
    assert "ignored the gateway's revconn-max-message-bytes: '-1' cannot be" in caplog.text
