"""A gateway's words may hold the API key that it was shown: neither log nor error do then."""

from __future__ import annotations

import logging
import traceback

import grpc
import pytest

from revconn import AuthenticationError
from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus
from tests.support.scripted_gateway import ScriptedGateway
from tests.support.scripted_http2 import ScriptedHttp2
from tests.support.waiting import eventually

KEY = "secret-key-0123456789"
TIMEOUT = 30.0


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "revconn")


@pytest.mark.parametrize("words", [f"Invalid token: {KEY}", f"{'x' * 985} {KEY}"])
def test_a_refusal(new_connector, gateway, caplog, words) -> None:
    connector = new_connector(gateway.address, api_key=KEY)
    connector.start(block=False)
    gateway.accept().end(grpc.StatusCode.UNAUTHENTICATED, words)
    with pytest.raises(AuthenticationError) as caught:
        connector.wait(TIMEOUT)
    said = "".join(traceback.format_exception(None, caught.value, caught.value.__traceback__))
    for text in (said, repr(vars(caught.value)), caplog.text):
        assert KEY[:6] not in text
    assert "***" in str(caught.value)


def test_its_limits_and_its_goodbye(new_connector, gateway: ScriptedGateway, caplog) -> None:
    gateway.announces = {"revconn-max-message-bytes": KEY}
    connector = new_connector(gateway.address, api_key=KEY)
    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.status(ConnectionStatus.ERROR, message=f"odd: {KEY}")
    peer.status(ConnectionStatus.DISCONNECTED, message=f"bye {KEY}")
    gateway.accept()
    eventually(lambda: "lost the connection" in caplog.text)
    assert "'bye ***'" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("transport_options", [{"transport": "http2"}])
def test_a_goaway(new_connector, caplog) -> None:
    with ScriptedHttp2() as server:
        connector = new_connector(server.address, api_key=KEY)
        connector.start(block=False)
        peer = server.accept_stream()
        status = ConnectionStatus(connection_id="id-1", status=ConnectionStatus.CONNECTED)
        peer.send(ConnectionMessage(status=status).SerializeToString())
        peer.goaway(0, 1, KEY.encode())
        eventually(lambda: "is going away (GOAWAY NO_ERROR, '***')" in caplog.text)
        connector.abort()
    assert KEY not in caplog.text


def test_the_id_that_it_gives(new_connector, gateway: ScriptedGateway, caplog) -> None:
    connector = new_connector(gateway.address, api_key=KEY, heartbeat_interval=0.1)
    connector.start(block=False)
    peer = gateway.accept()
    peer.hears("register")
    peer.connected(KEY)
    connector.wait_ready(TIMEOUT)
    for text in (caplog.text, repr(connector), repr(connector.links)):
        assert KEY not in text
    assert peer.hears("heartbeat").connection_id == KEY
    connector.abort()
    assert KEY not in caplog.text
