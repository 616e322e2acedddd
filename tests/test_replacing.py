"""Handlers that take the place of others while the connector serves, and connectors that should."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from revconn import Connector
from revconn.core.routing import Routes
from revconn.serving.handlers import Handlers
from tests.support.connectors import QUICK
from tests.support.scripted_gateway import ScriptedGateway
from tests.support.threads import TIMEOUT

SAY = "/echo.Echo/Say"


@pytest.fixture
def connector(gateway: ScriptedGateway) -> Iterator[Connector]:
    made = Connector(gateway.address, **QUICK, max_workers=1)
    yield made
    made.abort()


def say_kind(kind: str) -> Callable[[Any], bytes]:
    """A handler that says its name and where it runs."""

    def handler(request: object) -> bytes:
        where = threading.current_thread().name
        return f"{kind} {'worker' if 'handler' in where else 'inline'}".encode()

    return handler


def test_a_replaced_handler_serves_from_then_on_inline_or_in_a_worker(
    connector: Connector, gateway: ScriptedGateway
) -> None:
    connector.method(SAY, replace=True)(say_kind("first"))
    connector.add_service("echo.Echo", say_kind("any"))
    connector.start(block=False)
    peer = gateway.accept_ready()

    def answer(number: int, method: str = SAY) -> bytes:
        peer.request(f"r{number}", method=method)
        return peer.answer(f"r{number}").payload

    assert answer(1) == b"first worker"
    connector.add_method(SAY, say_kind("second"), inline=True, replace=True)
    assert answer(2) == b"second inline"
    connector.method(SAY, replace=True)(say_kind("third"))
    assert answer(3) == b"third worker"
    assert answer(4, "/echo.Echo/Other") == b"any worker"
    connector.add_service("echo.Echo", say_kind("all"), replace=True)
    assert answer(5, "/echo.Echo/Other") == b"all worker"
    assert answer(6) == b"third worker"


def test_a_request_that_waits_for_a_worker_meets_the_new_handler_and_one_that_runs_the_old(
    connector: Connector, gateway: ScriptedGateway
) -> None:
    running, release = threading.Event(), threading.Event()

    @connector.method(SAY)
    def old(request: object) -> bytes:
        running.set()
        release.wait(TIMEOUT)
        return b"old"

    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.request("r1")
    peer.request("r2")
    assert running.wait(TIMEOUT)
    connector.add_method(SAY, lambda request: b"new", replace=True)
    release.set()
    answers = peer.answers(2)
    assert (answers["r1"].payload, answers["r2"].payload) == (b"old", b"new")


def test_what_came_for_an_inline_handler_never_runs_one_that_may_block_inline() -> None:
    handlers = Handlers()
    inline, pooled = say_kind("inline"), say_kind("pooled")
    handlers.add_method(SAY, inline, inline=True, replace=False)
    handlers.add_method(SAY, pooled, inline=False, replace=True)

    def found(routes: Routes) -> Any:
        return routes.find(SAY)

    assert found(handlers.inline) is None
    assert found(handlers.inline_ever) is inline
    assert found(handlers.all) is pooled


@pytest.fixture
def started() -> Iterator[Callable[..., Connector]]:
    """``started(target, *services)``: a connector that has been, and that no gateway answers."""
    made: list[Connector] = []

    def start(target: str, *services: str) -> Connector:
        options: dict[str, Any] = {**QUICK, "services": services}
        made.append(Connector(target, **options))
        made[-1].start(block=False)
        return made[-1]

    yield start
    for connector in made:
        connector.abort()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and "another connector" in record.getMessage()
    ]


def test_a_second_connector_of_a_service_at_one_gateway_is_warned_of_with_the_remedy(
    started: Callable[..., Connector], caplog: pytest.LogCaptureFixture
) -> None:
    started("127.0.0.1:1", "a.A", "b.B")
    started("127.0.0.1:1", "b.B", "c.C")
    assert warnings(caplog) == [
        "another connector of this process serves b.B at 127.0.0.1:1 already, and the gateway lets"
        " both take turns: stop() the older one first, or give it the new handlers with"
        " add_method(..., replace=True)"
    ]


def test_the_first_of_three_is_not_forgotten_when_the_second_stops(
    started: Callable[..., Connector], caplog: pytest.LogCaptureFixture
) -> None:
    started("127.0.0.1:1", "a.A")
    started("127.0.0.1:1", "a.A").abort()
    started("127.0.0.1:1", "a.A")
    assert len(warnings(caplog)) == 2


def test_another_spelling_of_a_target_is_the_same_gateway(
    started: Callable[..., Connector], caplog: pytest.LogCaptureFixture
) -> None:
    started("localhost:1", "a.A")
    started("dns:///LOCALHOST.:1", "a.A")
    assert len(warnings(caplog)) == 1


def test_nobody_is_warned_of_another_gateway_another_service_or_one_that_was_stopped(
    started: Callable[..., Connector], caplog: pytest.LogCaptureFixture
) -> None:
    first = started("127.0.0.1:1", "a.A")
    started("127.0.0.1:2", "a.A")
    started("127.0.0.1:1", "b.B")
    first.stop()
    second = started("127.0.0.1:1", "a.A")
    second.abort()
    started("127.0.0.1:1", "a.A")
    assert warnings(caplog) == []


# In a process of its own: what other tests have left to grpc's threads is no child's to end.
FORKS = """
import logging, os, sys
from revconn import Connector

logging.basicConfig(stream=sys.stdout, format="%(process)d: %(message)s")

def start():
    connector = Connector("127.0.0.1:1", api_key="key", tls=False, services=["a.A"])
    connector.start(block=False)
    return connector

first = start()
child = os.fork()
second = start()
if not child:
    sys.stdout.flush()
    os._exit(0)
_, status = os.waitpid(child, 0)
first.abort()
second.abort()
print("parent:", os.getpid(), "child:", status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_nor_of_one_that_serves_in_the_parent_process() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (run.returncode, run.stderr) == (0, "")
    *lines, last = run.stdout.splitlines()
    warned = [line.partition(":")[0] for line in lines if "another connector" in line]
    assert [f"parent: {process} child: 0" for process in warned] == [last]
