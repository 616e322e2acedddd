"""What tests of embedded connectors get: a gateway, its callers, and applications."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import grpc
import pytest

from revconn.gateway import Gateway
from tests.support.apps import TIMEOUT, App
from tests.support.waiting import eventually

KEY = "the-right-key"
APPS = Path(__file__).parent / "apps"


class EmbeddingGateway:
    """The embedded gateway, which can be restarted, and an ordinary caller of what it serves."""

    def __init__(self) -> None:
        self._gateway = Gateway(api_keys=KEY).start()
        self.address = self._gateway.address

    def call(self, method: str, payload: bytes = b"") -> str:
        """Call a unary method."""
        with grpc.insecure_channel(self.address) as channel:
            call = channel.unary_unary(method)
            return bytes(call(payload, timeout=TIMEOUT, wait_for_ready=True)).decode()

    def call_at_once(self, method: str, count: int) -> list[str]:
        """Make so many calls at the same time."""
        with ThreadPoolExecutor(count) as callers:
            return list(callers.map(self.call, [method] * count))

    @property
    def connections(self) -> int:
        return len(self._gateway.connections())

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the last heartbeat of the one connection."""
        (connection,) = self._gateway.connections()
        return connection.heartbeat_age

    def wait_connections(self, count: int, app: App | None = None) -> None:
        try:
            eventually(lambda: self.connections == count, TIMEOUT)
        except AssertionError:
            said = "" if app is None else app.output
            raise AssertionError(f"{self.connections} connections, not {count}:\n{said}") from None

    def restart(self) -> None:
        """Stop, and listen at the same address again."""
        self.stop()
        self._gateway = Gateway(self.address, api_keys=KEY).start()

    def stop(self) -> None:
        self._gateway.stop(grace=0.0)


@pytest.fixture
def gateway() -> Iterator[EmbeddingGateway]:
    gateway = EmbeddingGateway()
    yield gateway
    gateway.stop()


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
