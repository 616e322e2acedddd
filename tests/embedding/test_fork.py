"""What a fork does to connectors, with real forks: a started one stays the parent's."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from typing import Callable

import grpc
import pytest

from tests.embedding.conftest import APPS, EmbeddingGateway
from tests.support.apps import TIMEOUT, App

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

RunApp = Callable[..., App]
both_transports = pytest.mark.parametrize("transport", ["http2", "grpcio"])

SAYS_WHY = (
    "RevconnError: this connector was started before a fork and serves in the parent only;"
    " make and start one in each child, after the fork"
)


@pytest.mark.parametrize(
    ("transport", "way"),
    [("grpcio", "inert_after_os_fork"), ("http2", "inert_after_multiprocessing")],
)
def test_one_started_before_is_inert_in_the_child_and_says_why(
    gateway: EmbeddingGateway, run_app: RunApp, transport: str, way: str
) -> None:
    app = run_app("forking.py", transport, way)
    (line,) = app.hears("outcomes")
    assert json.loads(line.partition(" ")[2]) == {
        "start": SAYS_WHY,
        "start(block=False)": SAYS_WHY,
        "with": SAYS_WHY,
        "wait_ready": SAYS_WHY,
        "wait": SAYS_WHY,
        "add_method": SAYS_WHY,
        "add_service": SAYS_WHY,
        "stop": "<Stopped set>",
        "abort": "None",
        "state": "'CLOSED'",
        "connection_id": "None",
        "links": "['CLOSED']",
        "stats": "{}",
        "on_state_change": "None",
        "repr": "True",
    }
    assert gateway.connections == 1
    assert gateway.call("/app.App/Who") == str(app.pid)


@both_transports
def test_forking_again_and_again_while_requests_flow_hangs_nobody(
    gateway: EmbeddingGateway, run_app: RunApp, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    # grpc's own care for forks lets a child swallow its parent's wake-ups: topics/transports.
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
    app = run_app("forking.py", transport, "fork_in_a_loop")
    app.hears("begin")
    over = threading.Event()
    answers: set[str] = set()
    errors: list[str] = []

    def keep_calling() -> None:
        with grpc.insecure_channel(gateway.address) as channel:
            who = channel.unary_unary("/app.App/Who")
            while not over.wait(0.002):
                try:
                    answers.add(bytes(who(b"", timeout=TIMEOUT)).decode())
                except grpc.RpcError as error:
                    errors.append(f"{error.code()}: {error.details()}")

    callers = [threading.Thread(target=keep_calling) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        (verdict,) = app.hears("forked, failed:")
    finally:
        over.set()
        for caller in callers:
            caller.join()
    assert verdict == "forked, failed: 0", app.output
    assert errors == []
    assert answers == {str(app.pid)}
    assert gateway.connections == 1


@both_transports
def test_one_created_before_and_started_after_serves_in_each_child(
    gateway: EmbeddingGateway, run_app: RunApp, transport: str
) -> None:
    app = run_app("forking.py", transport, "created_before_started_after")
    gateway.wait_connections(2, app)
    serving = {gateway.call("/app.App/Who") for _ in range(6)}
    assert len(serving) == 2
    assert str(app.pid) not in serving


# Not with grpcio: a process forked from one that has used grpcio cannot rely on grpcio.
def test_parent_and_children_serve_each_with_one_of_its_own(
    gateway: EmbeddingGateway, run_app: RunApp
) -> None:
    app = run_app("forking.py", "http2", "one_in_each")
    gateway.wait_connections(3, app)
    serving = {gateway.call("/app.App/Who") for _ in range(9)}
    assert len(serving) == 3
    assert str(app.pid) in serving


@both_transports
def test_locks_that_were_held_during_the_fork_do_not_keep_the_child_from_starting(
    gateway: EmbeddingGateway, run_app: RunApp, transport: str
) -> None:
    app = run_app("forking.py", transport, "forked_while_locks_are_held")
    gateway.wait_connections(1, app)
    assert gateway.call("/app.App/Who") != str(app.pid)


# Not with grpcio, which keeps its sockets to itself: there the child keeps the connection up.
def test_the_connection_does_not_outlive_the_parent_in_a_child(
    gateway: EmbeddingGateway, run_app: RunApp
) -> None:
    app = run_app("forking.py", "http2", "a_child_that_stays")
    (said,) = app.hears("child")
    assert gateway.connections == 1
    app.signal(signal.SIGKILL)
    gateway.wait_connections(0, app)
    os.kill(int(said.split()[1]), 0)  # the child is still there


def test_nor_does_a_connection_that_was_just_being_made(
    start_app: RunApp, gateway: EmbeddingGateway
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        app = start_app(
            [sys.executable, str(APPS / "forking.py"), "http2", "a_child_made_while_dialling"],
            DIAL=f"127.0.0.1:{listener.getsockname()[1]}",
        )
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            assert connection.recv(1) == b"\x16"  # its TLS handshake has begun
            app.signal(signal.SIGUSR1)
            (said,) = app.hears("child")
            app.signal(signal.SIGKILL)
            while connection.recv(4096):
                pass
        os.kill(int(said.split()[1]), 0)


def test_a_process_that_a_handler_forked_obeys_sigterm_and_can_serve_and_stop(
    gateway: EmbeddingGateway, run_app: RunApp
) -> None:
    app = run_app("forking.py", "http2", "a_handler_that_forks")
    gateway.wait_connections(1, app)
    assert gateway.call("/app.App/Terminated") == str(-signal.SIGTERM)
    assert gateway.call("/app.App/Serving") == "0", app.output
    app.stop()
    assert "start returned" in app.output
