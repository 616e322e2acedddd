"""The watchdog, by the clock and over real sockets."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from typing import Callable

import pytest

from revconn import Connector, Request, supervisor
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.observing import watchdog
from revconn.observing.watchdog import Watchdog
from revconn.serving.handlers import Runs
from revconn.testing import Fault
from tests.support.requests import request_of
from tests.support.scripted_gateway import Peer
from tests.support.waiting import eventually

TIMEOUT = 60.0
MIB = 1 << 20


# By the clock


class Clock:
    """Each wait takes as long as it should, and so much longer."""

    def __init__(self, *late: float) -> None:
        self.now = 100.0
        self._late = iter(late)

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        late = next(self._late, None)
        if late is None:
            return True
        self.now += seconds + late
        return False


def watch(runs: Runs, clock: Clock) -> list[float]:
    """The instants at which it looked."""
    looks: list[float] = []
    Watchdog(runs, [looks.append], interval=1.0, clock=clock, wait=clock.wait).run()
    return looks


def request(method: str) -> Request:
    return request_of(ForwardRequest(request_id="r1", method_path=method))


def messages(caplog: pytest.LogCaptureFixture, beginning: str) -> list[str]:
    said = [record.getMessage() for record in caplog.records]
    return [message for message in said if message.startswith(beginning)]


def test_it_looks_at_every_interval_until_it_is_stopped(caplog) -> None:
    assert watch(Runs(), Clock(0.0, 0.1, 0.9)) == pytest.approx([101.0, 102.1, 104.0])
    assert not caplog.records


def test_handlers_that_ran_while_it_could_not_wake_are_named_afterwards(caplog) -> None:
    runs = Runs()
    runs.running[1] = (request("/a.A/Long"), 90.0)
    runs.running[2] = (request("/b.B/Short"), 102.9)
    runs.remember(request("/c.C/Ended"), 100.5, 103.0)
    watch(runs, Clock(2.0))
    assert messages(caplog, "interpreter held: ") == [
        "interpreter held: nothing else ran for 2.0 s, heartbeats neither, while handlers ran of"
        " '/a.A/Long', '/c.C/Ended'; C code that keeps the interpreter's lock does that (a regular"
        " expression, say), or a machine that gives the process no time"
    ]


def test_without_a_handler_none_is_blamed(caplog) -> None:
    watch(Runs(), Clock(2.0))
    assert "heartbeats neither, and it was no handler; " in caplog.text


def test_an_interpreter_that_is_held_again_and_again_is_not_a_line_each_time(caplog) -> None:
    watch(Runs(), Clock(*[2.0] * 50))  # three seconds each
    assert len(messages(caplog, "interpreter held: ")) == 2


def test_while_there_is_nothing_to_look_at_it_looks_once_and_its_reminders_rest() -> None:
    idle = iter([False, True, True, True, False, True])
    looks: list[float] = []
    rests: list[float] = []
    clock = Clock(*[0.0] * 6)
    Watchdog(
        Runs(),
        [looks.append],
        interval=1.0,
        clock=clock,
        wait=clock.wait,
        is_idle=lambda: next(idle),
        rests=[rests.append],
    ).run()
    assert looks == [101.0, 102.0, 105.0, 106.0]
    assert rests == [103.0, 104.0]


def test_an_interpreter_that_was_held_long_ago_is_new_trouble_though_nothing_was_looked_at(
    caplog,
) -> None:
    waits = [2.0, *[0.0] * 200, 2.0]
    clock = Clock(*waits)
    Watchdog(Runs(), [], interval=1.0, clock=clock, wait=clock.wait, is_idle=lambda: True).run()
    assert len(messages(caplog, "interpreter held: ")) == 2
    clock = Clock(*waits, *[0.0] * 200, *waits)
    Watchdog(Runs(), [], interval=1.0, clock=clock, wait=clock.wait, is_idle=lambda: True).run()
    assert len(messages(caplog, "interpreter held: ")) == 2 + 4


def test_one_that_cannot_tell_whether_there_is_anything_looks(caplog) -> None:
    def is_idle() -> bool:
        raise MemoryError

    looks: list[float] = []
    clock = Clock(0.0, 0.0, 0.0)
    Watchdog(
        Runs(), [looks.append], interval=1.0, clock=clock, wait=clock.wait, is_idle=is_idle
    ).run()
    assert looks == [101.0, 102.0, 103.0]


def test_a_forsaken_one_ends_without_a_lock() -> None:
    looks: list[float] = []
    clock = Clock(0.0, 0.0)
    dog = Watchdog(Runs(), [looks.append], interval=1.0, clock=clock, wait=clock.wait)
    dog.forsake()
    dog.run()
    assert looks == []


# Over sockets


class Hold:
    """A handler that waits to be let go."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.let_go = threading.Event()
        self.answer = b"held"

    def __call__(self, request: Request) -> bytes:
        self.entered.release()
        assert self.let_go.wait(TIMEOUT)
        return self.answer


