"""Gateway.stats(): numbers for monitoring."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest

from revconn.gateway import Gateway
from revconn.gateway.serving import Serving
from tests.support.waiting import eventually


def test_they_say_what_happened_and_how_much_there_is(gateway, connect, call) -> None:
    connector = connect(gateway, "echo.Echo")
    pending = [call(gateway, "/echo.Echo/Say") for _ in range(3)]
    requests = [connector.receive_request() for _ in pending]
    connector.respond(requests[0].request_id)
    eventually(lambda: gateway.stats()["calls_answered"] == 1)
    assert call(gateway, "/other.Other/Say").code() is not None
    stats = gateway.stats()
    expected = {"connections": 1, "pending": 2, "connections_opened": 1, "calls": 3}
    assert {name: stats[name] for name in expected} == expected
    assert stats["calls_unserved"] == 1


def test_all_of_them_are_there_from_the_beginning_and_after_the_end(connect) -> None:
    gateway = Gateway(api_keys="key")
    fresh = gateway.stats()
    assert set(fresh.values()) == {0}
    with gateway:
        connect(gateway, "echo.Echo")
    ended = gateway.stats()
    assert set(ended) == set(fresh)
    assert (ended["connections"], ended["connections_opened"]) == (0, 1)
    with gateway:
        assert gateway.stats() == fresh


def test_they_are_plain_and_the_callers_own(gateway) -> None:
    stats = gateway.stats()
    assert {type(value) for value in stats.values()} == {int}
    stats["calls"] = 7
    assert gateway.stats()["calls"] == 0


def test_a_start_that_fails_leaves_zeros_and_no_connections(gateway, connect) -> None:
    connect(gateway, "echo.Echo")
    other = Gateway(gateway.address, api_keys="key")
    with pytest.raises(OSError, match="cannot listen"):
        other.start()
    assert set(other.stats().values()) == {0}
    assert other.connections() == ()


def test_a_run_that_is_about_to_start_has_counted_nothing_yet(connect, monkeypatch) -> None:
    seen = []

    def serve(self: Serving) -> Coroutine[Any, Any, str]:
        seen.append((gateway.stats(), gateway.connections()))
        return listen(self)

    gateway = Gateway(api_keys="key")
    with gateway:
        connect(gateway, "echo.Echo")
    listen = Serving.start
    monkeypatch.setattr(Serving, "start", serve)
    with gateway:
        assert [(set(stats.values()), connections) for stats, connections in seen] == [({0}, ())]
    assert gateway.stats()["connections_opened"] == 0
