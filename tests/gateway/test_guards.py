"""Whatever a gateway's thread runs into: it serves on, or somebody hears why it does not."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Callable

import grpc
import pytest

from revconn._proto.registry_pb2 import ForwardRequest
from revconn.cli.gateway import _Watch
from revconn.core.gateway_side import GatewayConnection
from revconn.gateway import Gateway
from revconn.gateway.backends import Backends
from revconn.gateway.calls import Calls
from revconn.runtime.threads import Mailbox
from tests.gateway.test_backends import register
from tests.support.backend import Backend
from tests.support.threads import in_thread
from tests.support.waiting import eventually

TIMEOUT = 30.0


class Peculiar(BaseException):
    """No Exception, and no exit either."""


def raising(kind: type[BaseException]) -> Callable[..., Any]:
    """A new one each time: its traceback keeps what it came by."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise kind("a bug")

    return fail


def on_the_loop(gateway: Gateway, do: Callable[[], object]) -> None:
    thread = gateway._thread
    assert thread is not None
    assert thread._loop is not None
    thread._loop.call_soon_threadsafe(do)


# Waiting for its end


def test_whoever_waits_for_a_gateway_goes_on_when_it_was_stopped(gateway) -> None:
    with pytest.raises(TimeoutError, match="still running after 0 s"):
        gateway.wait(0)
    waiting = in_thread(gateway.wait)
    gateway.stop(grace=0.0)
    waiting.result(TIMEOUT)
    gateway.wait()  # there is none to wait for


# In a process of its own: SystemExit would end the tests' as well.
ENDED_BY_A_BUG = """
import logging, sys
from revconn.cli.gateway import _Watch
from revconn.gateway import Gateway
from revconn.runtime.threads import Mailbox

def fail():
    raise {error}("a bug")

logging.basicConfig(stream=sys.stdout, format="%(message)s")
gateway, wakeups = Gateway(api_keys="key").start(), Mailbox()
watch = _Watch(gateway, wakeups)
gateway._thread._loop.call_soon_threadsafe(fail)
try:
    gateway.wait({timeout})
except {error} as error:
    print("waited for", repr(error))
assert wakeups.get(timeout={timeout}) is None
print("has failed:", watch.has_failed)
"""


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt"])
def test_whoever_waits_hears_what_ended_it_and_so_does_the_command(error: str) -> None:
    program = ENDED_BY_A_BUG.format(error=error, timeout=TIMEOUT)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=2 * TIMEOUT
    )
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert "the gateway failed" in lines
    assert lines[-2:] == [f"waited for {error}('a bug')", "has failed: True"]


def test_a_command_whose_gateway_was_stopped_has_not_failed(gateway) -> None:
    wakeups: Mailbox[int | None] = Mailbox()
    watch = _Watch(gateway, wakeups)
    gateway.stop(grace=0.0)
    assert wakeups.get(timeout=TIMEOUT) is None
    assert not watch.has_failed


# What it outlives


def test_what_fails_on_its_loop_is_logged_and_it_serves_on(gateway, connect, call, caplog) -> None:
    connector = connect(gateway, "echo.Echo")
    on_the_loop(gateway, raising(LookupError))
    eventually(lambda: "a bug" in caplog.text)
    pending = call(gateway, "/echo.Echo/Say")
    connector.respond(connector.receive_request().request_id, b"answered")
    assert pending.result() == b"answered"
    assert caplog.text.count("on the event loop: Exception in callback") == 1
    caplog.clear()


def test_what_fails_at_the_end_of_a_turn_holds_up_nobody_else(
    gateway, connect, call, caplog
) -> None:
    connector = connect(gateway, "echo.Echo")
    turn = gateway._thread._serving.listener.turn
    done: list[int] = []

    def fill() -> None:
        for number in range(4):
            turn.at_end(raising(LookupError) if number % 2 == 0 else lambda: done.append(1))

    on_the_loop(gateway, fill)
    eventually(lambda: len(done) == 2)
    pending = call(gateway, "/echo.Echo/Say")
    connector.respond(connector.receive_request().request_id, b"answered")
    assert pending.result() == b"answered"
    assert caplog.text.count("LookupError: a bug") == 2
    caplog.clear()


@pytest.fixture
def broken_logging() -> Iterator[None]:
    """Every line that anybody logs fails."""
    handler = logging.Handler()
    handler.addFilter(raising(SystemExit))
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)


@pytest.mark.usefixtures("broken_logging")
def test_an_error_on_its_loop_that_cannot_be_logged_leaves_it_serving(
    gateway, connect, call
) -> None:
    on_the_loop(gateway, raising(LookupError))
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, "/echo.Echo/Say")
    connector.respond(connector.receive_request().request_id, b"served")
    assert pending.result(TIMEOUT) == b"served"


def test_expiry_outlives_a_step_that_fails_and_takes_the_others(
    run_gateway, clock, connect, monkeypatch, caplog
) -> None:
    connect(run_gateway())
    monkeypatch.setattr(GatewayConnection, "tick", raising(Peculiar))
    clock.advance(120.0)
    eventually(lambda: "expiry: a bug in the gateway" in caplog.text)
    looked: list[float] = []
    monkeypatch.setattr(Backends, "expire", lambda self, now, timeout: looked.append(now))
    eventually(lambda: len(looked) > 3)
    assert caplog.text.count("expiry: a bug in the gateway") == 1
    caplog.clear()


@pytest.mark.parametrize("error", [Peculiar, SystemExit])
def test_whatever_a_stream_runs_into_ends_that_stream(
    gateway, connect, monkeypatch, caplog, error: type[BaseException]
) -> None:
    broken, sound = connect(gateway), connect(gateway)
    monkeypatch.setattr(Calls, "answer", raising(error))
    broken.respond("1")
    assert broken.ended()[0] is grpc.StatusCode.INTERNAL
    assert [info.connection_id for info in gateway.connections()] == [sound.connection_id]
    caplog.clear()


def test_a_connectors_call_to_a_backend_that_runs_into_a_bug_is_answered(
    run_gateway, connect, resources, monkeypatch, caplog
) -> None:
    gateway = run_gateway(api_keys="key")
    backend = resources.enter_context(Backend())
    assert register(gateway, backend.address, "backend.Backend").success
    connector = connect(gateway)
    monkeypatch.setattr(Backends, "call", raising(Peculiar))
    request = ForwardRequest(request_id="r1", method_path="/backend.Backend/Say")
    connector.send(request=request)
    response = connector.receive().response
    assert (response.request_id, response.status_code) == ("r1", 500)
    assert response.headers["grpc-status"] == "13"
    assert "a bug in the gateway" in caplog.text
    caplog.clear()