@pytest.fixture
def hold() -> Iterator[Hold]:
    hold = Hold()
    yield hold
    hold.let_go.set()


@pytest.fixture
def connect(new_connector, gateway) -> Callable[..., tuple[Connector, Peer]]:
    """``connect(handler, **options)``: a connector that serves, and its peer."""

    def connect(handler, inline: bool = False, **options) -> tuple[Connector, Peer]:
        connector = new_connector(options.pop("address", gateway.address), **options)
        connector.add_method("/echo.Echo/Say", handler, inline=inline)
        connector.start(block=False)
        return connector, gateway.accept_ready()

    return connect


@pytest.mark.parametrize("inline", [False, True], ids=["pooled", "inline"])
def test_a_slow_handler_is_named_with_its_request_and_its_stack_and_no_payload(
    connect, hold, caplog, inline
) -> None:
    _, peer = connect(hold, inline, slow_handler_after=0.1)
    peer.request("r1", payload=b"a secret")
    eventually(lambda: messages(caplog, "slow handler: "))
    hold.let_go.set()
    peer.answer("r1")
    (record,) = (r for r in caplog.records if r.getMessage().startswith("slow handler: "))
    assert record.levelno == logging.WARNING
    assert "Request('/echo.Echo/Say', request_id='r1')" in record.getMessage()
    assert "self.let_go.wait(TIMEOUT)" in record.stack_info
    assert "a secret" not in caplog.text


def test_a_slow_handler_is_named_while_the_network_is_down(connect, hold, gateway, caplog) -> None:
    _, peer = connect(hold, slow_handler_after=0.3)
    peer.request("r1")
    assert hold.entered.acquire(timeout=TIMEOUT)
    gateway.stop()
    eventually(lambda: messages(caplog, "slow handler: "))
    assert messages(caplog, "lost the connection: ")


def test_without_a_limit_no_handler_is_slow(connect, hold, caplog, monkeypatch) -> None:
    monkeypatch.setattr(supervisor, "_WATCH_INTERVAL", 0.02)
    monkeypatch.setattr(watchdog, "_WAIT_FOR_WORKER", 0.2)
    _, peer = connect(hold, slow_handler_after=None, max_workers=1)
    peer.requests("r1", "r2")
    eventually(lambda: messages(caplog, "pool full: "))  # by then it has looked often
    assert not messages(caplog, "slow handler: ")


def test_a_full_pool_is_told_from_a_slow_handler(connect, hold, caplog, monkeypatch) -> None:
    monkeypatch.setattr(watchdog, "_WAIT_FOR_WORKER", 0.2)
    monkeypatch.setattr(supervisor, "_WATCH_INTERVAL", 0.05)
    _, peer = connect(hold, max_workers=2)
    peer.requests("r1", "r2", "r3", "r4")
    (message,) = eventually(lambda: messages(caplog, "pool full: "))
    assert message.startswith("pool full: 2 requests wait for a worker, the first for ")
    assert message.endswith(" s; all 2 workers are busy")
    assert not messages(caplog, "slow handler: ")
    assert not messages(caplog, "gateway not reading: ")


def test_a_gateway_that_does_not_read_is_told_from_one_that_is_gone(
    connect, hold, proxy, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(watchdog, "_WAIT_FOR_READER", 0.3)
    monkeypatch.setattr(supervisor, "_WATCH_INTERVAL", 0.05)
    hold.answer = bytes(3 * MIB)
    connector, peer = connect(hold, address=proxy.address)
    peer.requests(*(f"r{number}" for number in range(16)))
    eventually(lambda: connector.stats()["accepted"] == 16)
    proxy.fault = Fault.STALL
    hold.let_go.set()
    (message,) = eventually(lambda: messages(caplog, "gateway not reading: "))
    assert message.startswith(f"gateway not reading: {proxy.address} has taken nothing")
    for other in ("lost the connection", "pool full", "slow handler"):
        assert not messages(caplog, other)
    proxy.fault = Fault.NONE
    assert len(peer.answers(16)) == 16


@pytest.mark.skipif(os.name != "posix", reason="usleep() is POSIX")
@pytest.mark.parametrize("inline", [False, True], ids=["pooled", "inline"])
def test_a_handler_that_held_the_interpreters_lock_is_named_afterwards(
    connect, caplog, inline, monkeypatch
) -> None:
    monkeypatch.setattr(watchdog, "_LATENESS", 1.5)  # a lock held by machines' load is shorter
    usleep = ctypes.PyDLL(None).usleep  # unlike CDLL's it keeps the lock
    _, peer = connect(lambda request: usleep(1_800_000) and b"", inline, slow_handler_after=0.2)
    peer.request("r1")
    peer.answer("r1")
    (message,) = eventually(lambda: messages(caplog, "interpreter held: "))
    assert "while handlers ran of '/echo.Echo/Say'" in message
