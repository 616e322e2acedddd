"""What a hostile gateway cannot do to a connector, on either transport."""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import Callable

import grpc
import pytest

from revconn import Connector
from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
)
from tests.support.scripted_gateway import Peer
from tests.support.scripted_http2 import ScriptedHttp2
from tests.support.waiting import eventually

TIMEOUT = 60.0
MIB = 1 << 20
SAY = "/echo.Echo/Say"
WINDOWS = 16 * MIB + MIB  # what a gateway may have on its way; and what a socket read brings
FORGED = "seen\r\n2026-01-01 CRITICAL root: forged\x1b[2J\x00\x85\u2028\u202e"


def test_it_cannot_make_a_connector_hold_more_than_it_may(new_connector, gateway) -> None:
    connector = new_connector(gateway.address, max_in_flight_bytes=2 * MIB, max_workers=1)
    let_go = threading.Event()
    connector.add_method(SAY, lambda request: let_go.wait(TIMEOUT) and b"")
    connector.start(block=False)
    peer = gateway.accept_ready()
    ids = [f"r{number}" for number in range(80)]
    peer.requests(*ids, payload=b"x" * MIB)
    eventually(lambda: connector.stats()["accepted"] >= 2)
    time.sleep(0.5)  # real time, in which more would come if anything did
    assert connector.stats()["accepted"] * MIB <= 2 * MIB + WINDOWS
    let_go.set()
    assert set(peer.answers(80)) == set(ids)


@pytest.mark.parametrize("inline", [False, True], ids=["pooled", "inline"])
def test_it_cannot_have_a_handler_run_after_its_deadline(new_connector, gateway, inline) -> None:
    connector = new_connector(gateway.address)
    ran: list[str] = []

    def handle(request) -> bytes:
        ran.append(request.request_id)
        return b""

    connector.add_method(SAY, handle, inline=inline)
    connector.start(block=False)
    peer = gateway.accept_ready()
    late = [f"late{number}" for number in range(50)]
    peer.requests(*late, grpc_timeout="0n")
    peer.request("in time")
    answers = peer.answers(51)
    assert {answers[each].status_code for each in late} == {504}
    assert ran == ["in time"]


@pytest.mark.parametrize("status", ["301", "307", "308"])
def test_it_cannot_send_a_connector_and_its_key_elsewhere(new_connector, status) -> None:
    with ScriptedHttp2() as hostile, socket.create_server(("127.0.0.1", 0)) as elsewhere:
        there = f"127.0.0.1:{elsewhere.getsockname()[1]}"
        connector = new_connector(hostile.address)
        connector.start(block=False)
        for _ in range(3):  # and whenever it tries again, it does so here
            peer = hostile.accept()
            peer.begin()
            alternative = [("location", f"http://{there}/"), ("alt-svc", f'h2="{there}"')]
            peer.say(peer.headers_frame([(":status", status), *alternative], end=True))
        connector.abort()
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


# A log for operators


def refuse(peer: Peer) -> None:
    peer.end(grpc.StatusCode.UNAVAILABLE, FORGED)


def say_error_instead_of_connected(peer: Peer) -> None:
    peer.status(ConnectionStatus.ERROR, message=FORGED)


def give_a_forged_id(peer: Peer) -> None:
    peer.connected(FORGED)


def give_another_id(peer: Peer) -> None:
    peer.connected("id")
    peer.connected(FORGED)


def say_disconnected(peer: Peer) -> None:
    peer.connected("id")
    peer.status(ConnectionStatus.DISCONNECTED, FORGED, FORGED)


def end_the_stream(peer: Peer) -> None:
    peer.connected("id")
    peer.end(grpc.StatusCode.ABORTED, FORGED)


def turn_probes_down(peer: Peer) -> None:
    peer.connected("id")
    probe = peer.hears("request")
    refusal = ForwardResponse(
        request_id=probe.request_id, status_code=500, error_message=FORGED, headers={FORGED: FORGED}
    )
    peer.say(ConnectionMessage(response=refusal))
    peer.end()


def ask_and_cancel(peer: Peer) -> None:
    """What fails, what nobody knows, what is slow and what is cancelled: each has its line."""
    peer.connected("id")
    for number, method in enumerate((SAY, "/echo.Echo/Wait", "/echo.Echo/Late", f"/a.B/{FORGED}")):
        headers = {FORGED: FORGED, "grpc-timeout": FORGED}
        asked = ForwardRequest(request_id=f"{number}{FORGED}", method_path=method, headers=headers)
        peer.say(ConnectionMessage(request=asked))
    peer.status(ConnectionStatus.ERROR, message=FORGED)
    peer.cancel(f"1{FORGED}", reason=FORGED)
    peer.end()


HOSTILITIES = [
    refuse,
    say_error_instead_of_connected,
    give_a_forged_id,
    give_another_id,
    say_disconnected,
    end_the_stream,
    turn_probes_down,
    ask_and_cancel,
]


@pytest.fixture
def serve(new_connector, gateway) -> Callable[[], Connector]:
    def serve() -> Connector:
        connector = new_connector(
            gateway.address, probe_interval=1e3, slow_handler_after=0.1, max_workers=2
        )
        ended = threading.Event()

        @connector.method(SAY)
        def fail(request) -> bytes:
            raise ValueError("as handlers do")

        @connector.method("/echo.Echo/Wait")
        def wait(request) -> bytes:
            request.add_callback(ended.set)
            assert ended.wait(TIMEOUT)
            return b""

        @connector.method("/echo.Echo/Late")
        def be_late(request) -> bytes:
            time.sleep(0.4)  # real time: the watchdog looks twice within 0.1 s
            return b""

        connector.start(block=False)
        return connector

    return serve


@pytest.mark.parametrize("hostility", HOSTILITIES, ids=lambda function: function.__name__)
def test_it_cannot_write_control_characters_into_a_log(serve, gateway, caplog, hostility) -> None:
    caplog.set_level(logging.DEBUG, "revconn")
    gateway.announces = {"revconn-features": "cancel"}
    connector = serve()
    peer = gateway.accept()
    peer.hears("register")
    hostility(peer)
    gateway.accept_ready("fine")  # it took it for a lost connection, and came back
    if hostility is ask_and_cancel:
        eventually(lambda: "slow handler: " in caplog.text)
    connector.abort()
    said = [r.getMessage() for r in caplog.records if r.name.startswith("revconn")]
    assert any("forged" in message for message in said), "nothing of it was logged"
    assert [message for message in said if not message.isprintable()] == []
