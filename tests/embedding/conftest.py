"""What tests of embedded connectors get: a gateway, its callers, and applications."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

import grpc
import pytest

from revconn.testing import TestGateway
from tests.support.apps import TIMEOUT, App
from tests.support.recipes import Recipe
from tests.support.waiting import eventually

KEY = "the-right-key"
APPS = Path(__file__).parent / "apps"


class EmbeddingGateway:
    """A gateway as tests of applications see it."""

    def __init__(self, gateway: TestGateway) -> None:
        self._gateway = gateway
        self.address = gateway.address
        self.restart = gateway.restart

    def call_future(self, method: str) -> grpc.Future:
        """Call a unary method, without waiting."""
        return self._gateway.call_future(method, timeout=TIMEOUT)

    def call(self, method: str, payload: bytes = b"") -> str:
        """Call a unary method."""
        return self._gateway.call(method, payload, timeout=TIMEOUT).decode()

    def call_at_once(self, method: str, count: int) -> list[str]:
        """Make so many calls at the same time."""
        calls = [self.call_future(method) for _ in range(count)]
        return [call.result().decode() for call in calls]

    @property
    def connections(self) -> int:
        return len(self._gateway.gateway.connections())

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the last heartbeat of the one connection."""
        (connection,) = self._gateway.connections()
        return connection.heartbeat_age

    @property
    def serving(self) -> set[str]:
        """The ids of the connections that get requests: not of those that leave."""
        return {connection.connection_id for connection in self._gateway.connections()}

    def wait_serving(self, count: int) -> None:
        """Wait for so many connections that get requests."""
        eventually(lambda: len(self.serving) == count, TIMEOUT)

    def wait_connections(self, count: int, app: App | None = None) -> None:
        try:
            eventually(lambda: self.connections == count, TIMEOUT)
        except AssertionError:
            said = "" if app is None else app.output
            raise AssertionError(f"{self.connections} connections, not {count}:\n{said}") from None


@pytest.fixture
def gateway(make_revconn_gateway: Callable[..., TestGateway]) -> EmbeddingGateway:
    return EmbeddingGateway(make_revconn_gateway(api_key=KEY))


@pytest.fixture
def recipe(gateway: EmbeddingGateway) -> Callable[[str], Recipe]:
    """``recipe(page)``: what a page of the documentation shows, for this gateway."""
    return lambda page: Recipe(page, target=gateway.address, api_key=KEY)


@pytest.fixture
def start_app(gateway: EmbeddingGateway, tmp_path: Path) -> Iterator[Callable[..., App]]:
    """``start_app(command)`` where ``apps/`` can be imported; nothing of it survives the test."""
    started: list[App] = []
    scripts = os.path.dirname(sys.executable)
    env = {
        "HOME": str(tmp_path),
        "PYTHONPATH": str(APPS),
        "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
        "REVCONN_TARGET": gateway.address,
        "REVCONN_API_KEY": KEY,
    }

    def start(command: Sequence[str], **extra: str) -> App:
        started.append(App(command, tmp_path, {**env, **extra}))
        return started[-1]

    yield start
    for app in started:
        app.kill()


@pytest.fixture
def run_app(start_app: Callable[..., App]) -> Callable[..., App]:
    """``run_app("name", *arguments)``: start one of the scripts in ``apps/``."""
    return lambda name, *arguments: start_app([sys.executable, str(APPS / name), *arguments])
