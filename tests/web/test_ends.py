"""How answers, applications, connectors and gateways end that would rather go on."""

from __future__ import annotations

import asyncio
import http.client
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from revconn import Connector, State
from revconn.gateway.web import Unread
from tests.support.waiting import eventually
from tests.support.web_applications import wsgi
from tests.web.conftest import Clock, Web

TIMEOUT = 60.0

Call = Callable[[Web], Any]


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


@pytest.fixture
def patient(clock: Clock, run_web: Callable[..., Web]) -> Web:
    """A gateway that misses no heartbeat, however fast the clock goes."""
    return run_web(heartbeat_timeout=1e6, http_send_timeout=60.0)


@pytest.mark.parametrize("version", ["http1", "http2"])
def test_a_caller_that_reads_nothing_is_not_waited_for_and_a_call_of_grpc_is(
    patient: Web, clock: Clock, version: str
) -> None:
    closed, poured = threading.Event(), threading.Event()

    def pour(request: Any) -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
        finally:
            poured.set()

    connector = Connector(patient.gateway.address, api_key="key")
    connector.add_wsgi(endless(closed), service="web.App")
    connector.add_method("/a.B/Pour", pour, kind="server_streaming")
    patient.stack.enter_context(connector)
    connector.wait_ready(TIMEOUT)
    grpc = patient.http2()
    headers = [("content-type", "application/grpc"), ("te", "trailers")]
    call = grpc.begin("POST", "/a.B/Pour", headers, ended=False)
    grpc.send(call, b"\0\0\0\0\0", ended=True)
    while not grpc.replies[call].body:
        grpc.hear()
    caller = getattr(patient, version)()
    caller.begin("GET", "/endless")
    eventually(lambda: patient.gateway.stats()["calls"] == 2, TIMEOUT)

    def pass_time() -> bool:
        clock.advance(30)  # what moves meanwhile has not stalled
        return closed.is_set()

    eventually(pass_time, TIMEOUT)
    assert not poured.is_set()
    assert patient.http1().ask("GET", "/").body == b"ok"
    if version == "http2":
        assert caller.reply(1).reset is not None
    else:
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            caller.http.getresponse().read()


def test_who_reads_a_little_now_and_then_is_waited_for() -> None:
    unread, call = Unread(60.0), SlowCall()
    unread.add(call)
    for now in range(0, 600, 50):
        call.sent += 1
        unread.expire(now)
    unread.expire(609)
    assert not call.stalled
    unread.expire(610)
    assert call.stalled == [60.0]


def test_what_is_written_for_a_caller_that_reads_nothing_is_no_reading() -> None:
    unread, call = Unread(60.0), SlowCall()
    unread.add(call)
    for now in range(0, 61, 5):
        call.sent -= 5  # what HTTP/1.1 puts around a part of the body
        unread.expire(now)
    assert call.stalled == [60.0]


def test_who_has_read_all_may_wait_for_more_for_ever() -> None:
    unread, call = Unread(60.0), SlowCall()
    unread.add(call)
    unread.expire(0)
    unread.discard(call)
    unread.expire(100)
    unread.add(call)  # what waits from now on has its own time
    unread.expire(110)
    assert not call.stalled


class SlowCall:
    """In the place of a call whose caller reads when it is told to."""

    def __init__(self) -> None:
        self.sent = 0
        self.stalled: list[float] = []

    @property
    def progress(self) -> tuple[int, int]:
        return self.sent, 100

    def stall(self, seconds: float) -> None:
        self.stalled.append(seconds)


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


def test_a_stop_by_the_application_itself_lets_its_requests_end(web: Web) -> None:
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
    replies: list[Any] = []
    asking = threading.Thread(target=lambda: replies.append(web.http1().ask("GET", "/")))
    asking.start()
    assert begun.wait(TIMEOUT)
    assert web.http1().ask("GET", "/stop").body == b"ok"
    assert connector.state is State.DRAINING
    assert not connector._applications._handlers[0]._is_to_end
    go_on.set()
    asking.join(TIMEOUT)
    assert replies[0].body == b"ok"
    eventually(lambda: connector.state is State.CLOSED, TIMEOUT)


def slow(go_on: threading.Event, begun: threading.Event) -> Any:
    def parts() -> Iterator[bytes]:
        yield b"first "
        begun.set()
        go_on.wait(TIMEOUT)
        yield b"last"

    return wsgi(lambda environ: parts())


def test_a_connector_that_stops_ends_no_response(web: Web, call: Call) -> None:
    go_on, begun = threading.Event(), threading.Event()
    connector = web.serve("wsgi", slow(go_on, begun))
    caller = call(web)
    replies: list[Any] = []
    asking = threading.Thread(target=lambda: replies.append(caller.ask("GET", "/")))
    asking.start()
    assert begun.wait(TIMEOUT)
    stopping = threading.Thread(target=connector.stop)
    stopping.start()
    eventually(lambda: connector.state.name == "DRAINING")
    go_on.set()
    stopping.join()
    asking.join()
    assert (replies[0].body, replies[0].is_whole) == (b"first last", True)


def test_a_connector_that_is_lost_breaks_a_response_off(web: Web) -> None:
    go_on, begun = threading.Event(), threading.Event()
    connector = web.serve("wsgi", slow(go_on, begun))
    first, second = web.http1(), web.http2()
    first.begin("GET", "/")
    response = first.http.getresponse()
    stream_id = second.begin("GET", "/")
    while not second.replies[stream_id].body:
        second.hear()
    connector.abort()
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    assert second.reply(stream_id).reset is not None
    go_on.set()


def test_a_gateway_that_stops_lets_a_response_end(web: Web, call: Call) -> None:
    go_on, begun = threading.Event(), threading.Event()
    web.serve("wsgi", slow(go_on, begun))
    caller = call(web)
    replies: list[Any] = []
    asking = threading.Thread(target=lambda: replies.append(caller.ask("GET", "/")))
    asking.start()
    assert begun.wait(TIMEOUT)
    stopping = threading.Thread(target=web.gateway.stop, args=(TIMEOUT,))
    stopping.start()
    web.stack.callback(stopping.join)
    eventually(lambda: web.gateway._thread._serving._callers.streaming.is_leaving)
    go_on.set()
    asking.join()
    assert (replies[0].body, replies[0].is_whole) == (b"first last", True)


def test_a_connector_that_stops_waits_for_nobody_who_does_not_read(web: Web) -> None:
    closed = threading.Event()

    def parts() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 10_000
        finally:
            closed.set()

    connector = web.serve("wsgi", wsgi(lambda environ: parts()))
    caller = web.http2()
    caller.opens_windows = False
    caller.begin("GET", "/")
    caller.hear()
    connector.stop(0.2)
    assert closed.wait(TIMEOUT)


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


EXITS = """
import asyncio
from revconn import Connector

async def app(scope, receive, send):
    await receive()
    await asyncio.get_running_loop().run_in_executor(None, print, "works")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})

connector = Connector("127.0.0.1:9", api_key="key")
connector.add_asgi(app, service="web.App")
connector.start(block=False)
"""


def test_an_application_that_has_used_threads_ends_with_the_interpreter_without_a_word() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", EXITS], capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert ended.stdout == "works\n"
    assert "revconn-asgi" not in ended.stderr
