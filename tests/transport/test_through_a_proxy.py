"""Both transports through a real proxy program."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from packaging.version import Version

from revconn import HandshakeError
from tests.support.proxy_program import ProxyProgram
from tests.support.threads import TIMEOUT
from tests.support.waiting import eventually

SECRET = "s3cret-w0rd"
GRPCIO_SAYS_WHY = Version(version("grpcio")) >= Version("1.49")


@pytest.fixture
def refusal(transport_options: dict[str, Any]) -> str:
    """What the error says of a proxy that wants other credentials."""
    if transport_options == {"transport": "grpcio"} and not GRPCIO_SAYS_WHY:
        return "grpcio 1.49 or newer says which"
    return "407"


@pytest.fixture(scope="module")
def proxy_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProgram]:
    directory = tmp_path_factory.mktemp("proxy")
    with ProxyProgram(directory, f"user:{SECRET}") as program:
        yield program


def test_requests_are_answered_through_a_proxy(
    new_connector, gateway, proxy_program: ProxyProgram
) -> None:
    connector = new_connector(
        gateway.address, proxy=f"http://user:{SECRET}@{proxy_program.address}"
    )
    connector.add_service("echo.Echo", lambda request: request.payload)
    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.request(payload=b"\x0ahello")
    assert peer.answer().payload == b"\x0ahello"
    connector.abort()
    eventually(lambda: f"CONNECT {gateway.address}" in proxy_program.log)


@pytest.mark.parametrize("userinfo", ["", "user:wr0ng-w0rd@"])
def test_a_proxy_that_refuses_the_credentials_is_named_and_they_are_not(
    new_connector, gateway, proxy_program: ProxyProgram, caplog, refusal: str, userinfo: str
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy = f"http://{userinfo}{proxy_program.address}"
    connector = new_connector(gateway.address, proxy=proxy, is_fatal=lambda error: True)
    connector.start(block=False)
    with pytest.raises(HandshakeError, match=refusal) as raised:
        connector.wait(TIMEOUT)
    for shown in (str(raised.value), caplog.text, repr(connector), repr(connector._options)):
        assert "wr0ng" not in shown


def test_a_proxy_from_the_environment_is_used_unless_it_is_told_not_to(
    new_connector, proxy_program: ProxyProgram, monkeypatch, refusal: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy_program.address}")
    options = {"tls": False, "is_fatal": lambda error: True}
    # Nothing is there; only a proxy answers 407.
    target = "192.0.2.1:443"
    through = new_connector(target, **options)
    through.start(block=False)
    with pytest.raises(HandshakeError, match=refusal):
        through.wait(TIMEOUT)
    for given, exceptions in (({"proxy": False}, ""), ({}, "example.com,192.0.2.1")):
        monkeypatch.setenv("NO_PROXY", exceptions)
        straight = new_connector(target, **options, **given, connect_timeout=0.3)
        straight.start(block=False)
        with pytest.raises(HandshakeError) as raised:
            straight.wait(TIMEOUT)
        assert "407" not in str(raised.value)
