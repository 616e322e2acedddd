"""A connector in a process whose threads are green: gevent's or eventlet's."""

from __future__ import annotations

import time
from typing import Callable

import pytest

from tests.embedding.conftest import EmbeddingGateway
from tests.support.apps import TIMEOUT, App
from tests.support.optional import needs
from tests.support.waiting import eventually

RunApp = Callable[..., App]


@pytest.fixture(params=["gevent", "eventlet"])
def library(request: pytest.FixtureRequest) -> str:
    needs(request.param)
    return request.param


@pytest.fixture
def app(library: str, gateway: EmbeddingGateway, run_app: RunApp) -> App:
    app = run_app("green.py", library)
    gateway.wait_connections(1, app)
    return app


def test_ten_sleeping_handlers_run_at_once_while_green_threads_and_heartbeats_go_on(
    app: App, gateway: EmbeddingGateway
) -> None:
    connected_at = time.monotonic() - gateway.heartbeat_age
    before = int(gateway.call("/app.App/Ticks"))
    began = time.monotonic()
    assert gateway.call_at_once("/app.App/Nap", 10) == ["rested"] * 10
    assert time.monotonic() - began < 10 * 1.5 / 2
    assert int(gateway.call("/app.App/Ticks")) - before > 10
    eventually(lambda: time.monotonic() - gateway.heartbeat_age > connected_at + 0.5, TIMEOUT)


def test_it_comes_back_when_the_gateway_does_and_sigterm_drains_a_blocking_start(
    app: App, gateway: EmbeddingGateway
) -> None:
    gateway.restart()
    gateway.wait_connections(1, app)
    assert gateway.call("/app.App/Nap") == "rested"
    app.stop()
    assert "start returned" in app.output
    assert "Traceback" not in app.output


def test_stop_returns(library: str, gateway: EmbeddingGateway, run_app: RunApp) -> None:
    app = run_app("green.py", library, "--stop")
    assert app.wait() == 0
    assert app.lines[-1] == "stopped CLOSED"


def test_a_forked_child_has_the_green_threads_and_still_does_not_serve(
    library: str, gateway: EmbeddingGateway, run_app: RunApp
) -> None:
    app = run_app("green.py", library, "--serve-on")
    gateway.wait_connections(1, app)
    assert int(gateway.call("/app.App/Fork")) != app.pid
    app.hears("child is CLOSED")
    app.hears("child: this connector was started before a fork")
    assert gateway.connections == 1
    assert gateway.call("/app.App/Nap") == "rested"
