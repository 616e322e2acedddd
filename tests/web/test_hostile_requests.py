"""Requests that are none, or two, or more than anybody takes; and what it costs those beside."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any, Callable

import pytest

from revconn.gateway import Gateway
from revconn.gateway.web import WebCall
from revconn.gateway.wires import Turn
from tests.gateway.conftest import counted
from tests.support.waiting import eventually
from tests.web.conftest import Clock, Web

TIMED_OUT = (TimeoutError, socket.timeout)
TIMEOUT = 60.0
SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def paths(web: Web) -> list[str]:
    """The paths that an application was asked for; it reads what it is sent."""
    seen: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ["PATH_INFO"])
        environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    web.serve("wsgi", app)
    return seen


POST = "POST /first HTTP/1.1\r\nHost: a\r\n"

REFUSED = {
    "two lengths": f"{POST}Content-Length: 0\r\nContent-Length: {len(SMUGGLED)}\r\n\r\n{SMUGGLED}",
    "a length that is a list": f"{POST}Content-Length: 0, 5\r\n\r\n{SMUGGLED}",
    "a length with a sign": f"{POST}Content-Length: +0\r\n\r\n{SMUGGLED}",
    "an endless length": f"{POST}Content-Length: {'9' * 5000}\r\n\r\n",
    "a length of 20 digits": f"{POST}Content-Length: {'9' * 20}\r\n\r\n",
    "a length of nothing": f"{POST}Content-Length: \r\n\r\n{SMUGGLED}",
    "an unknown coding": f"{POST}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "a coding that is not last": f"{POST}Transfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "a length beside chunks": (
        f"{POST}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
    ),
    "a coding twice": f"{POST}Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n{SMUGGLED}",
    "a space before the colon": f"{POST}Content-Length : 5\r\n\r\n{SMUGGLED}",
    "a folded header at the beginning": f"POST / HTTP/1.1\r\n Host: a\r\n\r\n{SMUGGLED}",
    "a header without a colon": f"{POST}Content-Length\r\n\r\n{SMUGGLED}",
    "a header with a null": f"{POST}X: a\0b\r\n\r\n{SMUGGLED}",
    "a header with a bare CR": f"{POST}X: a\rContent-Length: 5\r\n\r\n{SMUGGLED}",
    "a name with a space": f"{POST}Content Length: 5\r\n\r\n{SMUGGLED}",
    "two hosts": f"{POST}Host: b\r\n\r\n{SMUGGLED}",
    "no host": "GET / HTTP/1.1\r\n\r\n",
    "a broken host in the target": "GET http://[a/ HTTP/1.1 \r\nHost: a\r\n\r\n",
    "a target with a space": "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": "GET /first\r\nHost: a\r\n\r\n",
    "no request": "\r\r\r\r\0\0\0\0garbage\r\n\r\n",
    "what TLS begins with": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n\r\n",
    "a method with a parenthesis": "GE(T / HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("said", REFUSED.values(), ids=REFUSED)
def test_what_is_no_request_is_refused_and_what_follows_it_is_none(
    web: Web, paths: list[str], said: str
) -> None:
    caller = web.raw()
    caller.say(said)
    rest = caller.hears_rest()
    assert rest.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ")), rest
    assert rest.count(b"content-length") == 1
    assert "/smuggled" not in paths
    assert web.http1().ask("GET", "/next").body == b"ok"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET http://[a/ HTTP/1.1\r\nHost: a\r\n\r\n", 200),  # which is no fault of the gateway
        ("GET first HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
    ],
)
def test_what_can_be_read_and_is_no_request_is_refused(
    web: Web, paths: list[str], said: str, status: int
) -> None:
    caller = web.raw()
    caller.say(said)
    assert caller.hears_reply().status == status
    assert web.http1().ask("GET", "/next").body == b"ok"


def test_what_begins_like_http2_and_goes_on_otherwise_is_ended(web: Web, paths: list[str]) -> None:
    caller = web.raw()
    caller.say("PRI / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"HTTP/1.1" not in caller.hears_rest()
    assert web.http1().ask("GET", "/next").body == b"ok"
    assert paths == ["/next"]


@pytest.mark.parametrize(
    "chunk",
    ["zz\r\nab\r\n", "-1\r\na\r\n", "0x1\r\na\r\n", "1\r\nabc\r\n", f"{'f' * 30}\r\na"],
    ids=["no number", "a sign", "a prefix", "longer than said", "endless"],
)
def test_a_chunk_that_is_none_breaks_the_request_off(web: Web, chunk: str) -> None:
    errors: list[BaseException] = []
    begun = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.set()
        try:
            environ["wsgi.input"].read()
        except ConnectionResetError as error:
            errors.append(error)
            raise
        raise AssertionError("a body that is none was taken for one")

    web.serve("wsgi", app)
    caller = web.raw()
    caller.say(f"{POST}Transfer-Encoding: chunked\r\n\r\n")
    assert begun.wait(TIMEOUT)
    caller.say(f"{chunk}0\r\n\r\n")
    assert caller.hears_rest().startswith(b"HTTP/1.1 400 ")
    eventually(lambda: errors)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: a\r\nX: " + "x" * 9_000 + "\r\n\r\n", 431),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: " + "x" * 40_000, 431),
        ("GET /" + "x" * 40_000 + " HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        ("GET / HTTP/1.1\r\nHost: a\r\n" + "X: y\r\n" * 2_000 + "\r\n", 431),
        (POST + "Transfer-Encoding: chunked\r\n\r\n1;" + "x" * 100_000, 431),
    ],
    ids=["somewhat", "far", "target", "many", "of a chunk"],
)
def test_headers_that_are_too_large_are_refused_as_such(
    web: Web, paths: list[str], said: str, status: int
) -> None:
    caller = web.raw()
    caller.say(said)
    assert caller.hears_line().startswith(b"HTTP/1.1 %d " % status)
    assert paths == [] or paths == ["/first"]


@pytest.mark.parametrize("size", [9_000, 20_000])
def test_headers_that_are_too_large_are_refused_as_such_in_http2(
    web: Web, paths: list[str], size: int
) -> None:
    caller = web.http2()
    reply = caller.ask("GET", "/", [("x", "x" * size)])
    assert (reply.status, reply.is_whole) == (431, True)
    assert b"max_metadata_bytes" in reply.body
    assert caller.ask("GET", "/next").body == b"ok"
    assert paths == ["/next"]


def test_connect_is_refused(web: Web, paths: list[str]) -> None:
    caller = web.raw()
    caller.say("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")
    assert caller.hears_rest().startswith(b"HTTP/1.1 501 ")
    assert web.http2().ask("CONNECT", "/").status == 501
    second = web.http2()
    pseudo = [(":method", "CONNECT"), (":authority", "a:443")]
    assert second.reply(second.begin("", "", pseudo=pseudo)).reset == 1
    assert paths == []


@pytest.mark.parametrize(
    ("method", "target", "host"),
    [
        ("GE T", "/", "a"),
        ("GET\x01", "/", "a"),
        ("GET", "nowhere", "a"),
        ("GET", "/a b", "a"),
        ("GET", "/\x7f", "a"),
        ("GET", "/", "a b"),
        ("GET", "/", "user@a"),
        ("GET", "/", "a/b"),
    ],
)
def test_what_is_no_request_is_none_in_http2_either(
    web: Web, paths: list[str], method: str, target: str, host: str
) -> None:
    caller = web.http2()
    assert caller.ask(method, target, host=host).status == 400
    assert caller.ask("GET", "/next").body == b"ok"
    assert paths == ["/next"]


@pytest.mark.parametrize(
    "headers",
    [
        [("x", "a\r\nb: c")],
        [("x", "a\0")],
        [("x\r\ny", "a")],
        [("X", "a")],
        [("connection", "x")],
        [("transfer-encoding", "chunked")],
        [("content-length", "x")],
        [(":path", "/other")],
    ],
)
def test_a_header_that_http2_forbids_ends_the_stream_alone(
    web: Web, paths: list[str], headers: list[tuple[str, str]]
) -> None:
    caller = web.http2()
    assert caller.reply(caller.begin("GET", "/", headers)).reset == 1
    assert caller.ask("GET", "/next").body == b"ok"
    assert paths == ["/next"]


def test_a_caller_cannot_say_that_it_came_by_tls(web: Web) -> None:
    schemes: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        schemes.append(environ["wsgi.url_scheme"])
        start_response("204 No Content", [])
        return []

    web.serve("wsgi", app)
    caller = web.http2()
    pseudo = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a")]
    assert caller.reply(caller.begin("", "", pseudo=pseudo)).status == 204
    first = web.raw()
    first.say("GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n")
    assert first.hears_reply().status == 204
    assert schemes == ["http", "http"]


def test_a_host_header_is_the_host_where_http2_names_no_other(web: Web) -> None:
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append((environ["HTTP_HOST"], environ["SERVER_NAME"]))
        start_response("204 No Content", [])
        return []

    web.serve("wsgi", app)
    caller = web.http2()
    assert caller.ask("GET", "/", [("host", "b:1")], host="").status == 204
    assert caller.ask("GET", "/", [("host", "b:1")], host="b:1").status == 204
    assert caller.ask("GET", "/", [("host", "c")], host="b:1").status == 400
    assert seen == [("b:1", "b")] * 2


@pytest.mark.parametrize("host", ["a:\xb2", "a:" + "9" * 5000, "a:", "[::1]", "::1"])
def test_a_strange_port_is_no_fault_of_an_application(web: Web, host: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    web.serve("asgi", app)
    assert web.http2().ask("GET", "/", host=host).status in (204, 400)


def test_an_absolute_target_names_the_host(web: Web) -> None:
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append((environ["HTTP_HOST"], environ["PATH_INFO"], environ["QUERY_STRING"]))
        start_response("204 No Content", [])
        return []

    web.serve("wsgi", app)
    caller = web.raw()
    for target in ("http://b:1/p?q", "HTTP://b:1", "http://b:1?q"):
        caller.say(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
        assert caller.hears_reply().status == 204
    assert seen == [("b:1", "/p", "q"), ("b:1", "/", ""), ("b:1", "/", "q")]


def test_requests_that_come_together_are_answered_in_order(web: Web, paths: list[str]) -> None:
    caller = web.raw()
    wanted = [f"/{number}" for number in range(300)]
    caller.say("".join(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n" for path in wanted))
    for _ in wanted:
        assert caller.hears_reply().body == b"ok"
    assert paths == wanted


def test_requests_that_come_together_with_their_bodies_are_none_too_many(
    web: Web, paths: list[str]
) -> None:
    caller = web.raw()
    body = "x" * 300_000
    said = f"{POST}Content-Length: {len(body)}\r\n\r\n{body}" * 5
    sender = threading.Thread(target=caller.say, args=(said,))
    sender.start()
    for _ in range(5):
        assert caller.hears_reply().body == b"ok"
    sender.join()
    assert paths == ["/first"] * 5


def test_who_does_not_read_has_no_more_answers_made(web: Web, paths: list[str]) -> None:
    caller = web.raw()
    caller.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.sock.settimeout(0.5)
    request = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
    sent = 0
    with contextlib.suppress(*TIMED_OUT):
        while sent < 64 << 20:
            sent += caller.sock.send(request * 1000)
    assert sent < 64 << 20


def test_http1_of_one_who_asks_often_is_no_flood(
    impatient: None, web: Web, paths: list[str]
) -> None:
    caller = web.raw()
    for _ in range(6):
        caller.say(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
        heard = b""
        while heard.count(b"\r\n\r\nok") < 100:
            heard += caller.sock.recv(1 << 16)
    assert counted(web.gateway, "connections_flooding") == 0


def test_http2_of_one_who_asks_often_is_no_flood(
    impatient: None, web: Web, paths: list[str]
) -> None:
    caller = web.http2()
    for _ in range(6):
        ids = [caller.begin("GET", "/") for _ in range(100)]
        for each in ids:
            assert caller.reply(each).body == b"ok"
    assert counted(web.gateway, "connections_flooding") == 0


@pytest.mark.parametrize("status", [404, 503])
def test_who_asks_in_vain_again_and_again_is_no_flood(
    impatient: None, run_web: Callable[..., Web], status: int
) -> None:
    web = run_web(http={"a": "web.App"})
    caller = web.raw()
    host = b"a" if status == 503 else b"b"
    for _ in range(6):
        caller.say(b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % host * 100)
        for _ in range(100):
            assert caller.hears_reply().status == status
    assert counted(web.gateway, "connections_flooding") == 0


def test_frames_of_nothing_are_a_flood(web: Web) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.input"].read()
        raise AssertionError

    web.serve("wsgi", app)
    caller = web.http2()
    stream_id = caller.begin("POST", "/", ended=False)
    empty = b"\0\0\0\0\0" + stream_id.to_bytes(4, "big")
    stop = time.monotonic() + 60
    while not caller.is_ended and time.monotonic() < stop:
        try:
            caller.sock.sendall(empty * 10_000)
            caller.sock.settimeout(0.05)
            caller.hear()
        except TIMED_OUT:
            pass
        except OSError:
            break
    eventually(lambda: counted(web.gateway, "connections_flooding"))


def test_many_requests_at_once_are_answered_in_many_turns(
    run_web: Callable[..., Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    answered = 0
    refuse_with, end_of_turn = WebCall.refuse_with, Turn._catch_up

    def count(call: WebCall, status: int, problem: str) -> None:
        nonlocal answered
        answered += 1
        refuse_with(call, status, problem)

    def catch_up(turn: Turn) -> None:
        nonlocal answered
        most.append(answered)
        answered = 0
        end_of_turn(turn)

    monkeypatch.setattr(WebCall, "refuse_with", count)
    monkeypatch.setattr(Turn, "_catch_up", catch_up)
    caller = run_web(http={"a": "web.App"}).raw()
    said = b"GET / HTTP/1.1\r\nHost: b\r\n\r\n" * 500
    threading.Thread(target=caller.say, args=(said,)).start()
    for _ in range(500):
        assert caller.hears_reply().status == 404
    assert len(most) > 5
    assert max(most) < 100


@pytest.mark.parametrize("said", ["", "G", "GET / HTT", "GET / HTTP/1.1\r\nHost: a\r\n", "PR"])
def test_who_does_not_finish_its_first_request_is_ended(
    clock: Clock, run_web: Callable[..., Web], said: str
) -> None:
    web = run_web(handshake_timeout=5)
    caller = web.raw()
    caller.say(said)
    quiet = web.raw()
    quiet.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert quiet.hears_reply().status == 503
    clock.advance(9)
    assert caller.is_ended
    quiet.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert quiet.hears_reply().status == 503


@pytest.mark.parametrize("said", ["", "GET / HTT"])
def test_who_asks_nothing_more_is_ended(
    clock: Clock, run_web: Callable[..., Web], said: str
) -> None:
    web = run_web(idle_timeout=50)
    caller = web.raw()
    caller.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert caller.hears_reply().status == 503
    caller.say(said)
    clock.advance(51)
    assert caller.is_ended


def test_a_connection_that_is_old_is_ended_between_two_requests(
    clock: Clock, run_web: Callable[..., Web]
) -> None:
    web = run_web(max_connection_age=10)
    caller = web.raw()
    caller.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert caller.hears_reply().status == 503
    clock.advance(12)
    assert caller.is_ended


def test_a_gateway_without_http_refuses_it(resources: Any) -> None:
    gateway = resources.enter_context(Gateway(api_keys="key"))
    web = Web(gateway, resources)
    caller = web.raw()
    caller.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"HTTP/1.1" not in caller.hears_rest()
    assert web.http2().ask("GET", "/").status == 405


@pytest.mark.parametrize("content_type", ["application/grpc-web", "application/grpc-web-text"])
def test_a_gateway_without_http_says_that_grpc_web_is_no_grpc(
    resources: Any, content_type: str
) -> None:
    web = Web(resources.enter_context(Gateway(api_keys="key")), resources)
    reply = web.http2().ask("POST", "/a.B/Do", [("content-type", content_type)], b"\0\0\0\0\0")
    assert reply.status == 415
    assert b"application/grpc\n" in reply.body
