"""What comes of a request: applications that fail, callers that leave, and who waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator
from http.client import IncompleteRead
from typing import Any, Callable

import pytest

from tests.support.waiting import eventually
from tests.web.conftest import Web

Call = Callable[[Web], Any]

TIMEOUT = 60.0


class Body:
    """An iterable with a close(), of which it counts the calls."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self.closed = 0
        self.was_closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        self.closed += 1
        self.was_closed.set()


def wsgi(make: Callable[[dict[str, Any]], Any], *headers: tuple[str, str]) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", list(headers))
        return make(environ)

    return app


def forget_errors(caplog: pytest.LogCaptureFixture, *wanted: str) -> None:
    """The application's own failures were logged, as they should be."""
    eventually(lambda: all(each in caplog.text for each in wanted))
    caplog.clear()


def http(app: Any) -> Any:
    """An ASGI application that has no lifespan."""

    async def whole(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await app(scope, receive, send)

    return whole


# WSGI


def test_what_an_application_returns_is_closed_once(web: Web, call: Call) -> None:
    body = Body(iter([b"a", b"", b"b"]))
    web.serve("wsgi", wsgi(lambda environ: body))
    assert call(web).ask("GET", "/").body == b"ab"
    assert body.was_closed.wait(TIMEOUT)
    web.connector.stop()  # type: ignore[union-attr]
    assert body.closed == 1


def test_a_failure_before_the_head_is_an_error_500(
    web: Web, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        raise RuntimeError("broken")

    web.serve("wsgi", app)
    caller = call(web)
    for _ in range(2):
        reply = caller.ask("GET", "/")
        assert (reply.status, reply.body) == (500, b"internal error\n")
    forget_errors(caplog, "RuntimeError: broken")


def test_a_failure_after_the_head_is_an_end_that_shows(
    web: Web, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    def parts() -> Iterator[bytes]:
        yield b"first"
        raise RuntimeError("broken")

    body = Body(parts())
    web.serve("wsgi", wsgi(lambda environ: body))
    reply = call(web).ask("GET", "/")
    assert reply.status == 200
    assert not reply.is_whole
    assert body.was_closed.wait(TIMEOUT)
    forget_errors(caplog, "RuntimeError: broken")


@pytest.mark.parametrize(
    ("app", "problem"),
    [
        (lambda environ, start_response: [b"x"], "did not call start_response"),
        (lambda environ, start_response: None, "TypeError"),
        (wsgi(lambda environ: ["text"]), "TypeError"),
        (lambda environ, start_response: start_response("OK", []) or [b"x"], "ValueError"),
        (
            lambda environ, start_response: (
                start_response("200 OK", []),
                start_response("200 OK", []),
            ),
            "called twice",
        ),
    ],
)
def test_what_is_no_answer_is_an_error_500(
    web: Web, call: Call, caplog: pytest.LogCaptureFixture, app: Any, problem: str
) -> None:
    web.serve("wsgi", app)
    assert call(web).ask("GET", "/").status == 500
    forget_errors(caplog, problem)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("X", "a\r\nSet-Cookie: b")], 500),
        ([("X", "a\0")], 500),
        ([("X\r\nY", "a")], 500),
        ([("", "a")], 500),
        ([("Content-Length", "x")], 500),
        ([("Content-Length", "2"), ("Content-Length", "3")], 500),
        ([("Content-Length", "9" * 5000)], 500),
        ([("Transfer-Encoding", "gzip")], 200),
        ([("X", " a ")], 200),
    ],
)
def test_headers_that_http_does_not_allow_are_not_sent(
    web: Web, call: Call, headers: list[tuple[str, str]], status: int
) -> None:
    web.serve("wsgi", wsgi(lambda environ: [b"ok"], *headers))
    caller = call(web)
    for _ in range(2):
        reply = caller.ask("GET", "/")
        assert (reply.status, reply.is_whole) == (status, True)
        assert not reply.get_all("set-cookie")
        assert all("\n" not in value for _, value in reply.headers)


@pytest.mark.parametrize("length", ["1", "5"])
def test_a_body_that_is_not_as_long_as_was_said_is_not_taken_for_whole(
    web: Web, call: Call, length: str
) -> None:
    web.serve("wsgi", wsgi(lambda environ: [b"1", b"23"], ("Content-Length", length)))
    assert not call(web).ask("GET", "/").is_whole or length == "1"
    assert call(web).ask("HEAD", "/").is_whole


