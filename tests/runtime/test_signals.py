"""Signals end a blocking start() in every state; in processes of their own, as users run them."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from revconn import State
from revconn.runtime.signals import Repeats, obey_signals
from revconn.runtime.threads import Mailbox
from revconn.testing import Fault, FaultProxy
from tests.support.connectors import NEVER
from tests.support.programs import Program
from tests.support.scripted_gateway import Peer
from tests.support.threads import in_thread

NOBODY_LISTENS = "127.0.0.1:1"
PROMPTLY = 20.0  # what holds it up would do so for longer
TIMEOUT = 60.0

SERVE = """
connector.start()
say("start returned")
"""

SERVE_SLOWLY = """
@connector.method("/echo.Echo/Say")
def answer(request):
    say("handling")
    wait_for_sigusr1()
    return b"finished"

connector.start()
say("start returned")
"""


def assert_ends_promptly(program: Program, number: signal.Signals) -> None:
    began = time.monotonic()
    program.signal(number)
    program.hears("start returned")
    assert program.wait() == 0
    assert time.monotonic() - began < PROMPTLY
    assert "Traceback" not in program.stderr


def assert_finishes(program: Program, peer: Peer) -> None:
    """It drains: what it has is answered, before it says goodbye and ends."""
    assert peer.answer("r1").payload == b"finished"
    peer.hears_goodbye()
    program.hears("start returned")
    assert program.wait() == 0


def test_while_the_peer_takes_the_connection_and_reads_nothing(new_program, gateway) -> None:
    with FaultProxy(gateway.port, fault=Fault.STALL) as proxy:
        program = new_program(SERVE, proxy.address)
        proxy.wait_connections(1)
        assert_ends_promptly(program, signal.SIGINT)


def test_while_the_gateway_never_says_connected(new_program, gateway) -> None:
    program = new_program(SERVE, gateway.address)
    gateway.accept().hears("register")
    assert_ends_promptly(program, signal.SIGTERM)


@pytest.mark.parametrize(
    ("transport_options", "number"),
    [({"transport": "http2"}, signal.SIGINT), ({"transport": "grpcio"}, signal.SIGTERM)],
)
def test_while_it_backs_off(new_program, number) -> None:
    program = new_program(SERVE, NOBODY_LISTENS, backoff=NEVER)
    program.hears("BACKING_OFF")
    assert_ends_promptly(program, number)


def test_while_it_is_ready_and_idle(new_program, gateway) -> None:
    program = new_program(SERVE, gateway.address)
    peer = gateway.accept_ready()
    program.hears("READY")
    in_thread(peer.hears_goodbye)
    assert_ends_promptly(program, signal.SIGINT)


def test_the_second_signal_ends_it_at_once(new_program, gateway) -> None:
    program = new_program(SERVE_SLOWLY, gateway.address)
    peer = gateway.accept_ready()
    peer.request("r1")
    program.hears("handling")
    program.signal(signal.SIGTERM)
    program.hears("DRAINING")
    began = time.monotonic()
    program.signal(signal.SIGINT)
    program.hears("start returned")
    assert time.monotonic() - began < PROMPTLY
    peer.hears_hang_up()


def test_the_same_signal_twice_within_a_second_lets_a_request_finish(new_program, gateway) -> None:
    program = new_program(SERVE_SLOWLY, gateway.address)
    peer = gateway.accept_ready()
    peer.request("r1")
    program.hears("handling")
    program.signal(signal.SIGTERM)
    program.signal(signal.SIGTERM)
    program.hears("DRAINING")
    program.signal(signal.SIGUSR1)
    assert_finishes(program, peer)


def test_a_repeat_that_interrupts_no_wait_of_the_main_threads_is_a_repeat_all_the_same(
    new_program, gateway
) -> None:
    # Python runs its handler at the main thread's next glance. It aborted when that was a second
    # after the first one.
    body = """
        said = []

        class Said(logging.Handler):
            def emit(self, record):
                said.append(record.getMessage())

        logging.getLogger("revconn").addHandler(Said())
        logging.getLogger("revconn").setLevel(logging.DEBUG)

        @connector.method("/echo.Echo/Say")
        def answer(request):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
            while connector.state is not State.DRAINING:
                time.sleep(0.01)
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            while not any("SIGTERM again" in line for line in said):
                time.sleep(0.01)
            return b"finished"

        connector.start()
        say("start returned")
    """
    program = new_program(body, gateway.address)
    peer = gateway.accept_ready()
    peer.request("r1")
    assert_finishes(program, peer)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_repeat_within_a_second_of_the_signal_that_counted_is_none_of_its_own() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    seen = []
    for now in (100.0, 100.0, 100.9, 101.0, 101.5, 102.1):  # whoever goes on is heard
        clock.now = now
        seen.append(repeats.is_one(signal.SIGTERM))
    assert seen == [False, True, True, False, True, False]
    assert not repeats.is_one(signal.SIGINT), "another signal is another wish"


@pytest.mark.parametrize(
    ("second", "at", "aborted"),
    [("SIGTERM", 0.5, 0), ("SIGTERM", 1.5, 1), ("SIGINT", 0.1, 1), ("SIGHUP", 0.1, 0)],
)
def test_what_a_second_signal_does_depends_on_which_and_when(
    second: str, at: float, aborted: int
) -> None:
    clock, done = Clock(), []
    wakeups: Mailbox[int | None] = Mailbox()

    def drain() -> None:
        done.append("drain")
        clock.now += at
        wakeups.put(signal.Signals[second])
        wakeups.put(None)

    wakeups.put(signal.SIGTERM)
    ended_by = obey_signals(
        wakeups,
        drain,
        abort=lambda: done.append("abort"),
        reload=lambda: done.append("reload"),
        repeats=Repeats(clock),
    )
    assert done.count("drain") == 1
    assert done.count("abort") == aborted
    assert done.count("reload") == (second == "SIGHUP")
    assert ended_by == (signal.Signals[second] if aborted else None)


@pytest.fixture
def handlers():
    """What the signals did before; put back afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    own = {number: lambda *_: None for number in numbers}
    for number, handler in own.items():
        signal.signal(number, handler)
    yield own
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_handlers_from_before_are_put_back(new_connector, gateway, handlers) -> None:
    connector = new_connector(gateway.address)
    during = {}

    def stop_when_ready(state: State) -> None:
        if state is State.READY:
            during.update({number: signal.getsignal(number) for number in handlers})
            connector.abort()

    connector.on_state_change(stop_when_ready)
    accepting = in_thread(gateway.accept_ready)
    connector.start()
    accepting.result(TIMEOUT)
    assert all(during[number] is not handler for number, handler in handlers.items())
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_they_are_put_back_when_start_fails(new_connector, handlers) -> None:
    connector = new_connector(NOBODY_LISTENS)
    connector.stop()
    with pytest.raises(Exception, match="starts once"):
        connector.start()
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_outside_the_main_thread_signals_are_left_alone(new_connector, gateway, handlers) -> None:
    connector = new_connector(gateway.address)
    ready = threading.Event()
    connector.on_state_change(lambda state: ready.set() if state is State.READY else None)
    started = in_thread(connector.start)
    gateway.accept_ready()
    assert ready.wait(TIMEOUT)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    connector.abort()
    started.result(TIMEOUT)
