"""ASGI: the lifespan, events in both directions, and work that goes on after the answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from revconn import Connector, Request, RevconnError
from revconn.serving import asgi
from tests.support.waiting import eventually, stands_still
from tests.support.web_applications import http
from tests.web.conftest import SERVICE, Web

TIMEOUT = 60.0

Call = Callable[[Web], Any]


class App:
    """An application with a lifespan, which notes what happens."""

    def __init__(self, serve: Any = None, *, fails: str | None = None) -> None:
        self.events: list[str] = []
        self._serve = serve
        self._fails = fails

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif self._serve is None:
            self.events.append("request")
            await answer(send, scope["state"].get("word", b"none"))
        else:
            await self._serve(scope, receive, send)

    async def _live(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        self.events.append("startup")
        scope["state"]["word"] = b"shared"
        if self._fails is not None:
            await send({"type": "lifespan.startup.failed", "message": self._fails})
            raise RuntimeError(self._fails)
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        self.events.append("shutdown")
        await send({"type": "lifespan.shutdown.complete"})


async def answer(send: Any, *parts: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


def test_an_application_starts_before_its_requests_and_shuts_down_behind_them(
    web: Web, call: Call
) -> None:
    app = App()
    connector = web.serve("asgi", app)
    assert call(web).ask("GET", "/").body == b"shared"
    connector.stop()
    assert app.events == ["startup", "request", "shutdown"]


def test_what_a_request_puts_into_the_state_is_its_own(web: Web, call: Call) -> None:
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"again" if "seen" in scope["state"] else b"new")
        scope["state"]["seen"] = True

    web.serve("asgi", App(serve))
    caller = call(web)
    assert [caller.ask("GET", "/").body for _ in range(2)] == [b"new", b"new"]


def test_an_application_that_fails_to_start_fails_the_connector(web: Web) -> None:
    connector = Connector(web.gateway.address, api_key="key")
    connector.add_asgi(App(fails="no database"), service=SERVICE)
    with pytest.raises(RevconnError, match="the ASGI application failed to start: no database"):
        connector.start(block=False)
    assert connector.state.name == "CLOSED"
    assert not web.gateway.connections()


def test_a_start_that_is_given_up_leaves_nothing_behind(web: Web) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3600)

    connector = Connector(web.gateway.address, api_key="key")
    connector.add_asgi(app, service=SERVICE)
    errors: list[BaseException] = []

    def start() -> None:
        try:
            connector.start(block=False)
        except RevconnError as error:
            errors.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    eventually(lambda: any(t.name == "revconn-asgi" for t in threading.enumerate()))
    eventually(lambda: connector._applications._handlers[0]._loop)
    connector.abort()
    starting.join(TIMEOUT)
    assert not starting.is_alive()
    assert "it was stopped" in str(errors[0])
    eventually(lambda: all(t.name != "revconn-asgi" for t in threading.enumerate()))


def test_an_application_without_a_lifespan_serves(web: Web, call: Call) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError
        await answer(send, b"ok")

    web.serve("asgi", app)
    assert call(web).ask("GET", "/").body == b"ok"


def test_two_applications_live_beside_each_other(run_web: Callable[..., Web]) -> None:
    web = run_web(http={"a": "web.A", "b": "web.B"})
    apps = [App(), App()]
    connector = Connector(web.gateway.address, api_key="key")
    connector.add_asgi(apps[0], service="web.A")
    connector.add_asgi(apps[1], service="web.B")
    with connector:
        connector.wait_ready(TIMEOUT)
        caller = web.http1()
        assert caller.ask("GET", "/", host="a").body == b"shared"
        assert caller.ask("GET", "/", host="b").body == b"shared"
    assert [app.events for app in apps] == [["startup", "request", "shutdown"]] * 2


def test_a_start_up_that_takes_long_is_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "_SLOW_START", 0.0)
    go_on = threading.Event()

    async def shop(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.get_running_loop().run_in_executor(None, go_on.wait, TIMEOUT)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    handler = asgi.ASGIHandler(shop)
    starting = threading.Thread(target=handler.start)
    starting.start()
    eventually(lambda: "shop has not started up" in caplog.text)
    go_on.set()
    starting.join(TIMEOUT)
    assert [each.levelname for each in caplog.records if "start" in each.msg] == ["WARNING"]
    handler.begin_stop()
    handler.wait(time.monotonic() + TIMEOUT)


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit("broken")])
def test_a_failure_is_an_error_500_and_others_go_on(
    web: Web, call: Call, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/bad":
            raise error
        await answer(send, b"ok")

    web.serve("asgi", http(serve))
    caller = call(web)
    assert caller.ask("GET", "/bad").status == 500
    assert caller.ask("GET", "/").body == b"ok"
    eventually(lambda: "broken" in caplog.text)
    caplog.clear()


def test_a_failure_after_the_head_is_an_end_that_shows(
    web: Web, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        raise RuntimeError("broken")

    web.serve("asgi", http(serve))
    reply = call(web).ask("GET", "/")
    assert (reply.status, reply.is_whole) == (200, False)
    eventually(lambda: "broken" in caplog.text)
    caplog.clear()


@pytest.mark.parametrize("events", [[], ["start"], ["start", "start"], ["body"]])
def test_what_is_no_answer_is_an_error_500(
    web: Web, call: Call, caplog: pytest.LogCaptureFixture, events: list[str]
) -> None:
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        for event in events:
            await send({"type": f"http.response.{event}", "status": 200})

    web.serve("asgi", http(serve))
    assert call(web).ask("GET", "/").status == 500
    eventually(lambda: "ASGI application" in caplog.text)
    caplog.clear()


def test_hints_are_left_out(web: Web, call: Call) -> None:
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.early_hint", "links": [b"</a>; rel=preload"]})
        await send({"type": "http.response.debug", "info": {}})
        await answer(send, b"ok")

    web.serve("asgi", http(serve))
    reply = call(web).ask("GET", "/")
    assert (reply.body, reply.interim) == (b"ok", [])


def test_hints_of_wsgi_are_left_out(web: Web, call: Call) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("103 Early Hints", [("Link", "</a>; rel=preload")])
        try:
            raise ValueError  # noqa: TRY301
        except ValueError as error:
            start_response("200 OK", [], (ValueError, error, None))
        yield b"ok"

    web.serve("wsgi", app)
    assert call(web).ask("GET", "/").body == b"ok"


def test_events_arrive_one_by_one(web: Web) -> None:
    turns = [threading.Event() for _ in range(3)]

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        for number, turn in enumerate(turns):
            await asyncio.get_running_loop().run_in_executor(None, turn.wait)
            body = b"data: %d\n\n" % number
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body"})

    web.serve("asgi", http(serve))
    first, second = web.http1(), web.http2()
    first.begin("GET", "/")
    pieces = first.pieces()
    stream_id = second.begin("GET", "/")
    while not second.replies[stream_id].status:  # the head alone
        second.hear()
    for number, turn in enumerate(turns):
        turn.set()
        wanted = b"data: %d\n\n" % number
        assert next(pieces) == wanted
        while not second.replies[stream_id].body.endswith(wanted):
            second.hear()


def test_streams_hold_no_worker(web: Web) -> None:
    go_on = threading.Event()
    open_streams = 0

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        nonlocal open_streams
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        open_streams += 1
        while not go_on.is_set():
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body"})

    connector = Connector(web.gateway.address, api_key="key", max_workers=1)
    connector.add_asgi(http(serve), service=SERVICE)
    connector.add_method("/web.Plain/Do", lambda request: b"done")
    with connector:
        connector.wait_ready(TIMEOUT)
        caller = web.http2()
        ids = [caller.begin("GET", "/") for _ in range(100)]
        eventually(lambda: open_streams == 100)
        go_on.set()
        assert all(caller.reply(each).is_whole for each in ids)


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_a_caller_that_gives_up_is_a_disconnect(web: Web, version: str) -> None:
    heard: list[Any] = []
    raised: list[BaseException] = []

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        heard.append(await receive())
        try:
            await send({"type": "http.response.body", "body": b"y", "more_body": True})
        except OSError as error:
            raised.append(error)

    web.serve("asgi", http(serve))
    web.ask_and_leave(version)
    eventually(lambda: raised)
    assert heard == [{"type": "http.disconnect"}]


def test_work_goes_on_behind_the_answer(web: Web, call: Call) -> None:
    go_on, heard = threading.Event(), []

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await answer(send, b"ok")
        heard.append(await receive())
        await asyncio.get_running_loop().run_in_executor(None, go_on.wait, TIMEOUT)
        heard.append("done")

    connector = web.serve("asgi", http(serve))
    reply = call(web).ask("POST", "/", (), b"x")
    assert (reply.body, reply.is_whole) == (b"ok", True)
    go_on.set()
    connector.stop()
    assert heard == [{"type": "http.disconnect"}, "done"]


def test_a_caller_that_does_not_read_stops_the_application(web: Web) -> None:
    sent = 0

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200})
        for _ in range(2_000):
            body = b"x" * 16_384
            await send({"type": "http.response.body", "body": body, "more_body": True})
            sent += 1
        await send({"type": "http.response.body"})

    web.serve("asgi", http(serve))
    caller = web.http2()
    caller.opens_windows = False
    stream_id = caller.begin("GET", "/")
    while len(caller.replies[stream_id].body) < 60_000:
        caller.hear()
    stands_still(lambda: sent)
    assert sent < 1_000
    caller.opens_windows = True
    caller.h2.acknowledge_received_data(60_000, stream_id)
    caller._flush()
    assert len(caller.reply(stream_id).body) == 2_000 * 16_384


def test_a_response_and_a_request_go_on_at_the_same_time(web: Web) -> None:
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        more = True
        while more:
            event = await receive()
            more = event["more_body"]
            await send({"type": "http.response.body", "body": event["body"], "more_body": more})

    web.serve("asgi", http(serve))
    caller = web.http2()
    stream_id = caller.begin("POST", "/", ended=False)
    for number in range(20):
        caller.send(stream_id, b"%d," % number)
        while not caller.replies[stream_id].body.endswith(b"%d," % number):
            caller.hear()
    caller.send(stream_id, b"", ended=True)
    assert caller.reply(stream_id).is_whole
    first = web.raw()
    first.say("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in range(10):
        first.say(b"1\r\n%d\r\n" % number)
        while number == 0 and first.hears_line() != b"\r\n":
            pass
        assert first.hears(6) == b"1\r\n%d\r\n" % number
    first.say("0\r\n\r\n")
    assert first.hears(5) == b"0\r\n\r\n"


def test_a_call_of_one_message_is_told_that_this_is_none(web: Web) -> None:
    app = App()
    connector = web.serve("asgi", app)
    handler = connector._applications._handlers[0]
    with pytest.raises(Exception, match="the gateway carries no streams"):
        handler(Request.__new__(Request))
