"""A program that starts a connector without blocking and ends without stopping it."""

from __future__ import annotations

import signal
import time

import pytest

from revconn.testing import Fault, FaultProxy
from tests.support.connectors import NEVER
from tests.support.threads import TIMEOUT, in_thread

NOBODY_LISTENS = "127.0.0.1:1"
PROMPTLY = 5.0

START = """
@connector.method("/echo.Echo/Say")
def answer(request):
    return b"finished"

connector.start(block=False)
wait_for_sigusr1()
say("leaving")
"""

STOP_AT_EXIT = """
import atexit
atexit.register(connector.stop, 1.0)
"""

START_BUSY = """
@connector.method("/echo.Echo/Say")
def answer(request):
    say("handling")
    release.wait()
    return b"finished"

release = threading.Event()
connector.start(block=False)
wait_for_sigusr1()
threading.Timer(1.0, release.set).start()
say("leaving")
"""


def assert_exits_by_itself(program) -> None:
    program.signal(signal.SIGUSR1)
    program.hears("leaving")
    began = time.monotonic()
    assert program.wait() == 0
    assert time.monotonic() - began < PROMPTLY
    assert "Traceback" not in program.stderr
    assert "Error" not in program.stderr


@pytest.fixture(params=["", STOP_AT_EXIT], ids=["forgotten", "stopped by atexit"])
def start(request: pytest.FixtureRequest) -> str:
    """The program, which forgets its connector or has it stopped in the very end."""
    return request.param + START


def test_while_it_backs_off(new_program, start) -> None:
    program = new_program(start, NOBODY_LISTENS, backoff=NEVER)
    program.hears("BACKING_OFF")
    assert_exits_by_itself(program)


def test_while_the_peer_reads_nothing(new_program, gateway, start) -> None:
    with FaultProxy(gateway.port, fault=Fault.STALL) as proxy:
        program = new_program(start, proxy.address)
        proxy.wait_connections(1)
        assert_exits_by_itself(program)


def test_while_the_gateway_never_says_connected(new_program, gateway, start) -> None:
    program = new_program(start, gateway.address)
    gateway.accept().hears("register")
    assert_exits_by_itself(program)


def test_while_it_is_ready(new_program, gateway, start) -> None:
    program = new_program(start, gateway.address)
    peer = gateway.accept_ready()
    program.hears("READY")
    peer.request("r1")
    peer.answer("r1")
    assert_exits_by_itself(program)


def test_while_requests_come_without_end(new_program, gateway, start) -> None:
    program = new_program(start, gateway.address)
    peer = gateway.accept_ready()
    program.hears("READY")
    flood = in_thread(peer.requests_without_end)
    assert_exits_by_itself(program)
    flood.result(TIMEOUT)


def test_while_a_handler_runs_it_waits_for_that_as_every_executor_does(
    new_program, gateway
) -> None:
    program = new_program(START_BUSY, gateway.address)
    peer = gateway.accept_ready()
    program.hears("READY")
    peer.request("r1")
    program.hears("handling")
    assert_exits_by_itself(program)


def test_while_a_handler_runs_and_the_connection_breaks(new_program, proxy, gateway) -> None:
    program = new_program(START_BUSY, proxy.address)
    peer = gateway.accept_ready()
    program.hears("READY")
    peer.request("r1")
    program.hears("handling")
    program.signal(signal.SIGUSR1)
    program.hears("leaving")
    proxy.reset_all()
    assert program.wait() == 0
    assert "Traceback" not in program.stderr
