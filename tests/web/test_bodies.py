"""Bodies, both ways: who waits for whom, what nobody reads, callers that leave in between."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from tests.support.waiting import eventually, stands_still
from tests.support.web_applications import Body, http, wsgi
from tests.web.conftest import Web

Call = Callable[[Web], Any]

TIMEOUT = 60.0


def test_who_writes_waits_for_a_caller_that_does_not_read(web: Web) -> None:
    written: list[int] = []
    errors: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        try:
            for _ in range(10_000):
                write(b"x" * 10_000)
                written.append(1)
        except ConnectionResetError as error:
            errors.append(error)
            raise
        return []

    web.serve("wsgi", app)
    caller = web.http2()
    caller.opens_windows = False
    stream_id = caller.begin("GET", "/")
    caller.hear()
    stands_still(lambda: len(written))
    assert len(written) < 5_000
    caller.give_up(stream_id)
    eventually(lambda: errors)


def test_to_read_beyond_the_end_of_a_body_is_to_read_nothing(web: Web, call: Call) -> None:
    read: list[bytes] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"]
        read.extend([body.readline(), body.read(3), body.read(1000), body.read(), body.read(1)])
        read.extend(body)
        start_response("200 OK", [])
        return [b"ok"]

    web.serve("wsgi", app)
    assert call(web).ask("POST", "/", (), b"line\nand rest").body == b"ok"
    assert read == [b"line\n", b"and", b" rest", b"", b""]


def test_a_body_that_nobody_reads_is_in_nobodys_way(web: Web, call: Call) -> None:
    web.serve("wsgi", wsgi(lambda environ: [b"ok"]))
    caller = call(web)
    for _ in range(3):
        assert caller.ask("POST", "/", (), b"x" * 1000).body == b"ok"
    assert call(web).ask("POST", "/", (), b"x" * 50_000).body == b"ok"


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_who_does_not_read_a_body_stops_who_sends_it(web: Web, kind: str) -> None:
    go_on = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        go_on.wait(TIMEOUT)
        size = len(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b"%d" % size]

    @http
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        size, more = 0, True
        while more:
            event = await receive()
            size, more = size + len(event["body"]), event["more_body"]
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"%d" % size})

    web.serve(kind, app if kind == "wsgi" else asgi)
    caller = web.raw()
    size = 30 << 20
    caller.say(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n")
    sent = 0

    def send() -> None:
        nonlocal sent
        while sent < size:
            sent += caller.sock.send(b"x" * min(1 << 16, size - sent))

    sender = threading.Thread(target=send)
    sender.start()
    stands_still(lambda: sent)
    assert sent < size
    go_on.set()
    assert caller.hears_reply().body == b"%d" % size
    sender.join()


def test_a_caller_that_does_not_read_stops_the_application(web: Web) -> None:
    made = 0
    body = Body(iter(()))

    def parts() -> Iterator[bytes]:
        nonlocal made
        for _ in range(4_000):
            made += 1
            yield b"x" * 16_384

    body._parts = parts()
    web.serve("wsgi", wsgi(lambda environ: body))
    caller = web.http1()
    caller.begin("GET", "/")
    response = caller.http.getresponse()
    stands_still(lambda: made)
    assert made < 2_000
    assert len(response.read()) == 4_000 * 16_384
    assert made == 4_000


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_a_caller_that_gives_up_ends_a_response(web: Web, version: str) -> None:
    go_on = threading.Event()
    closed = threading.Event()

    def parts() -> Iterator[bytes]:
        try:
            for _ in range(1_000_000):
                yield b"x" * 1_000
                go_on.wait(0.001)
        finally:
            closed.set()

    web.serve("wsgi", wsgi(lambda environ: parts()))
    web.ask_and_leave(version)
    assert closed.wait(TIMEOUT)


@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_caller_that_leaves_in_the_middle_of_its_body_is_missed(
    web: Web, version: str, kind: str
) -> None:
    begun = threading.Event()
    heard: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.input"].read(1)
        begun.set()
        try:
            environ["wsgi.input"].read()
        except ConnectionResetError as error:
            heard.append(error)
            raise
        return []

    @http
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        event = await receive()
        begun.set()
        while event["type"] == "http.request":
            event = await receive()
        heard.append(event)

    web.serve(kind, app if kind == "wsgi" else asgi)
    if version == "1.1":
        caller = web.raw()
        caller.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx")
        assert begun.wait(TIMEOUT)
        caller.close()
    else:
        second = web.http2()
        stream_id = second.begin("POST", "/", ended=False)
        second.send(stream_id, b"x")
        assert begun.wait(TIMEOUT)
        second.give_up(stream_id)
    eventually(lambda: heard)
    assert kind == "wsgi" or heard == [{"type": "http.disconnect"}]


def test_the_rest_of_a_body_that_nobody_reads_is_no_request(web: Web) -> None:
    web.serve("wsgi", wsgi(lambda environ: [environ["PATH_INFO"].encode()]))
    caller = web.raw()
    request = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    caller.say(f"POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: {100 * len(request)}\r\n\r\n")
    assert caller.hears_reply().body == b"/first"
    for _ in range(100):
        caller.say(request)
    caller.say("GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    assert caller.hears_reply().body == b"/next"


def test_who_goes_on_with_a_large_body_that_nobody_wants_is_ended(web: Web) -> None:
    web.serve("wsgi", wsgi(lambda environ: [b"no"]))
    caller = web.raw()
    caller.say("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert caller.hears_reply().body == b"no"
    with contextlib.suppress(ConnectionError):
        for _ in range(10):
            caller.say("ffff\r\n" + "x" * 65_535 + "\r\n")
    assert caller.is_ended


def test_one_who_waits_to_be_told_to_go_on_and_is_not_can_ask_nothing_more(
    run_web: Callable[..., Web],
) -> None:
    caller = run_web(http={"a": "web.App"}).raw()
    caller.say("POST / HTTP/1.1\r\nHost: b\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    reply = caller.hears_reply()
    assert (reply.status, reply.get("connection")) == (404, "close")
    assert caller.is_ended
