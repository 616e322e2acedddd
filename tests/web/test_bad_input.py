"""What is no application, no service, and no host; each is refused with a remedy."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import pytest

from revconn import ConfigurationError, Connector
from revconn.cli import main
from revconn.gateway import Gateway
from tests.web.conftest import Web


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"ok"]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    raise NotImplementedError


class Asynchronous:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError


@pytest.fixture
def connector() -> Connector:
    return Connector("127.0.0.1:1", api_key="key")


@pytest.mark.parametrize("app", [None, "app:app", 7, asgi, Asynchronous(), lambda environ: None])
def test_what_is_no_wsgi_application_is_refused(connector: Connector, app: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^app: .*add_asgi\(\)"):
        connector.add_wsgi(app, service="web.App")


@pytest.mark.parametrize("app", [None, "app:app", 7, wsgi, lambda scope: None])
def test_what_is_no_asgi_application_is_refused(connector: Connector, app: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^app: .*add_wsgi\(\)"):
        connector.add_asgi(app, service="web.App")


@pytest.mark.parametrize(
    ("kind", "app"),
    [
        ("wsgi", functools.partial(lambda extra, environ, start_response: [], 1)),
        ("wsgi", lambda *arguments: []),
        ("wsgi", dict),  # of whose arguments nothing can be told
        ("asgi", functools.partial(asgi)),
        ("asgi", Asynchronous()),
        ("asgi", lambda scope, receive, send: asgi(scope, receive, send)),
    ],
)
def test_what_may_be_an_application_is_taken(connector: Connector, kind: str, app: Any) -> None:
    getattr(connector, f"add_{kind}")(app, service="web.App")


@pytest.mark.parametrize("service", ["", "web app", "/web.App", None, 7])
@pytest.mark.parametrize(("kind", "app"), [("wsgi", wsgi), ("asgi", asgi)])
def test_a_bad_service_is_refused(connector: Connector, kind: str, app: Any, service: Any) -> None:
    with pytest.raises(ConfigurationError, match="service"):
        getattr(connector, f"add_{kind}")(app, service=service)
    assert not connector._applications._handlers


def test_a_second_application_of_a_service_is_refused(connector: Connector) -> None:
    connector.add_wsgi(wsgi, service="web.App")
    for add, app in ((connector.add_wsgi, wsgi), (connector.add_asgi, asgi)):
        with pytest.raises(ConfigurationError, match=r"web\.App"):
            add(app, service="web.App")
    assert not connector._applications._handlers  # nobody would stop what is not served


def test_an_application_that_comes_after_the_start_is_refused(web: Web) -> None:
    connector = web.serve("wsgi", wsgi)
    for service in ("web.App", "web.Other"):
        with pytest.raises(ConfigurationError):
            connector.add_wsgi(wsgi, service=service)
        with pytest.raises(ConfigurationError):
            connector.add_asgi(asgi, service=service)


@pytest.mark.parametrize(
    "http",
    [
        "", "bad name", 7, {}, [], {"a": "bad name"}, {"a": None}, {"": "web.App"}, {7: "web.App"},
        {"a:80": "web.App"}, {"http://a": "web.App"}, {"a/b": "web.App"}, {"a b": "web.App"},
        {"*.a": "web.App"}, {"A.example": "web.App", "a.example": "web.Other"},
    ],
)  # fmt: skip
def test_what_is_no_service_or_no_host_is_refused(http: Any) -> None:
    with pytest.raises(ConfigurationError, match="http"):
        Gateway(api_keys="key", http=http)


def test_without_h11_a_gateway_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "h11" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(ConfigurationError, match=r"pip install 'revconn\[http\]'"):
        Gateway(api_keys="key", http="web.App")
    Gateway(api_keys="key")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--http", "bad name"],
        ["--http", "a="],
        ["--http", "a:80=web.App"],
        ["--http", "http://a=web.App"],
        ["--http", "web.App", "--http", "web.Other"],
        ["--http", "a=web.App", "--http", "a=web.Other"],
        ["--http", "A=web.App", "--http", "a=web.Other"],
        ["--http", ""],
    ],
)
def test_a_command_that_cannot_be_obeyed_says_so_in_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVCONN_API_KEYS", "key")
    monkeypatch.setenv("REVCONN_API_KEY", "key")
    assert main(["gateway", "--address", "127.0.0.1:0", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "http" in said


def test_a_command_has_hosts_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    from revconn.cli.gateway import _http

    assert _http([]) is None
    assert _http(["web.App", "a.example=web.A"]) == {"*": "web.App", "a.example": "web.A"}
    assert _http(["*=web.App", "[::1]=web.Six"]) == {"*": "web.App", "[::1]": "web.Six"}
