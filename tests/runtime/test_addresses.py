"""A name with several addresses, of which some take the connection and then are no good."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable

import grpc
import pytest

from revconn import Backoff
from revconn.link import link
from tests.support.scripted_gateway import ScriptedGateway
from tests.support.waiting import eventually

TIMEOUT = 30.0
NAME = "gateway.example.com"


@pytest.fixture
def resolves(monkeypatch) -> Callable[..., list[str]]:
    """``resolves(port, …)``: what the name resolves to, all on this machine."""

    def fake(*ports: int) -> list[str]:
        asked: list[str] = []
        real = socket.getaddrinfo

        def getaddrinfo(host: Any, *args: Any, **options: Any) -> list[Any]:
            if host != NAME:
                return real(host, *args, **options)
            asked.append(host)
            return [(socket.AF_INET, 1, 6, "", ("127.0.0.1", port)) for port in ports]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return fake


@pytest.fixture
def hanging() -> Iterator[int]:
    """The system takes connections for it, and nobody says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def closing() -> Iterator[int]:
    """It hangs up at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(TIMEOUT)


@pytest.fixture
def bad_gateway() -> Iterator[ScriptedGateway]:
    with ScriptedGateway() as gateway:
        yield gateway


def connect(new_connector, gateway: ScriptedGateway, **options: Any) -> None:
    connector = new_connector(
        f"{NAME}:443", tls=False, proxy=False, **{"connect_timeout": 0.5, **options}
    )
    connector.start(block=False)
    gateway.accept_ready()
    connector.wait_ready(TIMEOUT)


@pytest.mark.parametrize("fault", ["hanging", "closing"])
def test_one_that_takes_the_connection_and_no_more_is_not_tried_for_ever(
    new_connector, gateway, resolves, request, fault
) -> None:
    asked = resolves(request.getfixturevalue(fault), gateway.port)
    connect(new_connector, gateway)
    assert asked


def test_one_that_says_unavailable_is_not_tried_for_ever(
    new_connector, gateway, bad_gateway, resolves
) -> None:
    resolves(bad_gateway.port, gateway.port)
    refusing = threading.Thread(
        target=lambda: bad_gateway.accept().end(grpc.StatusCode.UNAVAILABLE, "upgrading")
    )
    refusing.start()
    connect(new_connector, gateway)
    refusing.join(TIMEOUT)


def test_one_that_never_says_connected_is_not_tried_for_ever(
    new_connector, gateway, bad_gateway, resolves
) -> None:
    resolves(bad_gateway.port, gateway.port)
    connect(new_connector, gateway)


def test_one_that_accepts_and_ends_at_once_is_not_tried_for_ever(
    new_connector, gateway, bad_gateway, resolves
) -> None:
    resolves(bad_gateway.port, gateway.port)
    connector = new_connector(f"{NAME}:443", tls=False, proxy=False)
    connector.start(block=False)
    bad_gateway.accept_ready("id-1").end()
    gateway.accept_ready("id-2")
    eventually(lambda: connector.connection_id == "id-2")


def test_one_that_hangs_does_not_cost_all_of_connect_timeout_at_each_restart_of_the_good_one(
    new_connector, gateway, bad_gateway, resolves, monkeypatch
) -> None:
    monkeypatch.setattr(link, "_FIRST_ROUND", 0.3)
    resolves(gateway.port, bad_gateway.port)
    connector = new_connector(f"{NAME}:443", tls=False, proxy=False, connect_timeout=2 * TIMEOUT)
    connector.start(block=False)
    gateway.accept_ready("id-1").end()
    began = time.monotonic()
    gateway.accept_ready("id-2")
    assert time.monotonic() - began < TIMEOUT


def test_of_three_the_only_good_one_is_found_in_one_round(
    new_connector, gateway, bad_gateway, hanging, resolves
) -> None:
    asked = resolves(hanging, bad_gateway.port, gateway.port)
    backoff = Backoff(initial=0.01, maximum=0.01, max_attempts=3)
    connect(new_connector, gateway, backoff=backoff)
    assert len(asked) <= 3, "the name is looked up once for each attempt"
