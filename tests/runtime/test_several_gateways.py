"""Several gateways behind one name: one comes, one is removed, one is killed, under load."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from revconn import State
from revconn.gateway import Gateway
from revconn.link import every_address
from tests.support.names import Names
from tests.support.threads import TIMEOUT
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 without further ado"
)

NAME = "gateways.example.com"
ONE, TWO, THREE = "127.0.0.1", "127.0.0.2", "127.0.0.3"
SAY = "/echo.Echo/Say"
CALLERS = 6
# Seconds, for which the link to the killed one tries to deliver what was in flight there.
DRAIN_TIMEOUT = 2.0
HANDLER_TAKES = 0.02  # seconds: so that calls are in flight whenever something happens


class GatewayProcess:
    """A gateway in a process of its own, which can be killed."""

    def __init__(self, ip: str, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "revconn", "gateway", "--address", f"{ip}:{port}"],
            env={**os.environ, "REVCONN_API_KEYS": "key"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(TIMEOUT)


class RoundRobin:
    """Callers that take the gateways in turn, without a pause, and keep a record of each call.

    ``_lock`` guards all of it.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}
        self._turn: list[str] = []
        self._in_flight: dict[int, str] = {}
        self._made = 0
        self.answered: Counter[str] = Counter()
        self.failed: dict[int, str] = {}
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call, name="caller") for _ in range(CALLERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def add(self, ip: str) -> None:
        channel = grpc.insecure_channel(f"{ip}:{self._port}")
        grpc.channel_ready_future(channel).result(TIMEOUT)
        with self._lock:
            self._channels[ip] = channel
            self._turn.append(ip)

    def remove(self, ip: str) -> None:
        """Call that one no more; its calls in flight go on."""
        with self._lock:
            self._turn.remove(ip)

    def kill(self, ip: str, gateway: GatewayProcess) -> set[int]:
        """Kill a gateway, and call it no more: the calls that were in flight there."""
        with self._lock:
            in_flight = {number for number, where in self._in_flight.items() if where == ip}
            gateway.kill()
            self._turn.remove(ip)
        return in_flight

    def is_used(self, ip: str) -> None:
        """Wait until so many calls more were answered there that every caller has had its turn."""
        enough = self.answered[ip] + 2 * CALLERS
        eventually(lambda: self.answered[ip] >= enough)

    def _call(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                ip = self._turn.pop(0)
                self._turn.append(ip)
                number = self._made
                self._made += 1
                self._in_flight[number] = ip
                say = self._channels[ip].unary_unary(SAY)
            problem = None
            try:
                assert say(b"%d" % number, timeout=30.0) == b"%d" % number
            except grpc.RpcError as error:
                problem = f"{ip}: {error.code()}: {error.details()}"
            with self._lock:
                del self._in_flight[number]
                if problem is None:
                    self.answered[ip] += 1
                else:
                    self.failed[number] = problem

    def finish(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
        for channel in self._channels.values():
            channel.close()


@pytest.fixture
def port() -> int:
    """Free on all three."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_server((ONE, 0)))
        port = first.getsockname()[1]
        for ip in (TWO, THREE):
            stack.enter_context(socket.create_server((ip, port)))
        return port


@pytest.fixture
def gateways(port: int) -> Iterator[dict[str, GatewayProcess]]:
    running = {ip: GatewayProcess(ip, port) for ip in (ONE, TWO, THREE)}
    yield running
    for gateway in running.values():
        gateway.kill()


@pytest.fixture
def callers(port: int) -> Iterator[RoundRobin]:
    callers = RoundRobin(port)
    yield callers
    callers.finish()


@pytest.mark.costly
def test_only_calls_in_flight_at_the_one_that_is_killed_fail(
    new_connector, gateways, callers, port, monkeypatch
) -> None:
    monkeypatch.setattr(every_address, "_INTERVAL", 0.2)
    with Names() as names:
        names[NAME] = [ONE, TWO]
        connector = new_connector(
            f"{NAME}:{port}",
            tls=False,
            proxy=False,
            every_address=True,
            drain_timeout=DRAIN_TIMEOUT,
        )

        @connector.method(SAY)
        def say(request: Any) -> bytes:
            time.sleep(HANDLER_TAKES)
            return request.payload

        def serves(*ips: str) -> bool:
            return [(link.target, link.state) for link in connector.links] == [
                (f"{NAME}:{port} ({ip})", State.READY) for ip in ips
            ]

        connector.start(block=False)
        eventually(lambda: serves(ONE, TWO))
        callers.add(ONE)
        callers.add(TWO)
        callers.start()
        callers.is_used(TWO)

        names[NAME] = [ONE, TWO, THREE]
        eventually(lambda: serves(ONE, TWO, THREE))
        callers.add(THREE)
        callers.is_used(THREE)

        callers.remove(ONE)  # what is in flight there is not waited for
        names[NAME] = [TWO, THREE]
        eventually(lambda: serves(TWO, THREE))
        gateways[ONE].kill()
        callers.is_used(TWO)

        in_flight = callers.kill(TWO, gateways[TWO])
        callers.is_used(THREE)
        names[NAME] = [THREE]
        eventually(lambda: serves(THREE))
        callers.is_used(THREE)
        callers.finish()

        assert in_flight, "the one that was killed had nothing to do"
        assert set(callers.failed) <= in_flight, callers.failed
        assert all(problem.startswith(TWO) for problem in callers.failed.values())
        connector.stop(TIMEOUT)
        stats = connector.stats()
        assert stats["connections"] == 3
        assert stats["answered"] >= sum(callers.answered.values())


# What is in flight at one that the name has no more


@pytest.fixture
def two(port: int) -> Iterator[tuple[Gateway, Gateway]]:
    """Two in this process, on the first two addresses."""
    with Gateway(f"{ONE}:{port}", api_keys="key") as one:
        with Gateway(f"{TWO}:{port}", api_keys="key") as two:
            yield one, two


class Held:
    """A handler that returns when it may."""

    def __init__(self) -> None:
        self.may_return = threading.Event()

    def __call__(self, request: Any) -> bytes:
        assert self.may_return.wait(TIMEOUT)
        return request.payload


@pytest.fixture
def names(monkeypatch) -> Iterator[Names]:
    monkeypatch.setattr(every_address, "_INTERVAL", 0.05)
    with Names() as names:
        names[NAME] = [ONE, TWO]
        yield names


@contextlib.contextmanager
def call_in_flight(new_connector, gateway: Gateway, handler: Held, **options: Any) -> Iterator[Any]:
    """A connector, and a call that its handler holds, by this gateway."""
    port = gateway.address.rpartition(":")[2]
    connector = new_connector(
        f"{NAME}:{port}", tls=False, proxy=False, every_address=True, **options
    )
    connector.add_method(SAY, handler)
    connector.start(block=False)
    eventually(lambda: [link.state for link in connector.links] == [State.READY] * 2)
    with grpc.insecure_channel(gateway.address) as channel:
        call = channel.unary_unary(SAY).future(b"hello", timeout=TIMEOUT)
        eventually(lambda: connector.stats()["in_flight"] == 1)
        try:
            yield connector, call
        finally:
            handler.may_return.set()


def test_a_call_at_a_gateway_that_is_removed_is_answered_before_its_link_goes(
    new_connector, two, names
) -> None:
    _, going = two
    held = Held()
    with call_in_flight(new_connector, going, held) as (connector, call):
        names[NAME] = [ONE]
        eventually(lambda: not takes_calls(going))
        assert len(connector.links) == 2
        held.may_return.set()
        assert call.result(TIMEOUT) == b"hello"
        eventually(lambda: len(connector.links) == 1)
        eventually(lambda: not going.connections())
        stats = connector.stats()
        assert (stats["connections"], stats["answered"], stats["undelivered"]) == (2, 1, 0)


def takes_calls(gateway: Gateway) -> bool:
    """Whether a call there would find the connector: it has not said goodbye yet."""
    with grpc.insecure_channel(gateway.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        request = health_pb2.HealthCheckRequest(service="echo.Echo")
        code = check.future(request, timeout=TIMEOUT).code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)
    return code is grpc.StatusCode.OK


def test_a_call_that_takes_longer_than_a_drain_is_answered_503_there(
    new_connector, two, names, caplog
) -> None:
    _, going = two
    held = Held()
    with call_in_flight(new_connector, going, held, drain_timeout=0.2) as (connector, call):
        names[NAME] = [ONE]
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert "the service stopped before it could answer" in call.details()
        eventually(lambda: len(connector.links) == 1)
        assert "gave up" in caplog.text
        held.may_return.set()
        eventually(lambda: connector.stats()["late"] == 1)
        assert connector.state is State.READY
