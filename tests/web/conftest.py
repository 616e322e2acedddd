"""A gateway that takes HTTP, a connector with an application, and callers of every kind."""

from __future__ import annotations

import ssl
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

from revconn import TLS, Connector
from revconn.gateway import Gateway, ServerTLS
from tests.gateway.conftest import (  # noqa: F401 - fixtures
    Clock,
    clock,
    impatient,
    nothing_goes_wrong_unnoticed,
    resources,
)
from tests.support.certificates import Authority
from tests.support.web_callers import Http1Caller, Http2Caller, RawCaller

SERVICE = "web.App"

Caller = Any


@dataclass
class Web:
    """A gateway and what serves there; how to call it."""

    gateway: Gateway
    stack: ExitStack
    authority: Authority | None = None
    connector: Connector | None = None

    def client_tls(self) -> ssl.SSLContext | None:
        if self.authority is None:
            return None
        return ssl.create_default_context(cadata=self.authority.pem.decode())

    def http1(self) -> Http1Caller:
        caller = Http1Caller(self.gateway.address, self.client_tls())
        return self.stack.enter_context(caller)

    def http2(self, **options: Any) -> Http2Caller:
        caller = Http2Caller(self.gateway.address, self.client_tls(), **options)
        return self.stack.enter_context(caller)

    def raw(self, *alpn: str) -> RawCaller:
        caller = RawCaller(self.gateway.address, self.client_tls(), alpn)
        return self.stack.enter_context(caller)

    def serve(self, kind: str, app: Any, service: str = SERVICE, **options: Any) -> Connector:
        """Have a connector answer with the application, and wait until it does."""
        if self.authority is not None:
            options["tls"] = TLS(ca=self.authority.pem)
        connector = Connector(self.gateway.address, api_key="key", **options)
        getattr(connector, f"add_{kind}")(app, service=service)
        self.connector = self.stack.enter_context(connector)
        connector.wait_ready(60)
        return connector

    def ask_and_leave(self, version: str) -> None:
        """Ask for a page, and leave when some of it has come."""
        if version == "1.1":
            caller = self.raw()
            caller.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            caller.hears(1)
            caller.close()
        else:
            second = self.http2()
            stream_id = second.begin("GET", "/")
            while not second.replies[stream_id].body:
                second.hear()
            second.give_up(stream_id)


@pytest.fixture
def run_web(resources: ExitStack) -> Callable[..., Web]:  # noqa: F811
    """``run_web(**options)``: a gateway that has the service "web.App" answer HTTP."""

    def run(**options: Any) -> Web:
        given = {"api_keys": "key", "dial_private": True, "http": SERVICE, **options}
        return Web(resources.enter_context(Gateway(**given)), resources)

    return run


@pytest.fixture
def run_secure_web(resources: ExitStack, tmp_path: Path) -> Callable[..., Web]:  # noqa: F811
    """The same with TLS."""

    def run(**options: Any) -> Web:
        authority = Authority()
        cert, key = authority.issue_files(tmp_path)
        given = {"api_keys": "key", "tls": ServerTLS(cert, key), "http": SERVICE, **options}
        return Web(resources.enter_context(Gateway(**given)), resources, authority)

    return run


@pytest.fixture
def web(run_web: Callable[..., Web]) -> Web:
    return run_web()


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def call(request: pytest.FixtureRequest) -> Callable[[Web], Caller]:
    """``call(web)``: a caller, of either version of HTTP."""
    return (lambda web: web.http1()) if request.param == "HTTP/1.1" else (lambda web: web.http2())
