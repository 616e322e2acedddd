"""How answers, applications and connectors end that would rather go on."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from revconn import State
from revconn.serving import asgi
from tests.support.waiting import eventually
from tests.web.conftest import Web

TIMEOUT = 60.0


def endless(closed: threading.Event) -> Any:
    """A WSGI application whose body never ends."""

    def parts() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
        finally:
            closed.set()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return parts() if environ["PATH_INFO"] == "/endless" else iter([b"ok"])

    return app


@pytest.mark.parametrize("version", ["http1", "http2"])
def test_a_body_that_nobody_is_to_get_need_not_come_to_its_end(web: Web, version: str) -> None:
    closed = threading.Event()
    web.serve("wsgi", endless(closed))
    caller = getattr(web, version)()
    assert caller.ask("HEAD", "/endless").status == 200
    assert closed.wait(TIMEOUT)
    assert caller.ask("GET", "/").body == b"ok"


def test_an_answer_that_breaks_off_does_not_look_complete_by_http_1_0(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()

    def parts() -> Iterator[bytes]:
        yield b"the beginning"
        assert go_on.wait(TIMEOUT)
        raise RuntimeError("the application fails")

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        return parts()

    web.serve("wsgi", app)
    caller = web.raw()
    caller.say("GET / HTTP/1.0\r\nHost: a\r\n\r\n")
    while caller.hears_line() != b"\r\n":
        pass
    assert caller.hears(13) == b"the beginning"
    go_on.set()
    with pytest.raises(ConnectionResetError):
        caller.sock.recv(1)
    caplog.clear()  # the application's failure


def test_a_stop_by_the_application_itself_lets_its_requests_end(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "_SHUTDOWN_TIMEOUT", 0.1)
    begun, go_on = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError("there is no lifespan")
        if scope["path"] == "/stop":
            connector.stop()
        else:
            begun.set()
            await asyncio.get_running_loop().run_in_executor(None, go_on.wait, TIMEOUT)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"ok"})

    connector = web.serve("asgi", app)
    slow: list[Any] = []
    asking = threading.Thread(target=lambda: slow.append(web.http1().ask("GET", "/")))
    asking.start()
    assert begun.wait(TIMEOUT)
    assert web.http1().ask("GET", "/stop").body == b"ok"
    assert connector.state is State.DRAINING
    time.sleep(0.5)  # longer than the application is given once it is to end
    go_on.set()
    asking.join(TIMEOUT)
    assert slow[0].body == b"ok"
    eventually(lambda: connector.state is State.CLOSED, TIMEOUT)


HANGS = """
import asyncio
from revconn import Connector

async def app(scope, receive, send):
    print("starting", flush=True)
    await asyncio.Event().wait()

connector = Connector("127.0.0.1:9", api_key="key")
connector.add_asgi(app, service="web.App")
connector.start()
"""


def test_a_start_up_that_hangs_ends_with_ctrl_c() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "starting\n"
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=TIMEOUT)[1]
        finally:
            process.kill()
    assert "KeyboardInterrupt" in said
