"""ASGI applications whose own tasks want to end the process: the connector does not go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from revconn import Connector, RevconnError, State
from revconn.cli import main, serve
from revconn.core.status import StatusCode
from revconn.serving import asgi
from revconn.serving.asgi import ASGIHandler
from revconn.serving.stream_requests import EndCall
from tests.support.threads import in_thread
from tests.support.waiting import eventually
from tests.web.conftest import SERVICE, Web

TIMEOUT = 60.0

Call = Callable[[Web], Any]


def exiting(error: BaseException) -> Any:
    """A coroutine that ends its task so."""

    async def leave() -> None:
        raise error

    return leave()


class App:
    """Has a lifespan, answers no request, and exits ``where`` it was told to."""

    def __init__(self, where: str, error: BaseException) -> None:
        self._where = where
        self._error = error
        self._exits: asyncio.Event
        self.loop: asyncio.AbstractEventLoop
        self.tasks: list[asyncio.Task[None]] = []
        self.has_request = threading.Event()

    def exit(self) -> None:
        """Have it exit. Thread-safe."""
        self.loop.call_soon_threadsafe(self._exit)

    def _exit(self) -> None:
        if self._where == "callback":
            raise self._error
        if self._where == "task":
            self.tasks.append(asyncio.ensure_future(exiting(self._error)))
        else:
            self._exits.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            self.loop = asyncio.get_running_loop()
            self._exits = asyncio.Event()
            await send({"type": "lifespan.startup.complete"})
            await self._exits.wait()
            raise self._error
        self.has_request.set()
        await asyncio.Event().wait()

    def look_back(self) -> None:
        """Leave asyncio nothing to complain of."""
        for task in self.tasks:
            if task.done():
                task.cancelled() or task.exception()
            else:
                task._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("where", ["task", "callback", "lifespan"])
def test_an_application_that_exits_fails_the_connector_and_answers_what_is_in_flight(
    web: Web, call: Call, caplog: pytest.LogCaptureFixture, where: str, error: BaseException
) -> None:
    app = App(where, error)
    connector = web.serve("asgi", app)
    asked = in_thread(call(web).ask, "GET", "/")
    assert app.has_request.wait(TIMEOUT)
    app.exit()
    with pytest.raises(RevconnError, match="the ASGI application's event loop ended") as raised:
        connector.wait(TIMEOUT)
    assert asked.result(TIMEOUT).status == 503
    assert raised.value.__cause__ is error
    told = [each for each in caplog.messages if "cannot go on" in each]
    assert told == [f"the connector cannot go on, and leaves: {raised.value}"]
    app.look_back()
    caplog.clear()


async def ignore_cancellation(ended: asyncio.Event) -> None:
    while not ended.is_set():
        try:
            await ended.wait()
        except asyncio.CancelledError:
            continue


async def exit_when_cancelled(_: asyncio.Event) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise SystemExit(4) from None


@pytest.mark.parametrize("work", [ignore_cancellation, exit_when_cancelled])
def test_a_task_that_will_not_end_with_the_loop_holds_up_neither_answers_nor_the_end(
    web: Web,
    call: Call,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    work: Any,
) -> None:
    monkeypatch.setattr(asgi, "_SHUTDOWN_TIMEOUT", 0.1)
    app = App("task", SystemExit(3))
    connector = web.serve("asgi", app)
    ended: list[asyncio.Event] = []

    def begin() -> None:
        ended.append(asyncio.Event())
        app.tasks.append(asyncio.ensure_future(work(ended[0])))

    app.loop.call_soon_threadsafe(begin)
    asked = in_thread(call(web).ask, "GET", "/")
    assert app.has_request.wait(TIMEOUT)
    app.exit()
    with pytest.raises(RevconnError, match="event loop ended"):
        connector.wait(TIMEOUT)
    assert asked.result(TIMEOUT).status == 503
    app.look_back()
    caplog.clear()


def test_a_request_that_comes_when_the_loop_has_ended_is_told_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App("callback", SystemExit(3))
    handler = ASGIHandler(app)
    handler.start()
    app.exit()
    assert handler._thread is not None
    handler._thread.join(TIMEOUT)
    with pytest.raises(EndCall) as raised:
        handler.spawn(None)  # type: ignore[arg-type]
    assert raised.value.ending[0] is StatusCode.UNAVAILABLE
    caplog.clear()


@pytest.mark.parametrize("error", [SystemExit("no database"), KeyboardInterrupt()], ids=repr)
def test_an_application_that_exits_as_it_starts_up_fails_to_start(
    web: Web, error: BaseException
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise error

    connector = Connector(web.gateway.address, api_key="key")
    connector.add_asgi(app, service=SERVICE)
    with pytest.raises(RevconnError, match="failed to start: ") as raised:
        connector.start(block=False)
    assert repr(error) in str(raised.value)
    assert connector.state.name == "CLOSED"


def test_a_task_that_exits_as_the_application_starts_up_fails_the_start(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.ensure_future(exiting(SystemExit(3))))
        await asyncio.Event().wait()

    connector = Connector(web.gateway.address, api_key="key")
    connector.add_asgi(app, service=SERVICE)
    with pytest.raises(RevconnError, match=r"failed to start: .*SystemExit\(3\)"):
        connector.start(block=False)
    assert isinstance(tasks[0].exception(), SystemExit)
    eventually(lambda: "the thread revconn-asgi failed" in caplog.text)
    caplog.clear()


def test_one_that_exits_while_another_starts_up_fails_the_connector(
    run_web: Callable[..., Web], caplog: pytest.LogCaptureFixture
) -> None:
    first = App("callback", SystemExit(3))

    async def second(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        first.exit()
        thread = connector._applications._handlers[0]._thread
        await asyncio.get_running_loop().run_in_executor(None, thread.join, TIMEOUT)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    web = run_web(http={"a": "web.A", "b": "web.B"})
    connector = Connector(web.gateway.address, api_key="key")
    connector.add_asgi(first, service="web.A")
    connector.add_asgi(second, service="web.B")
    connector.start(block=False)
    with pytest.raises(RevconnError, match="event loop ended"):
        connector.wait(TIMEOUT)
    caplog.clear()


def test_revconn_serve_says_so_and_its_exit_code_is_not_0(
    web: Web,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App("callback", SystemExit(0))
    connector = Connector(web.gateway.address, api_key="key")
    connector.add_asgi(app, service=SERVICE)
    connector.on_state_change(lambda state: state is State.READY and app.exit())
    monkeypatch.setattr(serve, "load_connector", lambda spec: connector)
    monkeypatch.setattr(serve, "set_up_logging", lambda *given: None)
    assert main(["serve", "app:connector"]) == 2
    said = "revconn serve: the ASGI application's event loop ended: SystemExit(0)\n"
    assert capsys.readouterr().err == said
    caplog.clear()


def test_a_lifespan_that_exits_as_it_shuts_down_is_over(web: Web) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise SystemExit(3)

    connector = web.serve("asgi", app)
    connector.stop()
    connector.wait(TIMEOUT)
    eventually(lambda: all(each.name != "revconn-asgi" for each in threading.enumerate()))
