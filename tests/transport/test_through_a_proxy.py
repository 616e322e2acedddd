"""Both transports through a real proxy program."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from revconn import HandshakeError
from tests.support.proxy_program import ProxyProgram
from tests.support.threads import TIMEOUT
from tests.support.waiting import eventually

SECRET = "s3cret-w0rd"


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
    new_connector, gateway, proxy_program: ProxyProgram, caplog, userinfo: str
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy = f"http://{userinfo}{proxy_program.address}"
    connector = new_connector(gateway.address, proxy=proxy, is_fatal=lambda error: True)
    connector.start(block=False)
    with pytest.raises(HandshakeError, match="407") as raised:
        connector.wait(TIMEOUT)
    for shown in (str(raised.value), caplog.text, repr(connector), repr(connector._options)):
        assert "wr0ng" not in shown


@pytest.mark.parametrize(
    ("exceptions", "given", "goes_through"),
    [
        ("", {}, True),
        ("192.0.2.1:444", {}, True),
        ("192.0.2.0/24", {"proxy": "the same"}, True),  # not the environment's
        ("192.0.2.0/24", {}, False),
        ("example.com,192.0.2.1", {}, False),
        ("", {"proxy": False}, False),
    ],
)
def test_both_transports_go_by_the_same_reading_of_the_environment(
    new_connector,
    proxy_program: ProxyProgram,
    monkeypatch,
    exceptions: str,
    given: dict[str, Any],
    goes_through: bool,
) -> None:
    url = f"http://{proxy_program.address}"
    monkeypatch.setenv("https_proxy", url)
    monkeypatch.setenv("no_proxy", exceptions)
    options = {"proxy": url} if given.get("proxy") == "the same" else given
    # Nothing is there; only a proxy answers 407.
    connector = new_connector(
        "192.0.2.1:443",
        tls=False,
        is_fatal=lambda error: True,
        connect_timeout=10.0 if goes_through else 0.3,
        **options,
    )
    connector.start(block=False)
    with pytest.raises(HandshakeError) as raised:
        connector.wait(TIMEOUT)
    assert ("407" if goes_through else "192.0.2.1") in str(raised.value)
    assert goes_through or "407" not in str(raised.value)
