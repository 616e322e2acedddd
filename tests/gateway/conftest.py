"""A gateway, connectors and callers, on real sockets."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Callable

import grpc
import pytest

from revconn._proto.registry_pb2 import ConnectionRegister
from revconn.gateway import (
    Gateway,
    calls,
    connectors,
    http1,
    peers,
    report,
    rerouting,
    serving,
    wires,
)
from revconn.gateway import thread as gateway_thread
from revconn.gateway.outbound import _data_of
from revconn.http2 import endpoint
from tests.support.scripted_connector import ScriptedConnector
from tests.support.waiting import eventually

# More than is taken by a connector that does not read: the gateway's write of it waits.
LARGE = b"x" * 200_000


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    """What the test opens is closed in the opposite order."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def nothing_goes_wrong_unnoticed(
    caplog: pytest.LogCaptureFixture, resources: ExitStack
) -> Iterator[None]:
    """Fail the test that made somebody, grpc and asyncio included, log an error.

    A test that expects one clears ``caplog`` when it has seen it.
    """
    yield
    resources.close()
    records = caplog.get_records("call") + caplog.get_records("teardown")
    errors = [record for record in records if record.levelname == "ERROR"]
    assert [record for record in errors if not _is_noise(record)] == []


def _is_noise(record: logging.LogRecord) -> bool:
    """grpc wakes the event loops of the process: most find nothing to read, one may be closed."""
    error = record.exc_info[1] if record.exc_info else None
    return isinstance(error, BlockingIOError) or (
        isinstance(error, RuntimeError) and "PollerCompletionQueue" in record.getMessage()
    )


class Clock:
    """The time as gateways see it; it stands still until it is told to move on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Ages and heartbeats in the test's own time. To be asked for before a gateway is."""
    running = [thread.name for thread in threading.enumerate() if thread.name == "revconn-gateway"]
    assert not running, "a gateway runs already, and would go by this clock too"
    clock = Clock()
    for module in (calls, connectors, peers, rerouting, report, serving, wires, gateway_thread):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(serving, "LONGEST_EXPIRY_INTERVAL", 0.01)
    return clock


@pytest.fixture
def impatient(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Floods are a fifth of what they usually are, and nothing is forgiven with time."""
    for module in (endpoint, http1):
        monkeypatch.setattr(module, "_BURST", 400)


@pytest.fixture
def run_gateway(resources: ExitStack) -> Callable[..., Gateway]:
    def run(**options: Any) -> Gateway:
        # The tests' own backends listen on loopback.
        given = {"api_keys": "key", "dial_private": True, **options}
        return resources.enter_context(Gateway(**given))

    return run


@pytest.fixture
def gateway(run_gateway: Callable[..., Gateway]) -> Gateway:
    return run_gateway()


@pytest.fixture
def dial(resources: ExitStack) -> Callable[..., ScriptedConnector]:
    """A stream on which nothing has been said yet."""

    def dial(gateway: Gateway, **options: Any) -> ScriptedConnector:
        return resources.enter_context(ScriptedConnector(gateway.address, **options))

    return dial


@pytest.fixture
def connect(dial: Callable[..., ScriptedConnector]) -> Callable[..., ScriptedConnector]:
    """A registered connector."""

    def connect(
        gateway: Gateway,
        *services: str,
        api_key: str = "key",
        features: str | None = None,
        max_message_bytes: int | None = None,
    ) -> ScriptedConnector:
        metadata = [
            (name, str(value))
            for name, value in (
                ("revconn-features", features),
                ("revconn-max-message-bytes", max_message_bytes),
            )
            if value is not None
        ]
        connector = dial(gateway, metadata=metadata)
        connector.register(*services, api_key=api_key)
        return connector

    return connect


@pytest.fixture
def stall(dial: Callable[..., ScriptedConnector]) -> Callable[..., ScriptedConnector]:
    """A registered connector that does not read."""

    def stall(gateway: Gateway, *services: str) -> ScriptedConnector:
        connector = dial(gateway, reads=False)
        before = len(gateway.connections())
        connector.send(register=ConnectionRegister(api_key="key", services=services))
        eventually(lambda: len(gateway.connections()) > before)
        return connector

    return stall


def stuck(gateway: Gateway, count: int) -> None:
    """Wait until the first connector has so many LARGE calls: one on its way, the others not."""
    eventually(lambda: gateway.connections()[0].pending == count)
    eventually(lambda: unwritten(gateway) == count - 1)


def unwritten(gateway: Gateway) -> int:
    """How many messages, events apart, are to be written to the first connector."""
    messages = gateway._thread._serving.registry.connections[0].outbound._messages
    return sum(_data_of(message) is not None for message in tuple(messages or ()))


def counted(gateway: Gateway, name: str) -> int:
    """One of the gateway's counters."""
    return gateway._thread._serving.shared.counters.snapshot()[name]


@pytest.fixture
def call(resources: ExitStack) -> Callable[..., grpc.Future]:
    """Call a method as any gRPC client would; the call, under way."""

    def call(
        gateway: Gateway, path: str, payload: bytes = b"", *, timeout: float = 120.0, **options: Any
    ) -> grpc.Future:
        channel_options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
        ]
        channel = grpc.insecure_channel(gateway.address, options=channel_options)
        resources.enter_context(channel)
        started = channel.unary_unary(path).future(payload, timeout=timeout, **options)
        resources.callback(lambda: started)  # grpc cancels a call that nobody holds any more
        return started

    return call
