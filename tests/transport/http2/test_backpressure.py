"""Windows, ours and the peer's; what waits, and what goes on afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hyperframe.frame import DataFrame, WindowUpdateFrame

from revconn import Connector
from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus, ForwardRequest
from revconn.core.chunks import LargeAnswer
from revconn.core.responses import encode_response
from tests.support.connectors import QUICK
from tests.support.scripted_gateway import ScriptedGateway
from tests.support.scripted_http2 import Http2Peer, ScriptedHttp2, message
from tests.support.threads import TIMEOUT, in_thread
from tests.support.waiting import eventually

MIB = 1 << 20
WINDOW = 8 * MIB


# The peer's window


def test_messages_wait_for_the_peers_window_and_go_on_when_it_opens(new_client, server) -> None:
    client = new_client(server.address)
    client.open()
    peer = server.accept_stream({4: 1000})
    peer.ping()
    client.send(b"x" * 2000)
    assert len(peer.hears(DataFrame).data) == 1000
    peer.ping()
    assert len(peer._data) == 1000
    peer.open_window(500)
    assert len(peer.hears(DataFrame).data) == 500
    peer.open_window(10_000)
    assert peer.hears_message() == b"x" * 2000


def test_the_connections_window_holds_back_as_the_streams_does(new_client, server) -> None:
    client = new_client(server.address)
    client.open()
    peer = server.accept_stream({4: MIB})
    peer.ping()
    client.send(b"x" * 100_000)
    while len(peer._data) < 65_535:
        peer.hears_frame()
    peer.ping()
    assert len(peer._data) == 65_535
    peer.say(WindowUpdateFrame(0, window_increment=MIB))
    assert peer.hears_message() == b"x" * 100_000


def test_a_client_that_is_held_back_goes_on_reading_and_opens_its_own_window(
    new_client, server
) -> None:
    """Two sides that each wait for the other's window would wait for ever."""
    client = new_client(server.address)
    client.open()
    peer = server.accept_stream({4: 0})
    peer.ping()
    client.send(b"held back")
    eventually(lambda: client.stream._engine.unsent)
    client.saturate(True)
    peer.send(bytes(5 * MIB))
    assert len(client.receive()[0]) == 5 * MIB
    before = peer.window
    peer.ping()
    assert peer.window == before
    client.saturate(False)
    while peer.window == before:
        peer.hears(WindowUpdateFrame)
    peer.open_window(100)
    assert peer.hears_message() == b"held back"


def test_a_client_that_waits_for_the_peers_window_opens_its_own(new_client, server) -> None:
    """A gateway that reads only when it may write would wait for ever, too."""
    client = new_client(server.address)
    client.open()
    peer = server.accept_stream({4: 0})
    peer.ping()
    client.send(b"held back")
    eventually(lambda: client.stream._engine.unsent and client.line.parked)
    before = peer.window
    peer.send(bytes(5 * MIB))
    assert len(client.receive()[0]) == 5 * MIB
    while peer.window <= before - 5 * MIB:
        peer.hears(WindowUpdateFrame)
    peer.open_window(100)
    assert peer.hears_message() == b"held back"


def test_cancelling_what_piled_up_opens_our_window_while_the_peers_is_closed(
    new_client, server, monkeypatch
) -> None:
    monkeypatch.setattr("revconn.core.sending._LARGE_ROOM_BYTES", MIB)
    client = new_client(server.address)
    client.line.outbound.agree(MIB, chunks=True)
    client.open()
    peer = server.accept_stream({4: 0})
    peer.ping()
    client.replies.answer([LargeAnswer(encode_response("large", b""), None, bytes(5 * MIB))])
    eventually(lambda: client.stream._engine.unsent)
    peer.send(bytes(5 * MIB))
    assert len(client.receive()[0]) == 5 * MIB
    before = peer.window
    peer.ping()
    assert peer.window == before
    client.replies.withdraw({"large"})
    while peer.window == before:
        peer.hears(WindowUpdateFrame)


def test_large_messages_travel_through_a_slow_window_unharmed(client, server) -> None:
    peer = server.accept_stream()
    payload = bytes(range(256)) * 2000
    client.send(payload, b"next")
    while len(peer._data) < len(payload):
        frame = peer.hears(DataFrame)
        if frame.data:
            peer.open_window(len(frame.data))
    assert peer.hears_message() == payload
    assert peer.hears_message() == b"next"


# Our own window


