"""Replicas that are restarted in turn, under load: callers see nothing of it."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Callable

import grpc
import pytest

from revconn import Connector
from revconn.gateway import Gateway
from tests.support.connectors import QUICK, TRANSPORTS
from tests.support.programs import Program
from tests.support.reference_gateway import ReferenceGateway
from tests.support.threads import TIMEOUT
from tests.support.waiting import eventually

CALLS_PER_SECOND = 200
MOST_UNDER_WAY = 20
RESTARTS = 6  # three of each transport's
RESTARTS_OF_PROCESSES = 2  # one of each
SAY = "/echo.Echo/Say"
SLOWEST_HANDLER = 0.02
LONGER_THAN_EVER_NEEDED = 30.0

Done = Callable[[int, str], None]


class Load:
    """Makes calls at a steady rate, however long each takes; ``call(number, done)`` starts one.

    No more than the machine has time for: this is about restarts, not about a backlog.

    ``done(number, problem)`` is told what became of it. ``_lock`` guards ``_done``.
    """

    def __init__(self, call: Callable[[int, Done], None]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._done: dict[int, str] = {}
        self._made = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        self._thread.start()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            # What is late is not made up for.
            due = max(due + 1 / CALLS_PER_SECOND, time.monotonic())
            if self._made - self.answered >= MOST_UNDER_WAY:
                continue
            self._call(self._made, self._count)
            self._made += 1

    def _count(self, number: int, problem: str) -> None:
        with self._lock:
            assert number not in self._done
            self._done[number] = problem

    @property
    def answered(self) -> int:
        """How many calls have ended, one way or the other."""
        return len(self._done)

    def finish(self) -> list[str]:
        """Make no more calls, wait for those under way, and say what went wrong."""
        self._stopping.set()
        self._thread.join()
        # A caller of a lost request is told after 30 seconds: there is no need to wait so long.
        eventually(lambda: self.answered == self._made)
        return [problem for problem in self._done.values() if problem]


@contextmanager
def embedded_gateway() -> Iterator[tuple[str, Callable[[int, Done], None]]]:
    with Gateway(api_keys="key") as gateway, grpc.insecure_channel(gateway.address) as channel:
        say = channel.unary_unary(SAY)

        def call(number: int, done: Done) -> None:
            future = say.future(b"%d" % number, timeout=30.0)
            future.add_done_callback(lambda _: done(number, problem(number, future)))

        def problem(number: int, future: grpc.Future) -> str:
            if future.code() is not grpc.StatusCode.OK:
                return f"{future.code()}: {future.details()}"
            return "" if future.result() == b"%d" % number else "somebody else's answer"

        yield gateway.address, call


@contextmanager
def reference_gateway() -> Iterator[tuple[str, Callable[[int, Done], None]]]:
    with ReferenceGateway() as gateway:

        def call(number: int, done: Done) -> None:
            future = gateway.call(SAY, b"%d" % number)
            future.add_done_callback(lambda _: done(number, problem(number, future.result())))

        def problem(number: int, response) -> str:
            if response.error_message or response.payload == b"%d" % number:
                return response.error_message
            return "somebody else's answer"

        yield gateway.address, call


@pytest.mark.costly
@pytest.mark.parametrize("new_gateway", [embedded_gateway, reference_gateway])
def test_restarts_of_two_replicas_in_turn_lose_no_call(new_gateway) -> None:
    with ExitStack() as resources:
        address, call = resources.enter_context(new_gateway())

        def start(transport: str) -> Connector:
            connector = Connector(address, **{**QUICK, **TRANSPORTS[transport]})
            resources.callback(connector.abort)

            @connector.method(SAY)
            def say(request) -> bytes:
                time.sleep(random.uniform(0.0, SLOWEST_HANDLER))
                return request.payload

            connector.start(block=False)
            connector.wait_ready(TIMEOUT)
            return connector

        replicas = [(transport, start(transport)) for transport in TRANSPORTS]
        load = Load(call)
        for _ in range(RESTARTS):
            transport, replica = replicas.pop(0)
            eventually(lambda: replica.stats()["answered"] > 20)  # noqa: B023 - it ends here
            replica.stop(LONGER_THAN_EVER_NEEDED)
            assert replica.stats()["undelivered"] == 0
            replicas.append((transport, start(transport)))
        assert load.finish() == []


REPLICA = """
import random

@connector.method("/echo.Echo/Say")
def answer(request):
    time.sleep(random.uniform(0.0, 0.02))
    return request.payload

connector.start()
sys.exit(connector.stats()["undelivered"])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGTERM")
@pytest.mark.parametrize("new_gateway", [embedded_gateway, reference_gateway])
@pytest.mark.costly
def test_replicas_that_are_processes_and_are_restarted_by_sigterm_lose_no_call(new_gateway) -> None:
    with ExitStack() as resources:
        address, call = resources.enter_context(new_gateway())

        def start(transport: str) -> Program:
            program = Program(REPLICA, address, **TRANSPORTS[transport])
            resources.callback(program.close)
            program.hears("READY")
            return program

        replicas = [(transport, start(transport)) for transport in TRANSPORTS]
        load = Load(call)
        for restart in range(1, RESTARTS_OF_PROCESSES + 1):
            eventually(lambda: load.answered > 100 * restart)  # noqa: B023 - it ends here
            transport, replica = replicas.pop(0)
            replica.signal(signal.SIGTERM)
            assert replica.wait() == 0
            replicas.append((transport, start(transport)))
        assert load.finish() == []
