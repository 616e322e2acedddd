"""What is answered: by an application, whatever it does, and where there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from tests.support.waiting import eventually
from tests.support.web_applications import Body, wsgi
from tests.web.conftest import Web

Call = Callable[[Web], Any]

TIMEOUT = 60.0


def forget_errors(caplog: pytest.LogCaptureFixture, *wanted: str) -> None:
    """The application's own failures were logged, as they should be."""
    eventually(lambda: all(each in caplog.text for each in wanted))
    caplog.clear()


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
