"""The end of an interpreter is an ordinary drain, whoever asks for it, or nobody."""

from __future__ import annotations

import os
import signal
import time

import pytest

from revconn.testing import Fault, FaultProxy
from tests.support.connectors import NEVER
from tests.support.threads import TIMEOUT, in_thread

NOBODY_LISTENS = "127.0.0.1:1"
PROMPTLY = 20.0  # what hangs would hang for ever

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
atexit.register(connector.stop)
"""

START_BUSY = """
@connector.method("/echo.Echo/Say")
def answer(request):
    say("handling", request.request_id)
    while connector.state is State.READY:
        time.sleep(0.01)
    return b"finished"

connector.start(block=False)
wait_for_sigusr1()
say("leaving")
"""

HANG = """
@connector.method("/echo.Echo/Hang")
def hang(request):
    request.add_callback(threading.Event().wait)
    say("handling", request.request_id)
    threading.Event().wait()
"""


def assert_exits_by_itself(program) -> None:
    program.signal(signal.SIGUSR1)
    program.hears("leaving")
    began = time.monotonic()
    assert program.wait() == 0
    assert time.monotonic() - began < PROMPTLY
    assert "Traceback" not in program.stderr
    assert "Error" not in program.stderr


def test_while_it_backs_off(new_program) -> None:
    program = new_program(START, NOBODY_LISTENS, backoff=NEVER)
    program.hears("BACKING_OFF")
    assert_exits_by_itself(program)


def test_while_the_peer_reads_nothing(new_program, gateway) -> None:
    with FaultProxy(gateway.port, fault=Fault.STALL) as proxy:
        program = new_program(START, proxy.address, drain_timeout=1.0)
        proxy.wait_connections(1)
        assert_exits_by_itself(program)


def test_while_the_gateway_never_says_connected(new_program, gateway) -> None:
    program = new_program(START, gateway.address, drain_timeout=1.0)
    gateway.accept().hears("register")
    assert_exits_by_itself(program)


def test_while_it_is_ready(new_program, gateway) -> None:
    program = new_program(START, gateway.address, drain_timeout=1.0)
    peer = gateway.accept_ready()
    program.hears("READY")
    peer.request("r1")
    peer.answer("r1")
    assert_exits_by_itself(program)


def test_while_requests_come_without_end(new_program, gateway) -> None:
    program = new_program(START, gateway.address, drain_timeout=1.0)
    peer = gateway.accept_ready()
    program.hears("READY")
    flood = in_thread(peer.requests_without_end)
    assert_exits_by_itself(program)
    flood.result(TIMEOUT)


@pytest.mark.parametrize(
    ("transport_options", "stop"),  # forgotten, or stopped in the very end
    [({"transport": "http2"}, ""), ({"transport": "grpcio"}, STOP_AT_EXIT)],
    ids=["forgotten", "stopped by atexit"],
)
def test_what_runs_and_what_waits_is_answered(new_program, gateway, stop) -> None:
    program = new_program(stop + START_BUSY, gateway.address, max_workers=1)
    peer = gateway.accept_ready()
    program.hears("READY")
    peer.request("r1")
    peer.request("r2")
    program.hears("handling r1")
    program.signal(signal.SIGUSR1)
    answers = peer.answers(2)
    assert {name: answer.payload for name, answer in answers.items()} == {
        "r1": b"finished",
        "r2": b"finished",
    }
    peer.hears_goodbye()
    assert program.wait() == 0
    assert "Traceback" not in program.stderr


STARTS_NO_THREADS = """
import atexit
from revconn.runtime import threads

def start_none(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")

def from_its_end_on(state):
    atexit.register(setattr, threading.Thread, "start", start_none)

threads.SPARES_NEEDED = True  # as on Python 3.12; others need none
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
connector.on_state_change(from_its_end_on)

@connector.method("/echo.Echo/Say")
def answer(request):
    say("handling", request.request_id)
    signal.sigwait({signal.SIGUSR2})  # in this thread: the main one may begin to wait just then
    return b"finished"

connector.start(block=False)
wait_for_sigusr1()
say("leaving")
"""


@pytest.mark.parametrize("transport_options", [{"transport": "http2"}], ids=["http2"])
def test_where_no_thread_starts_any_more_there_is_a_second_connection_all_the_same(
    new_program, gateway
) -> None:
    # The goodbye is due at once, with this little time.
    program = new_program(STARTS_NO_THREADS, gateway.address, drain_timeout=5.0)
    peer = gateway.accept_ready()
    program.hears("READY")
    peer.request("r1")
    program.hears("handling r1")
    program.signal(signal.SIGUSR1)
    peer.hears("status")
    program.signal(signal.SIGUSR2)
    assert peer.answer("r1").payload == b"finished"
    peer.end()
    assert program.wait() == 0
    assert "Traceback" not in program.stderr


@pytest.mark.parametrize("transport_options", [{"transport": "grpcio"}], ids=["grpcio"])
def test_where_there_is_no_second_connection_goodbye_is_said_when_all_is_answered(
    new_program, gateway
) -> None:
    program = new_program(STARTS_NO_THREADS, gateway.address, drain_timeout=5.0)
    peer = gateway.accept_ready()
    program.hears("READY")
    peer.request("r1")
    program.hears("handling r1")
    program.signal(signal.SIGUSR1)
    program.hears("DRAINING")
    program.signal(signal.SIGUSR2)
    assert peer.answer("r1").payload == b"finished"
    peer.hears_goodbye()
    peer.end()
    assert program.wait() == 0, "and no channel of grpcio's keeps it from ending"
    assert "Traceback" not in program.stderr


@pytest.mark.parametrize(
    ("transport_options", "body"),
    [({"transport": "http2"}, START_BUSY), ({"transport": "grpcio"}, "connector.start()")],
    ids=["forgotten", "blocking"],
)
def test_a_handler_and_a_callback_that_hang_keep_no_process_alive(
    new_program, gateway, body
) -> None:
    program = new_program(HANG + body, gateway.address, drain_timeout=0.5)
    peer = gateway.accept_ready()
    program.hears("READY")
    peer.request("r1", method="/echo.Echo/Hang")
    program.hears("handling r1")
    program.signal(signal.SIGTERM if "start()" in body else signal.SIGUSR1)
    assert program.wait() == 0
    assert "gave up Request('/echo.Echo/Hang', request_id='r1')" in program.stderr


FORKS = """
import os

@connector.method("/echo.Echo/Say")
def answer(request):
    return b"from the parent"

connector.start(block=False)
connector.wait_ready(30)
child = os.fork()
if not child:
    sys.exit(0)
say("child ended with", os.waitpid(child, 0)[1])
wait_for_sigusr1()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("transport_options", [{"transport": "http2"}], ids=["http2"])
def test_a_forked_child_that_ends_ends_nothing_of_its_parents(new_program, gateway) -> None:
    program = new_program(FORKS, gateway.address, drain_timeout=1.0)
    peer = gateway.accept_ready()
    program.hears("child ended with 0")
    peer.request("r1")
    assert peer.answer("r1").payload == b"from the parent"
    program.signal(signal.SIGUSR1)
    assert program.wait() == 0


def test_while_a_handler_runs_and_the_connection_breaks(new_program, proxy, gateway) -> None:
    program = new_program(START_BUSY, proxy.address, drain_timeout=0.5)
    peer = gateway.accept_ready()
    program.hears("READY")
    peer.request("r1")
    program.hears("handling r1")
    program.signal(signal.SIGUSR1)
    program.hears("DRAINING")
    proxy.reset_all()
    assert program.wait() == 0
    assert "Traceback" not in program.stderr
