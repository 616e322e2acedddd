"""What an HTTP request is to an application, and its response to who asked: both ways of asking."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from tests.web.conftest import Web

Call = Callable[[Web], Any]


def answering(
    seen: list[Any], status: str = "200 OK", headers: Any = (), *parts: bytes
) -> Callable[..., Any]:
    """A WSGI application that answers so, and notes what it was asked."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        seen.append({**environ, "body": environ["wsgi.input"].read()})
        start_response(status, list(headers))
        return list(parts)

    return app


def asgi_answering(
    seen: list[Any], status: int = 200, headers: Any = (), *parts: bytes
) -> Callable[..., Any]:
    """The same of ASGI."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        seen.append({**scope, "body": body})
        lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await send({"type": "http.response.start", "status": status, "headers": lines})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    return app


@pytest.fixture(params=["wsgi", "asgi"])
def serve(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """``serve(web, status, headers, *parts)``: answer so; what was asked."""

    def serve(web: Web, status: int = 200, headers: Any = (), *parts: bytes) -> list[Any]:
        seen: list[Any] = []
        if request.param == "wsgi":
            web.serve("wsgi", answering(seen, f"{status} Whatever", headers, *parts))
        else:
            web.serve("asgi", asgi_answering(seen, status, headers, *parts))
        return seen

    return serve


def test_a_response_comes_as_the_application_made_it(web: Web, call: Call, serve: Any) -> None:
    headers = [("Content-Type", "text/plain"), ("X-Odd", "caf\xe9"), ("ETag", '"a"')]
    serve(web, 418, headers, b"short ", b"and stout")
    reply = call(web).ask("GET", "/")
    assert reply.status == 418
    assert reply.body == b"short and stout"
    assert reply.get("content-type") == "text/plain"
    assert reply.get("x-odd") == "caf\xe9"
    assert reply.get("etag") == '"a"'
    assert reply.get("date").endswith(" GMT")


def test_the_date_of_an_application_is_the_only_one(web: Web, call: Call, serve: Any) -> None:
    serve(web, 200, [("Date", "Thu, 01 Jan 1970 00:00:00 GMT")], b"x")
    assert call(web).ask("GET", "/").get("date") == "Thu, 01 Jan 1970 00:00:00 GMT"


def test_a_header_that_is_there_twice_comes_twice(web: Web, call: Call, serve: Any) -> None:
    serve(web, 200, [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2, c")], b"x")
    assert call(web).ask("GET", "/").get_all("set-cookie") == ["a=1", "b=2, c"]


def test_headers_of_a_connection_do_not_travel(web: Web, call: Call, serve: Any) -> None:
    serve(web, 200, [("Connection", "X-Secret"), ("X-Secret", "s"), ("Keep-Alive", "5")], b"x")
    reply = call(web).ask("GET", "/")
    assert reply.body == b"x"
    assert not reply.get_all("x-secret")
    assert not reply.get_all("keep-alive")


GRPC_WEB = ("application/grpc-web", "application/grpc-web-text", "application/grpc-web+proto")


@pytest.mark.parametrize("content_type", GRPC_WEB)
def test_grpc_web_is_for_the_application_with_all_its_headers(
    web: Web, call: Call, content_type: str
) -> None:
    seen: list[Any] = []
    headers = [("Content-Type", content_type)]
    web.serve("wsgi", answering(seen, "200 OK", headers, b"\0\0\0\0\2ok"))
    asked = [*headers, ("grpc-timeout", "5S"), ("grpc-encoding", "gzip"), ("x-grpc-web", "1")]
    reply = call(web).ask("POST", "/a.B/Do", asked, b"\0\0\0\0\2hi")
    assert (reply.status, reply.body) == (200, b"\0\0\0\0\2ok")
    assert reply.get("content-type") == content_type
    (environ,) = seen
    assert environ["body"] == b"\0\0\0\0\2hi"
    assert environ["CONTENT_TYPE"] == content_type
    assert (environ["HTTP_GRPC_TIMEOUT"], environ["HTTP_GRPC_ENCODING"]) == ("5S", "gzip")


GRPC = ("application/grpc", "application/grpc+proto", "application/grpc;x=y", "application/grpc ;x")


@pytest.mark.parametrize("content_type", GRPC)
def test_what_is_grpc_is_a_call_and_not_for_the_application(
    web: Web, serve: Any, content_type: str
) -> None:
    seen = serve(web)
    reply = web.http2().ask("POST", "/a.B/Do", [("content-type", content_type)], b"")
    assert reply.get("grpc-status") == "14"  # nobody serves it
    assert not seen


@pytest.mark.parametrize("status", [204, 304])
def test_a_response_without_a_body_has_none(web: Web, call: Call, serve: Any, status: int) -> None:
    serve(web, status, [("ETag", '"a"')], b"this is too much")
    caller = call(web)
    for _ in range(2):  # what follows on the connection is not taken for it
        reply = caller.ask("GET", "/")
        assert (reply.status, reply.body, reply.is_whole) == (status, b"", True)
        assert not reply.get_all("transfer-encoding")


def test_head_is_told_how_long_the_body_would_be(web: Web, call: Call, serve: Any) -> None:
    seen = serve(web, 200, [("Content-Length", "5")], b"12345")
    caller = call(web)
    for _ in range(2):
        reply = caller.ask("HEAD", "/")
        assert (reply.status, reply.body, reply.get("content-length")) == (200, b"", "5")
    assert [each.get("REQUEST_METHOD") or each["method"] for each in seen] == ["HEAD", "HEAD"]


def test_a_wsgi_application_is_told_what_was_asked(web: Web, call: Call) -> None:
    seen: list[Any] = []
    web.serve("wsgi", answering(seen))
    caller = call(web)
    headers = [
        ("X-Two", "1"), ("X-Two", "2"), ("X-Latin", "caf\xe9"), ("Content-Type", "text/x"),
        ("Cookie", "a=1"), ("Cookie", "b=2"),
    ]  # fmt: skip
    caller.ask("POST", "/a%2Fb/%C3%A9%20?q=%26&q=2&e", headers, b"body", host="Shop.example:81")
    (environ,) = seen
    assert environ["REQUEST_METHOD"] == "POST"
    assert environ["PATH_INFO"].encode("latin-1") == b"/a/b/\xc3\xa9 "
    assert environ["SCRIPT_NAME"] == ""
    assert environ["QUERY_STRING"] == "q=%26&q=2&e"
    assert environ["RAW_URI"] == "/a%2Fb/%C3%A9%20?q=%26&q=2&e"
    assert environ["SERVER_PROTOCOL"] == f"HTTP/{caller.version}"
    assert environ["wsgi.url_scheme"] == "http"
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("Shop.example", "81")
    assert environ["HTTP_HOST"] == "Shop.example:81"
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["REMOTE_PORT"].isdigit()
    assert environ["HTTP_X_TWO"] == "1,2"
    assert environ["HTTP_X_LATIN"] == "caf\xe9"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert environ["CONTENT_TYPE"] == "text/x"
    assert environ["CONTENT_LENGTH"] == "4"
    assert "HTTP_CONTENT_LENGTH" not in environ
    assert environ["body"] == b"body"


def test_an_asgi_application_is_told_what_was_asked(web: Web, call: Call) -> None:
    seen: list[Any] = []
    web.serve("asgi", asgi_answering(seen))
    caller = call(web)
    headers = [("X-Two", "1"), ("X-Two", "2"), ("Cookie", "a=1"), ("Cookie", "b=2")]
    caller.ask("POST", "/a%2Fb/%C3%A9?q=%26", headers, b"body", host="[::1]:81")
    (scope,) = seen
    assert scope["method"] == "POST"
    assert scope["path"] == "/a/b/é"
    assert scope["raw_path"] == b"/a%2Fb/%C3%A9"
    assert scope["query_string"] == b"q=%26"
    assert scope["root_path"] == ""
    assert scope["scheme"] == "http"
    assert scope["http_version"] == caller.version
    assert scope["server"] == ("::1", 81)
    assert scope["client"][0] == "127.0.0.1"
    given = [tuple(each) for each in scope["headers"]]
    assert given.count((b"host", b"[::1]:81")) == 1
    assert [value for name, value in given if name == b"x-two"] == [b"1", b"2"]
    assert [value for name, value in given if name == b"cookie"] == [b"a=1; b=2"]
    assert (b"content-length", b"4") in given
    assert scope["body"] == b"body"


def test_names_that_could_be_taken_for_others_do_not_reach_wsgi(web: Web, call: Call) -> None:
    seen: list[Any] = []
    web.serve("wsgi", answering(seen))
    call(web).ask("GET", "/", [("Proxy", "evil"), ("X_Real", "1"), ("X-Real", "2")])
    (environ,) = seen
    assert "HTTP_PROXY" not in environ
    assert environ["HTTP_X_REAL"] == "2"


def test_a_body_comes_as_it_is_sent_whatever_its_length(web: Web, call: Call, serve: Any) -> None:
    seen = serve(web, 200, (), b"x")
    caller = call(web)
    for body in (b"", b"a", b"ab" * 40_000):
        assert caller.ask("PUT", "/", (), body).body == b"x"
        assert caller.ask("PUT", "/", (), [body[:1], body[1:]] if body else []).body == b"x"
    assert [each["body"] for each in seen] == [
        each for body in (b"", b"a", b"ab" * 40_000) for each in (body, body)
    ]


def test_methods_of_all_kinds_reach_an_application(web: Web, call: Call, serve: Any) -> None:
    seen = serve(web, 200, (), b"x")
    caller = call(web)
    methods = ["DELETE", "OPTIONS", "PATCH", "PROPFIND", "X-Own"]
    for method in methods:
        assert caller.ask(method, "*" if method == "OPTIONS" else "/").status == 200
    assert [(each.get("REQUEST_METHOD") or each["method"]).upper() for each in seen] == [
        method.upper() for method in methods
    ]


def test_one_who_expects_to_be_told_to_go_on_is(web: Web, serve: Any) -> None:
    seen = serve(web, 200, (), b"x")
    caller = web.raw()
    caller.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert caller.hears_line() == b"HTTP/1.1 100 \r\n"
    assert caller.hears_line() == b"\r\n"
    caller.say("ok")
    assert caller.hears_reply().body == b"x"
    second = web.http2()
    stream_id = second.begin("POST", "/", [("expect", "100-continue")], ended=False)
    while not second.replies[stream_id].interim:
        second.hear()
    second.send(stream_id, b"ok", ended=True)
    assert second.reply(stream_id).body == b"x"
    assert second.replies[stream_id].interim == [100]
    for each in seen:
        assert each["body"] == b"ok"
        assert "HTTP_EXPECT" not in each
        assert b"expect" not in dict(each.get("headers", ()))


def test_with_tls_an_application_is_told_so(
    run_secure_web: Callable[..., Web], call: Call, serve: Any
) -> None:
    web = run_secure_web()
    seen = serve(web, 200, (), b"x")
    assert call(web).ask("POST", "/", (), b"b" * 100_000).body == b"x"
    (asked,) = seen
    assert (asked.get("wsgi.url_scheme") or asked["scheme"]) == "https"
    assert asked["body"] == b"b" * 100_000


@pytest.mark.parametrize(("alpn", "version"), [((), "1.1"), (("http/1.1",), "1.1")])
def test_tls_without_http2_is_http1(
    run_secure_web: Callable[..., Web], alpn: tuple[str, ...], version: str
) -> None:
    web = run_secure_web()
    seen: list[Any] = []
    web.serve("wsgi", answering(seen, "200 OK", [], b"x"))
    caller = web.raw(*alpn)
    assert caller.sock.selected_alpn_protocol() == (alpn[0] if alpn else None)  # type: ignore
    caller.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert caller.hears_reply().body == b"x"
    assert seen[0]["SERVER_PROTOCOL"] == f"HTTP/{version}"


def test_a_wsgi_response_is_made_in_one_thread(web: Web, call: Call) -> None:
    threads: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        threads.append(threading.get_ident())
        start_response("200 OK", [])
        for _ in range(60):
            threads.append(threading.get_ident())
            yield b"x" * 50_000
        threads.append(threading.get_ident())

    web.serve("wsgi", app)
    assert len(call(web).ask("GET", "/").body) == 3_000_000
    assert len(threads) == 62
    assert len(set(threads)) == 1
