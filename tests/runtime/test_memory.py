"""What a gateway can make a connector hold in memory."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hyperframe.frame import PingFrame

from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus, ForwardRequest
from revconn.serving.handlers import Handlers
from revconn.transport.grpcio import _HAS_FIXED_WINDOWS
from tests.support import requests
from tests.support.calls import METHOD, CallsLink, open_calls
from tests.support.programs import Program
from tests.support.scripted_gateway import ScriptedGateway
from tests.support.scripted_http2 import Http2Peer, ScriptedHttp2
from tests.support.threads import TIMEOUT
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")

MIB = 1 << 20
MISBEHAVES = 1.0  # seconds that it is given to run out of memory

BODY = """
import re

def peak():  # MiB
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1]) // 1024

def slow(request):
    time.sleep(0.02)
    return b"done"

connector.add_method("/echo.Echo/Say", slow)
connector.add_method("/echo.Echo/Much", lambda request: bytes(2 << 20))
connector.add_method("/echo.Echo/Inline", lambda request: bytes(2 << 20), inline=True)
before = peak()
connector.start(block=False)
wait_for_sigusr1()
say("grew little" if peak() - before < {most} else f"grew by {{peak() - before}} MiB")
connector.abort()
"""


@pytest.fixture
def fixed_windows(transport_options: dict[str, Any]) -> None:
    """What a gateway may send ahead is bounded; topics/transports says with what it is not."""
    if transport_options["transport"] == "grpcio" and not _HAS_FIXED_WINDOWS:
        pytest.skip("grpcio before 1.74 sizes its windows by its own measure")


@pytest.fixture
def run() -> Iterator:
    programs: list[Program] = []

    def run(address: str, most: int, **options) -> Program:
        programs.append(Program(BODY.format(most=most), address, **options))
        return programs[-1]

    yield run
    for program in programs:
        program.close()


def assert_grew_little(program: Program) -> None:
    program.signal(signal.SIGUSR1)
    program.hears("grew little")


@pytest.mark.parametrize("field", ["headers", "method_path", "payload"])
def test_all_of_a_request_counts_and_a_header_more_than_its_bytes(field) -> None:
    let_go = threading.Event()
    fields = {
        "headers": {f"{number:x}": "" for number in range(50)},
        "method_path": "/echo.Echo/" + "x" * 10_000,
        "payload": bytes(10_000),
    }
    handlers = Handlers()
    handlers.add_service("echo.Echo", lambda request: let_go.wait(TIMEOUT) and b"", replace=False)
    with open_calls(handlers, max_in_flight_bytes=10_000) as calls:
        link = CallsLink(calls)
        message = ForwardRequest(request_id="r1", method_path=METHOD)
        message.MergeFrom(ForwardRequest(**{field: fields[field]}))
        link.brings(requests.arrival(message))
        try:
            assert calls.saturated
        finally:
            let_go.set()
        eventually(lambda: not calls.saturated)


@pytest.mark.usefixtures("fixed_windows")
def test_headers_count_as_what_is_in_flight(run, transport_options) -> None:
    with ScriptedGateway() as gateway:
        program = run(
            gateway.address, 60, max_workers=1, max_in_flight_bytes=2 * MIB, **transport_options
        )
        peer = gateway.accept_ready()
        program.hears("READY")
        for number in range(100):
            peer.request(f"r{number}", note="x" * MIB)
        assert len(peer.answers(100)) == 100
        assert_grew_little(program)


@pytest.mark.parametrize("method", ["Much", "Inline"])
def test_a_gateway_that_does_not_read_is_not_given_answers_without_end(run, method) -> None:
    requests = [
        ConnectionMessage(
            request=ForwardRequest(request_id=f"r{number}", method_path=f"/echo.Echo/{method}")
        ).SerializeToString()
        for number in range(100)
    ]
    with ScriptedHttp2() as server:
        program = run(server.address, 100, max_workers=2)
        peer = server.accept_stream()
        peer.hears_message()
        status = ConnectionStatus(connection_id="id-1", status=ConnectionStatus.CONNECTED)
        peer.send(ConnectionMessage(status=status).SerializeToString())
        program.hears("READY")
        peer.send(*requests[:50])
        for request in requests[50:]:  # each is a batch of its own
            time.sleep(MISBEHAVES / 50)
            peer.send(request)
        peer.open_window(300 * MIB)
        answers = [ConnectionMessage.FromString(peer.hears_message()).response for _ in requests]
        assert {answer.request_id for answer in answers} == {f"r{n}" for n in range(100)}
        assert {len(answer.payload) for answer in answers} == {2 * MIB}
        assert_grew_little(program)


# What may come ahead of it


class HastyPeer:
    """Sends requests of 64 KiB as long as the window is open, and answers pings late."""

    def __init__(self, peer: Http2Peer) -> None:
        self._peer = peer
        self._pings: list[bytes] = []

    def send(self, method: str, most: int, patience: float = TIMEOUT) -> int:
        """Send so much, or until the window has been closed for ``patience`` seconds; how much."""
        request = ForwardRequest(method_path=f"/echo.Echo/{method}", payload=bytes(1 << 16))
        sent = 0
        while sent < most and self._may_send(patience):
            request.request_id = f"{method}-{sent}"
            data = ConnectionMessage(request=request).SerializeToString()
            self._peer.send(data)
            sent += len(data)
        return sent

    def answer_pings(self) -> None:
        """Those of its peer, which measures the network by them."""
        self._hear_all()
        self._peer.say(*(PingFrame(0, ping, flags=["ACK"]) for ping in self._pings))
        self._pings.clear()

    def _may_send(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while self._peer.window < 1 << 17 and time.monotonic() < deadline:
            self._hear_all()
            time.sleep(0.005)  # a flood of pings would be cut off
        return self._peer.window >= 1 << 17

    def _hear_all(self) -> None:
        self._peer.say(PingFrame(0, b"all that"))
        while True:
            frame = self._peer.hears_frame()
            if isinstance(frame, PingFrame):
                if "ACK" in frame.flags:
                    break
                self._pings.append(frame.opaque_data)


@pytest.mark.usefixtures("fixed_windows")
def test_what_a_gateway_may_send_ahead_does_not_grow(new_connector) -> None:
    """A slow machine, which makes its network look like one that holds a lot, is no exception."""
    window, in_flight = 8 * MIB, 2 * MIB
    let_go = threading.Event()
    with ScriptedHttp2() as server:
        connector = new_connector(server.address, tls=False, max_in_flight_bytes=in_flight)
        connector.add_method("/echo.Echo/Say", lambda request: b"")
        connector.add_method("/echo.Echo/Hold", lambda request: let_go.wait(TIMEOUT) and b"")
        connector.start(block=False)
        peer = server.accept_stream()
        peer.open_window(window)
        peer.hears_message()
        status = ConnectionStatus(connection_id="id-1", status=ConnectionStatus.CONNECTED)
        peer.send(ConnectionMessage(status=status).SerializeToString())
        hasty = HastyPeer(peer)
        try:
            for _ in range(3):
                assert hasty.send("Say", 2 * window) >= 2 * window
                hasty.answer_pings()
            ahead = hasty.send("Hold", 100 * MIB, patience=MISBEHAVES)
            assert ahead < in_flight + 2 * window
        finally:
            let_go.set()
            connector.abort()
