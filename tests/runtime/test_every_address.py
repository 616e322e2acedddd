"""A link to each of the addresses that a target's name has, over real connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from revconn import TLS, AuthenticationError, ConfigurationError, Connector, State
from revconn.link import every_address
from tests.support.names import Names
from tests.support.scripted_gateway import ScriptedGateway
from tests.support.scripted_http2 import ScriptedHttp2
from tests.support.threads import TIMEOUT
from tests.support.waiting import eventually

NAME = "gateway.example.com"
V4, V6 = "127.0.0.1", "::1"


@pytest.fixture
def names() -> Iterator[Names]:
    with Names() as names:
        yield names


@pytest.fixture
def quick_look_ups(monkeypatch) -> None:
    monkeypatch.setattr(every_address, "_INTERVAL", 0.05)


def connector_to(new_connector, port: int, **options: Any) -> Connector:
    options = {"tls": False, "proxy": False, "every_address": True, **options}
    return new_connector(f"{NAME}:{port}", **options)


# One address


def test_one_address_is_one_link_which_says_it(new_connector, gateway, names) -> None:
    names[NAME] = [V4]
    connector = connector_to(new_connector, gateway.port)
    connector.start(block=False)
    peer = gateway.accept_ready("id-1")
    connector.wait_ready(TIMEOUT)
    (link,) = connector.links
    assert link.target == f"{NAME}:{gateway.port} ({V4})"
    assert connector.connection_id == "id-1"
    assert connector.stats()["connections"] == 1
    peer.requests("r1")
    peer.answers(1)
    peer.end()


def test_before_the_start_a_name_is_one_link(gateway) -> None:
    connector = Connector(f"{NAME}:443", api_key="key", every_address=True, proxy=False)
    assert [link.target for link in connector.links] == [f"{NAME}:443"]


def test_a_name_that_is_looked_up_again_keeps_its_connection(
    new_connector, gateway, names, quick_look_ups
) -> None:
    names[NAME] = [V4]
    connector = connector_to(new_connector, gateway.port)
    connector.start(block=False)
    gateway.accept_ready("id-1")
    connector.wait_ready(TIMEOUT)
    eventually(lambda: names.asked.count(NAME) >= 4)
    assert connector.stats()["connections"] == 1
    assert connector.state is State.READY


@pytest.mark.parametrize("target", ["127.0.0.1:{}", "unix:/nowhere/at-all"])
def test_what_is_no_name_is_one_plain_link(new_connector, gateway, names, target: str) -> None:
    target = target.format(gateway.port)
    connector = new_connector(target, every_address=True)
    connector.start(block=False)
    assert [link.target for link in connector.links] == [target]
    assert [each.name for each in threading.enumerate() if "-addresses-" in each.name] == []


def test_among_several_targets_each_link_stands_in_its_targets_place(
    new_connector, gateway, names
) -> None:
    names[NAME] = [V4, "127.0.0.2"]
    targets = ["127.0.0.1:9", f"{NAME}:{gateway.port}", "127.0.0.1:19"]
    connector = new_connector(targets, tls=False, proxy=False, every_address=True)
    connector.start(block=False)
    gateway.accept_ready("id-1")
    eventually(lambda: len(connector.links) == 4)
    assert [link.target for link in connector.links] == [
        "127.0.0.1:9",
        f"{NAME}:{gateway.port} ({V4})",
        f"{NAME}:{gateway.port} (127.0.0.2)",
        "127.0.0.1:19",
    ]


def test_both_families_of_one_host_are_two_links(new_connector, names) -> None:
    names[NAME] = [V6, V4]
    connector = connector_to(new_connector, 9)
    connector.start(block=False)
    eventually(lambda: len(connector.links) == 2)
    assert [link.target for link in connector.links] == [f"{NAME}:9 ({V6})", f"{NAME}:9 ({V4})"]


# What does not resolve


def test_a_name_that_is_not_there_is_told_of_by_whoever_waits(new_connector, names) -> None:
    connector = connector_to(new_connector, 443)
    connector.start(block=False)
    with pytest.raises(TimeoutError, match=f"cannot connect: {NAME} does not resolve: "):
        connector.wait_ready(0.5)
    connector.stop(TIMEOUT)
    assert connector.state is State.CLOSED


def test_a_name_that_vanishes_leaves_its_links(
    new_connector, gateway, names, quick_look_ups, caplog
) -> None:
    names[NAME] = [V4]
    connector = connector_to(new_connector, gateway.port)
    connector.start(block=False)
    gateway.accept_ready("id-1")
    del names[NAME]
    eventually(lambda: "looking the name up again failed" in caplog.text)
    asked = names.asked.count(NAME)
    eventually(lambda: names.asked.count(NAME) >= asked + 2)
    assert connector.state is State.READY


@pytest.mark.parametrize("end", ["stop", "abort"])
def test_a_resolver_that_hangs_holds_up_no_end(new_connector, names, end: str) -> None:
    with names.hanging():
        connector = connector_to(new_connector, 443)
        connector.start(block=False)
        eventually(lambda: NAME in names.asked)
        began = time.monotonic()
        getattr(connector, end)()
        assert time.monotonic() - began < 10.0
        assert connector.state is State.CLOSED


# The end


def test_a_stop_waits_for_what_came_by_any_of_them(new_connector, gateway, names) -> None:
    names[NAME] = [V4]
    connector = connector_to(new_connector, gateway.port)
    may_answer = threading.Event()
    connector.add_method(
        "/echo.Echo/Say", lambda request: may_answer.wait(TIMEOUT) and request.payload
    )
    connector.start(block=False)
    peer = gateway.accept_ready("id-1")
    peer.requests("r1")
    eventually(lambda: connector.stats()["in_flight"] == 1)
    stopping = threading.Thread(target=connector.stop)
    stopping.start()
    eventually(lambda: connector.state is State.DRAINING)
    may_answer.set()
    peer.answer("r1")
    peer.hears_goodbye()
    stopping.join(TIMEOUT)
    assert connector.state is State.CLOSED
    assert connector.stats()["undelivered"] == 0


def test_a_key_that_every_address_refuses_ends_the_connector(
    new_connector, gateway, names, caplog
) -> None:
    names[NAME] = [V4]
    connector = connector_to(new_connector, gateway.port)
    connector.start(block=False)
    gateway.accept().end(grpc.StatusCode.UNAUTHENTICATED, "Invalid token")
    with pytest.raises(AuthenticationError, match="Invalid token"):
        connector.wait(TIMEOUT)
    assert [link.state for link in connector.links] == [State.CLOSED]
    assert f"gave up {NAME}:{gateway.port} ({V4}): " in caplog.text


# It is the name that counts


def test_the_certificate_and_the_authority_are_of_the_name_and_not_of_the_address(
    new_connector, names, authority
) -> None:
    names[NAME] = [V4]
    context = authority.server_context(NAME)
    named: list[str | None] = []
    context.sni_callback = lambda sock, name, context: named.append(name)
    with ScriptedHttp2(tls=context) as server:
        connector = connector_to(new_connector, server.port, tls=TLS(ca=authority.pem))
        connector.start(block=False)
        peer = server.accept_stream()
        peer.hears_message()
        assert named == [NAME]
        assert dict(peer.headers)[":authority"] == f"{NAME}:{server.port}"
        connector.abort()


def test_a_certificate_of_the_address_alone_is_refused(new_connector, names, authority) -> None:
    names[NAME] = [V4]
    with ScriptedGateway(credentials=authority.server(V4)) as gateway:
        connector = connector_to(new_connector, gateway.port, tls=TLS(ca=authority.pem))
        connector.start(block=False)
        eventually(lambda: connector.links[0].last_error)
        assert "certificate is for another name" in connector.links[0].last_error
        connector.abort()


# Proxies


@pytest.fixture
def no_proxy_around_us(monkeypatch) -> None:
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def make(target: str = f"{NAME}:443", **options: Any) -> Connector:
    return Connector(target, api_key="key", every_address=True, **options)


def test_through_a_proxy_the_addresses_cannot_be_known(no_proxy_around_us, monkeypatch) -> None:
    problem = f"the proxy proxy:3128 looks {NAME} up"
    with pytest.raises(ConfigurationError, match=f"^every_address: {problem}"):
        make(proxy="http://user:secret@proxy:3128")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:3128")
    with pytest.raises(ConfigurationError, match=problem) as raised:
        make()
    assert "secret" not in str(raised.value)


def test_a_proxy_that_is_not_gone_through_is_none(no_proxy_around_us, monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    make(proxy=False)
    make("192.0.2.1:443")
    make("unix:/run/gateway.sock")
    monkeypatch.setenv("NO_PROXY", "example.com")
    make()


def test_a_proxy_that_is_set_later_is_not_gone_through(
    new_connector, gateway, names, no_proxy_around_us, monkeypatch
) -> None:
    names[NAME] = [V4]
    connector = connector_to(new_connector, gateway.port, proxy=None)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    connector.start(block=False)
    gateway.accept_ready("id-1")


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_it_is_on_or_off_and_nothing_else(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="^every_address: neither True nor False"):
        Connector("127.0.0.1:9", api_key="key", every_address=value)