def test_a_failure_that_is_told_with_exc_info_replaces_the_head(web: Web, call: Call) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X", "1")])
        try:
            raise ValueError  # noqa: TRY301
        except ValueError:
            start_response("400 Bad", [("X", "2")], sys.exc_info())
        return [b"sorry"]

    web.serve("wsgi", app)
    reply = call(web).ask("GET", "/")
    assert (reply.status, reply.get("x"), reply.body) == (400, "2", b"sorry")


def test_a_failure_that_is_told_after_the_head_is_raised(web: Web, call: Call) -> None:
    raised: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"x"
        try:
            raise ValueError("late")  # noqa: TRY301
        except ValueError:
            try:
                start_response("500 Bad", [], sys.exc_info())
            except ValueError as error:
                raised.append(error)

    web.serve("wsgi", app)
    assert call(web).ask("GET", "/").body == b"x"
    assert str(raised[0]) == "late"


def test_what_is_written_comes_before_what_is_returned(web: Web, call: Call) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        write(b"1")
        write(b"2" * 100_000)
        return [b"3"]

    web.serve("wsgi", app)
    assert call(web).ask("GET", "/").body == b"1" + b"2" * 100_000 + b"3"


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


def stands_still(count: Callable[[], int]) -> None:
    """Wait until it has begun and does not grow any more."""
    eventually(count)
    unchanged, before = 0, -1
    while unchanged < 10:
        threading.Event().wait(0.05)
        now = count()
        unchanged = unchanged + 1 if now == before else 0
        before = now


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
    if version == "1.1":
        caller = web.raw()
        caller.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        caller.hears(1)
        caller.close()
    else:
        second = web.http2()
        stream_id = second.begin("GET", "/")
        second.hear()
        second.give_up(stream_id)
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


# What is under way as something ends


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
    with pytest.raises(IncompleteRead):
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


# Who answers


def test_without_a_connector_a_request_is_told_so(web: Web, call: Call) -> None:
    caller = call(web)
    for _ in range(2):
        reply = caller.ask("POST", "/", (), b"x" * 10)
        assert reply.status == 503
        assert reply.body == b"no connector serves web.App\n"
    assert caller.ask("HEAD", "/").body == b""


def test_each_host_has_its_own_service(run_web: Callable[..., Web], call: Call) -> None:
    web = run_web(http={"a.example": "web.A", "*": "web.Any", "[::1]": "web.Six"})
    for service in ("web.A", "web.Any", "web.Six"):
        name = service.encode()
        web.serve("wsgi", wsgi(lambda environ, name=name: [name]), service)
    caller = call(web)
    for host, service in (
        ("a.example", b"web.A"), ("A.Example:81", b"web.A"), ("b.a.example", b"web.Any"),
        ("[::1]:9", b"web.Six"), ("[::1]", b"web.Six"), ("*", b"web.Any"),
    ):  # fmt: skip
        assert caller.ask("GET", "/", host=host).body == service


def test_a_host_that_nobody_serves_is_not_found(run_web: Callable[..., Web], call: Call) -> None:
    web = run_web(http={"a.example": "web.A"})
    reply = call(web).ask("GET", "/", host="b.example")
    assert (reply.status, reply.body) == (404, b"no service answers b.example\n")


def test_http10_has_an_answer_that_ends_with_its_connection(web: Web) -> None:
    web.serve("wsgi", wsgi(lambda environ: [environ["SERVER_PROTOCOL"].encode(), b"!"]))
    caller = web.raw()
    caller.say("GET / HTTP/1.0\r\n\r\n")
    head, _, body = caller.hears_rest().partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body == b"HTTP/1.0!"


def test_a_caller_that_wants_no_more_is_sent_away(web: Web) -> None:
    web.serve("wsgi", wsgi(lambda environ: [b"ok"]))
    caller = web.raw()
    caller.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    reply = caller.hears_reply()
    assert (reply.body, reply.get("connection")) == (b"ok", "close")
    assert caller.is_ended


def test_who_would_speak_another_protocol_is_answered_in_http(web: Web) -> None:
    web.serve("wsgi", wsgi(lambda environ: [str("HTTP_UPGRADE" in environ).encode()]))
    caller = web.raw()
    for protocol in ("websocket", "h2c"):
        caller.say(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n"
            f"Upgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
        )
        assert caller.hears_reply().body == b"False"


def test_nothing_is_left_of_what_was_answered(web: Web, call: Call) -> None:
    web.serve("wsgi", wsgi(lambda environ: [b"x" * 1000]))
    caller = call(web)
    for _ in range(50):
        caller.ask("POST", "/", (), b"y" * 1000)
    serving = web.gateway._thread._serving
    eventually(lambda: not len(serving._callers.streaming))
    assert not serving.shared.answers._deadlines
