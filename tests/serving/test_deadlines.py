from __future__ import annotations

import threading
import time
from typing import Callable

import pytest

from revconn import Connector, Request
from revconn.core.framing import frame
from tests.support.scripted_gateway import Peer
from tests.support.waiting import eventually

TIMEOUT = 60.0


class Handler:
    """Notes what it is given, and returns when it is let go."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.let_go = threading.Event()

    def __call__(self, request: Request) -> bytes:
        self.requests.append(request)
        assert self.let_go.wait(TIMEOUT)
        return b"done"

    def handles(self, count: int) -> None:
        eventually(lambda: len(self.requests) == count)


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def connect(new_connector, gateway, handler) -> Callable[..., tuple[Connector, Peer]]:
    def connect(**options) -> tuple[Connector, Peer]:
        connector = new_connector(gateway.address, **options)
        connector.add_method("/echo.Echo/Say", handler)
        connector.start(block=False)
        return connector, gateway.accept_ready()

    yield connect
    handler.let_go.set()


@pytest.mark.parametrize(
    ("timeout_seconds", "headers", "remaining"),
    [
        (30, {"grpc_timeout": "5010m"}, 5.01),
        (3, {"grpc_timeout": "1M"}, 3.0),
        (7, {}, 7.0),
        (0, {"grpc_timeout": "9S"}, 9.0),
        (4, {"grpc_timeout": "soon"}, 4.0),
        (-5, {"grpc_timeout": "6S"}, 6.0),
        (-5, {}, None),
        (0, {}, None),
    ],
)
def test_a_request_has_until_the_nearer_of_both_limits(
    connect, handler, timeout_seconds, headers, remaining
) -> None:
    _, peer = connect()
    peer.request(timeout_seconds=timeout_seconds, **headers)
    handler.handles(1)
    left = handler.requests[0].time_remaining()
    if remaining is None:
        assert left is None
    else:
        assert remaining - 2.0 < left <= remaining
    handler.let_go.set()
    assert peer.answer().payload == b"done"


def test_a_request_that_expires_while_it_waits_for_a_worker_is_never_handled(
    connect, handler
) -> None:
    connector, peer = connect(max_workers=1)
    peer.request("busy", timeout_seconds=0)
    handler.handles(1)
    peer.request("impatient", grpc_timeout="50m")
    answer = peer.answer("impatient")
    assert answer.status_code == 504
    assert answer.headers["grpc-status"] == "4"
    assert answer.error_message == "deadline exceeded"
    handler.let_go.set()
    peer.answer("busy")
    peer.request("after")
    peer.answer("after")
    assert [request.request_id for request in handler.requests] == ["busy", "after"]
    assert connector.stats()["expired"] == 1


def test_what_expired_while_all_workers_are_busy_is_let_go_of(connect, handler) -> None:
    connector, peer = connect(max_workers=1)
    peer.request("busy", timeout_seconds=0)
    handler.handles(1)
    peer.requests(*"abcde", grpc_timeout="50m", payload=bytes(1000))
    assert set(peer.answers(5)) == set("abcde")
    eventually(lambda: connector.stats()["waiting"] == 0)


def test_a_handler_that_overruns_is_overtaken_at_the_deadline(connect, handler) -> None:
    connector, peer = connect()
    began = time.monotonic()
    peer.request("slow", grpc_timeout="2S")
    assert peer.answer("slow").status_code == 504
    assert 2.0 <= time.monotonic() - began < TIMEOUT / 2
    (request,) = handler.requests
    assert not request.is_active()
    assert request.time_remaining() == 0.0
    handler.let_go.set()
    eventually(lambda: connector.stats()["late"] == 1)
    peer.request("next")
    assert peer.answer("next").payload == b"done", "the late result is dropped"
    assert connector.stats()["expired"] == 1
    assert connector.stats()["answered"] == 1


def test_a_framed_request_that_expires_is_answered_in_kind(connect) -> None:
    _, peer = connect()
    peer.request(payload=frame(b"hi"), grpc_timeout="50m")
    answer = peer.answer()
    assert answer.status_code == 504
    assert answer.payload == b""
    assert answer.headers["content-type"] == "application/grpc"
    assert answer.headers["grpc-status"] == "4"
    assert answer.headers["grpc-message"] == "deadline exceeded"


def test_requests_expire_in_the_order_of_their_deadlines(connect) -> None:
    _, peer = connect()
    peer.request("far", timeout_seconds=30)
    peer.request("third", grpc_timeout="4500m")
    peer.request("first", grpc_timeout="1500m")
    peer.request("second", grpc_timeout="3000m")
    for request_id in ("first", "second", "third"):
        assert peer.answer(request_id).status_code == 504


def test_a_request_that_is_in_time_is_active_until_it_is_answered(connect, handler) -> None:
    _, peer = connect()
    peer.request(timeout_seconds=30)
    handler.handles(1)
    (request,) = handler.requests
    assert request.is_active()
    handler.let_go.set()
    peer.answer()
    eventually(lambda: not request.is_active())
