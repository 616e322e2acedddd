"""Connectors at a gateway that behaves as the reference does."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import pytest

from revconn._proto.registry_pb2 import ForwardResponse
from revconn.testing import Fault, FaultProxy
from tests.support.programs import Program
from tests.support.reference_gateway import ReferenceGateway
from tests.support.threads import TIMEOUT
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"
MIB = 1 << 20
HUGE = 100_000_000

SERVE = """
connector.add_method("/echo.Echo/Say", lambda request: request.payload)
connector.start()
"""


@pytest.fixture
def new_gateway() -> Iterator[Callable[..., ReferenceGateway]]:
    started: list[ReferenceGateway] = []

    def start(**options) -> ReferenceGateway:
        started.append(ReferenceGateway(**options))
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()


@pytest.fixture
def gateway(new_gateway) -> ReferenceGateway:
    return new_gateway()


def ask(gateway: ReferenceGateway, payload: bytes = b"x", path: str = SAY) -> ForwardResponse:
    return gateway.call(path, payload).result(TIMEOUT)


# Silence


def serve_until_known(new_program, gateway: ReferenceGateway) -> tuple[Program, str]:
    program = new_program(SERVE, gateway.address, heartbeat_interval=0.1, liveness_timeout=1.8)
    (connection_id,) = eventually(lambda: gateway.routes("echo.Echo"))
    assert ask(gateway).payload == b"x"
    return program, connection_id


def test_a_connection_that_was_forgotten_is_replaced_when_its_process_goes_on(
    new_gateway, new_program
) -> None:
    gateway = new_gateway(heartbeat_timeout=2.4, sweep_interval=0.05)
    program, forgotten = serve_until_known(new_program, gateway)
    program.signal(signal.SIGSTOP)
    eventually(lambda: gateway.counts["forgotten"])
    program.signal(signal.SIGCONT)
    (connection_id,) = eventually(lambda: gateway.routes("echo.Echo"))
    assert connection_id != forgotten
    assert ask(gateway).payload == b"x"


def test_a_connection_that_was_half_forgotten_is_replaced_though_its_heartbeats_are_taken(
    new_gateway, new_program
) -> None:
    gateway = new_gateway(heartbeat_timeout=2.4, sweep_interval=1e6)
    program, half_forgotten = serve_until_known(new_program, gateway)
    program.signal(signal.SIGSTOP)
    time.sleep(3.0)  # real time: its clock is its own, and nothing else shows
    assert ask(gateway).error_message.startswith("No reverse connection found")
    program.signal(signal.SIGCONT)
    (connection_id,) = eventually(lambda: gateway.routes("echo.Echo"))
    assert connection_id != half_forgotten
    assert ask(gateway).payload == b"x"
    assert gateway.counts["unknown heartbeat"] == 0


# What it cannot take


@pytest.fixture
def serve(new_connector):
    """A connector that echoes and, asked for so many bytes, gives them."""

    def serve(address: str, **options):
        connector = new_connector(address, **options)
        connector.add_method(SAY, lambda request: request.payload)
        connector.add_method("/echo.Echo/Fill", lambda request: bytes(int(request.payload)))
        connector.start(block=False)
        connector.wait_ready(TIMEOUT)
        return connector

    return serve


def test_an_answer_over_its_limit_fails_alone_and_never_goes_in_chunks(gateway, serve) -> None:
    serve(gateway.address)
    connections = eventually(lambda: gateway.routes("echo.Echo"))
    too_large = ask(gateway, b"%d" % (4 * MIB), "/echo.Echo/Fill")
    assert (too_large.status_code, too_large.payload) == (500, b"")
    assert "larger than the limit" in too_large.error_message
    assert len(ask(gateway, b"%d" % (4 * MIB - 1000), "/echo.Echo/Fill").payload) > 4 * MIB - 2000
    assert gateway.routes("echo.Echo") == connections
    assert not gateway.is_locked_up


@pytest.mark.costly
def test_the_largest_request_that_it_sends_arrives(gateway, serve) -> None:
    connector = serve(gateway.address)
    connector.add_method("/echo.Echo/Measure", lambda request: b"%d" % len(request.payload))
    assert ask(gateway, b"x" * HUGE, "/echo.Echo/Measure").payload == b"%d" % HUGE
    assert connector.stats()["connections"] == 1


def test_it_bears_pings_that_other_gateways_would_not(gateway, serve, caplog) -> None:
    connector = serve(gateway.address, keepalive_interval=0.02)
    time.sleep(0.5)  # real time, for some twenty pings
    assert ask(gateway).payload == b"x"
    assert connector.stats()["connections"] == 1
    assert "too frequent" not in caplog.text


def test_paths_of_children_and_paths_without_slashes_find_their_handler(gateway, serve) -> None:
    connector = serve(gateway.address)
    assert ask(gateway, path="echo.Echo/Say").payload == b"x"
    child = ask(gateway, path="/echo.Echo.Child/Say")
    assert (child.status_code, child.headers["grpc-status"]) == (404, "12")
    assert connector.stats()["connections"] == 1


def test_repeated_ids_fail_at_the_gateway_and_disturb_nobody_else(gateway, serve) -> None:
    connector = serve(gateway.address)
    for number in range(20):
        calls = [gateway.call(SAY, b"x", request_id=f"r{number}") for _ in range(2)]
        for call in calls:
            assert call.result(TIMEOUT).error_message in ("", "Response channel closed")
    assert ask(gateway).payload == b"x"
    assert connector.stats()["connections"] == 1


# Breaks


def test_a_request_in_flight_when_the_connection_breaks_is_answered_on_the_next(
    gateway, new_connector
) -> None:
    entered, let_go = threading.Event(), threading.Event()
    with FaultProxy(gateway.port) as proxy:
        connector = new_connector(proxy.address)

        @connector.method(SAY)
        def say(request) -> bytes:
            entered.set()
            assert let_go.wait(TIMEOUT)
            return b"in spite of it"

        connector.start(block=False)
        first = eventually(lambda: gateway.routes("echo.Echo"))
        call = gateway.call(SAY)
        assert entered.wait(TIMEOUT)
        proxy.reset_all()
        eventually(lambda: gateway.routes("echo.Echo") not in ([], first))
        let_go.set()
        assert call.result(TIMEOUT).payload == b"in spite of it"


def test_an_answer_that_left_just_before_a_break_arrives_on_the_next_connection(
    gateway, new_connector
) -> None:
    entered, let_go = threading.Event(), threading.Event()
    with FaultProxy(gateway.port) as proxy:
        connector = new_connector(proxy.address)

        @connector.method(SAY)
        def say(request) -> bytes:
            entered.set()
            assert let_go.wait(TIMEOUT)
            return b"twice, if need be"

        connector.start(block=False)
        eventually(lambda: gateway.routes("echo.Echo"))
        call = gateway.call(SAY)
        assert entered.wait(TIMEOUT)
        proxy.fault = Fault.BLACK_HOLE  # a break that nobody has noticed yet
        let_go.set()
        eventually(lambda: connector.stats()["answered"] == 1)
        assert connector._supervisor.links[0].wait_flushed(TIMEOUT)
        proxy.fault = Fault.REFUSE
        proxy.reset_all()
        proxy.fault = Fault.NONE
        assert call.result(TIMEOUT).payload == b"twice, if need be"
        assert connector.stats()["replayed"] == 1
        connector.abort()


def test_a_stream_that_it_ends_with_ok_is_opened_again(gateway, serve, caplog) -> None:
    connector = serve(gateway.address, max_message_bytes=5 * MIB)
    first = gateway.routes("echo.Echo")
    gateway.call("/echo.Echo/Fill", b"%d" % (4 * MIB))  # whoever raises the limit has this
    eventually(lambda: gateway.routes("echo.Echo") not in ([], first))
    assert "lost the connection" in caplog.text
    connector.abort()


# Leaving


def test_leaving_under_load_loses_nothing(gateway, serve, caplog) -> None:
    caplog.set_level(logging.INFO, "revconn")
    staying = serve(gateway.address)
    stopping = threading.Event()

    def keep_asking(_worker: int) -> list[str]:
        problems = []
        while not stopping.is_set():
            answer = ask(gateway)
            if answer.payload != b"x":
                problems.append(answer.error_message)
        return problems

    with ThreadPoolExecutor(8) as callers:
        asked = callers.map(keep_asking, range(8))
        for _ in range(2):
            leaving = serve(gateway.address)
            eventually(lambda: leaving.stats()["answered"] > 50)  # noqa: B023
            leaving.stop(TIMEOUT)
        stopping.set()
        assert [problem for problems in asked for problem in problems] == []
    assert staying.stats()["connections"] == 1
    assert "gave up" not in caplog.text