class Flooded:
    """A connector whose handlers wait until they are told to go on, and its gateway."""

    def __init__(self, server: ScriptedHttp2, max_in_flight_bytes: int) -> None:
        self.go_on = threading.Event()
        self.connector = Connector(
            server.address,
            **QUICK,
            transport="http2",
            max_workers=4,
            max_in_flight_bytes=max_in_flight_bytes,
        )
        self.connector.add_service("echo.Echo", self._answer)
        self.connector.start(block=False)
        self.peer = server.accept_stream({4: 64 * MIB})
        self.peer.open_window(64 * MIB)
        self.peer.hears_message()
        status = ConnectionStatus(connection_id="id-1", status=ConnectionStatus.CONNECTED)
        self.peer.send(ConnectionMessage(status=status).SerializeToString())

    def _answer(self, request) -> bytes:
        assert self.go_on.wait(TIMEOUT)
        return request.payload[:10]

    def requests(self, start: int, count: int, size: int) -> Iterator[bytes]:
        for number in range(start, start + count):
            forwarded = ForwardRequest(
                request_id=f"r{number}",
                method_path="/echo.Echo/Say",
                payload=b"0123456789" + bytes(size),
                timeout_seconds=30,
            )
            yield ConnectionMessage(request=forwarded).SerializeToString()

    def answered(self, count: int) -> set[str]:
        said = [ConnectionMessage.FromString(self.peer.hears_message()) for _ in range(count)]
        assert all(each.response.payload == b"0123456789" for each in said)
        return {each.response.request_id for each in said}


@pytest.fixture
def flooded(server: ScriptedHttp2) -> Iterator[Flooded]:
    flooded = Flooded(server, max_in_flight_bytes=MIB)
    yield flooded
    flooded.go_on.set()
    flooded.connector.abort()


def test_a_flood_that_handlers_cannot_keep_up_with_is_held_back_and_then_served(
    flooded: Flooded,
) -> None:
    peer, sent = flooded.peer, 0
    for request in flooded.requests(0, 1000, 64 << 10):
        if peer.window < len(request) + 5:
            break
        peer.send(request)
        sent += 1
    peer.ping()
    # Not a byte more than the window that there was from the beginning.
    assert peer.window < 65 << 10
    assert sent < WINDOW // (64 << 10)
    assert flooded.connector.stats()["in_flight"] == sent
    flooded.go_on.set()
    assert flooded.answered(sent) == {f"r{number}" for number in range(sent)}
    # And everything goes on: several windows' worth.
    for number in range(5):
        for request in flooded.requests(1000 + number * 60, 60, 64 << 10):
            peer.send(request)
        assert len(flooded.answered(60)) == 60


def test_a_message_larger_than_the_window_arrives_although_nothing_else_may(
    flooded: Flooded,
) -> None:
    flooded.go_on.set()
    (request,) = flooded.requests(0, 1, 20 * MIB)
    flooded.peer.send(request)
    assert flooded.answered(1) == {"r0"}


# Large messages through everything


@pytest.mark.costly
def test_messages_of_three_windows_travel_both_ways(new_connector, transport_options) -> None:
    with ScriptedGateway() as gateway:
        connector = new_connector(gateway.address, max_message_bytes=4 * WINDOW)
        connector.add_service("echo.Echo", lambda request: request.payload)
        connector.start(block=False)
        peer = gateway.accept_ready()
        payload = b"\x0a" + bytes(range(255)) * (3 * WINDOW // 255)
        peer.request("large", payload=payload)
        peer.request("small", payload=b"x")
        answers = peer.answers(2, timeout=120)
        assert answers["small"].payload == b"x"
        assert answers["large"].payload == payload


# Ends


def test_closing_wakes_a_sender_that_waits_for_the_window(new_client, server) -> None:
    client = new_client(server.address)
    client.open()
    peer = server.accept_stream({4: 0})
    peer.ping()
    client.send(b"held back")
    eventually(lambda: client.stream._engine.unsent)
    client.close()
    assert not client.stream._sender.is_alive()
    peer.hears_hang_up()


def test_closing_wakes_a_sender_that_the_network_holds_up(new_client, server) -> None:
    client = new_client(server.address)
    client.open()
    peer = server.accept_stream({4: 1 << 30})
    peer.say(WindowUpdateFrame(0, window_increment=1 << 30))
    peer.ping()
    sending = in_thread(client.send, bytes(32 * MIB))  # some of which is unsent to the end
    sending.result(TIMEOUT)
    eventually(lambda: client.stream._engine.unsent)
    client.close()
    assert not client.stream._sender.is_alive()
    assert len(client.unsent()) == 1


def test_what_was_received_before_the_peer_hung_up_is_delivered(client, server) -> None:
    peer: Http2Peer = server.accept_stream()
    peer.say(DataFrame(1, message(b"one") + message(b"two") + message(b"half")[:-1]))
    peer.hang_up()
    assert client.receive(2) == [b"one", b"two"]
    assert "in the middle of a message" in client.end().details
